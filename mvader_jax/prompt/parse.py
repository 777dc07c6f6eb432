"""A prompt's elements as arguments of a command line."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from typing import Any

from mvader_jax.errors import UserError
from mvader_jax.images.names import check_no_url, names_picture
from mvader_jax.images.read import load_image
from mvader_jax.prompt.checks import check_weight
from mvader_jax.prompt.elements import Element, Image, Text


def parse_part(part: str) -> Element:
    """An element from a command-line argument: a text or an image's path, with an optional weight `@0.3`.

    What follows the last '@' is the weight if it holds neither blanks nor a path separator. An existing
    file, or a string that ends as pictures' names do, is an image; `text:` and `image:` in front
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
    check_no_url(body)
    if not os.path.exists(body):
        raise UserError(f"the image {body!r} does not exist{'' if kind == 'image' else _hint(body)}")
    return Image(body, weight)


def read_part(part: str) -> Element:
    """`parse_part`. Raises UserError where the image cannot be read, too."""
    element = parse_part(part)
    if isinstance(element, Text):
        return element
    try:
        load_image(element.image)
    except UserError as error:
        hint = "" if part.startswith("image:") else _hint(str(element.path))
        raise UserError(f"{error}{hint}") from None
    return element


def weigh_within(
    parts: Sequence[Element], negative: Sequence[Element], spans: Sequence[str], regions: Sequence[str]
) -> tuple[tuple[Element, ...], tuple[Element, ...]]:
    """The parts and the negative ones with weights of words and regions: "1:red@2" weighs "red" in the first part,
    "2:mask.png@0.5" and "2:0,0,0.5,1@0" a mask and a box (left, top, right, bottom) of the second; "n1:" is the first
    negative one. Raises UserError for anything else."""
    sides = {"": list(parts), "n": list(negative)}
    for flag, kind, given in (("span", Text, spans), ("region", Image, regions)):
        for argument in given:
            found = _WITHIN.fullmatch(argument)
            if found is None:
                raise UserError(
                    f"--{flag} is {argument!r}; expected NUMBER:WHAT@FACTOR, as in "
                    + ("1:red@2" if flag == "span" else "2:mask.png@2 or 2:0,0,0.5,1@2")
                )
            elements, number = sides[found[1]], int(found[2]) - 1
            if number not in range(len(elements)) or not isinstance(elements[number], kind):
                what = "text" if kind is Text else "image"
                raise UserError(
                    f"--{flag} {argument!r}: part {found[1]}{found[2]} of the prompt is no {what}"
                )
            elements[number] = _within(elements[number], found[3], _parse_weight(found[4], argument))
    return tuple(sides[""]), tuple(sides["n"])


#: n for the negative prompt, the number of a part, what of it, and the factor.
_WITHIN = re.compile(r"(n?)(\d{1,6}):(.+)@([^@]+)", re.DOTALL)
_BOX = re.compile(r"[^,]*(,[^,]*){3}")


def _within(element: Element, what: str, factor: float) -> Element:
    if isinstance(element, Text):
        return dataclasses.replace(element, spans=(*element.span_weights, (what, factor)))
    where: Any = what
    if not os.path.exists(what) and _BOX.fullmatch(what):
        try:
            where = tuple(float(number) for number in what.split(","))
        except ValueError:
            raise UserError(
                f"the region {what!r} is no box; expected LEFT,TOP,RIGHT,BOTTOM of 0 to 1"
            ) from None
    return dataclasses.replace(element, regions=[*element.checked_regions, (where, factor)])


def loose_words(parts: Sequence[str]) -> str:
    """A sentence where neighbours are single words, as the shell makes them of a text without quotation marks; else ''.

    A prefix (`text:`) or a weight says that a part is meant alone.
    """
    run: list[str] = []
    for part in [*parts, ""]:
        if part and not any(c.isspace() or c == "@" for c in part) and isinstance(_lone(part), Text):
            run.append(part)
        elif len(run) > 1:
            break
        else:
            run = []
    if len(run) < 2:
        return ""
    return (
        f"{len(run)} parts of the prompt are single words, each a text of its own; if they are one text, quote it: "
        f'"{" ".join(run)}"'
    )


def _lone(part: str) -> Element | None:
    kind, body = _strip_prefix(part)
    return None if kind or _is_image_path(body) else Text(body)


def _hint(body: str) -> str:
    return f"; write 'text:{body}' if it is meant as text"


def _strip_prefix(part: str) -> tuple[str | None, str]:
    for kind in ("text", "image"):
        if part.startswith(f"{kind}:"):
            return kind, part[len(kind) + 1 :]
    return None, part


def _is_image_path(body: str) -> bool:
    try:
        return names_picture(body) or os.path.isfile(body)
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
