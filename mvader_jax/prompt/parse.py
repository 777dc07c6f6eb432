"""A prompt's elements as arguments of a command line."""

from __future__ import annotations

import os
from typing import Any

from mvader_jax.errors import UserError
from mvader_jax.prompt.elements import Element, Image, Text, check_weight

#: A command-line part that ends so is the path of an image.
IMAGE_EXTENSIONS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")


def parse_part(part: str) -> Element:
    """An element from a command-line argument: a text or an image's path, with an optional weight `@0.3`.

    What follows the last '@' is the weight if it holds neither blanks nor a path separator. An existing
    file, or a string that ends with an image's extension, is an image; `text:` and `image:` in front
    settle doubt. Raises UserError for a weight that is no finite number of at least 0, an empty text,
    and an image that does not exist.
    """
    kind, body = _strip_prefix(part)
    weight: Any = 1.0
    if kind == "text" or not _is_image_path(body):
        head, at, tail = body.rpartition("@")
        if at and not any(c.isspace() or c in "/\\" for c in tail):
            body, weight = head, _parse_weight(tail, part)
    if kind == "text" or (kind is None and not _is_image_path(body)):
        return Text(body, weight)
    if not body:
        raise UserError(f"{part!r} names no image; write image:PATH")
    if not os.path.exists(body):
        hint = "" if kind == "image" else f"; write 'text:{body}' if it is meant as text"
        raise UserError(f"the image {body!r} does not exist{hint}")
    return Image(body, weight)


def format_part(element: Element) -> str:
    """The command-line argument that `parse_part` reads back; spans and regions have no such form.

    Raises UserError for an image that is no file.
    """
    if isinstance(element, Text):
        return f"text:{element.text}@{element.weight!r}"
    if element.path is None:
        raise UserError("an image that is no file has no command-line form")
    return f"image:{element.path}@{element.weight!r}"


def _strip_prefix(part: str) -> tuple[str | None, str]:
    for kind in ("text", "image"):
        if part.startswith(f"{kind}:"):
            return kind, part[len(kind) + 1 :]
    return None, part


def _is_image_path(body: str) -> bool:
    try:
        return body.lower().endswith(IMAGE_EXTENSIONS) or os.path.isfile(body)
    except ValueError:  # a NUL in the string
        return False


def _parse_weight(tail: str, part: str) -> float:
    try:
        value = float(tail)
    except ValueError:
        raise UserError(
            f"the weight {tail!r} of {part!r} is not a number; a weight is a number of at least 0, "
            f"and a text that ends so needs one more suffix, as in '{part}@1'"
        ) from None
    return check_weight(value, f"{part!r}")
