"""Pictures laid out row by row, with labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mvader_jax.bounds import NonNegativeInt, PositiveInt
from mvader_jax.errors import UserError
from mvader_jax.images.read import load_image
from mvader_jax.settings import convert

if TYPE_CHECKING:
    import PIL.Image


def grid(
    images: Sequence[Any], columns: int | None = None, labels: Sequence[str] | None = None, *, gap: int = 2
) -> PIL.Image.Image:
    """The images row by row on white, each centred in a cell of the largest's size.

    columns: default, about as many as rows. labels: a line or more under each image, wrapped to its
    width; '' for none. gap: pixels between cells and around.
    Raises UserError if there are no images or not one label an image, and for arguments of another type.
    """
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    for name, given, of in (("images", images, "pictures"), ("labels", labels or (), "strings")):
        if isinstance(given, (str, bytes)) or not hasattr(given, "__iter__"):
            raise UserError(f"{name} is {given!r:.80}; expected a list of {of}")
    columns, gap = convert(PositiveInt | None, columns, "columns"), convert(NonNegativeInt, gap, "gap")
    pictures = [load_image(image) for image in images]
    if not pictures:
        raise UserError("a grid needs at least one image")
    if labels is not None and len(labels) != len(pictures):
        raise UserError(f"a grid of {len(pictures)} images has {len(labels)} labels; expected one an image")
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    rows = math.ceil(len(pictures) / columns)
    cell_w, cell_h = max(p.width for p in pictures), max(p.height for p in pictures)
    font = PIL.ImageFont.load_default(max(10, min(20, cell_w // 16)))
    pen = PIL.ImageDraw.Draw(PIL.Image.new("RGB", (1, 1)))
    texts = [_wrap(label, cell_w, lambda line: pen.textlength(line, font=font)) for label in labels or ()]
    line_height = math.ceil(pen.textbbox((0, 0), "Äg|", font=font)[3]) + 2
    label_h = max((text.count("\n") + 1 for text in texts if text), default=0) * line_height
    step_w, step_h = cell_w + gap, cell_h + label_h + gap
    sheet = PIL.Image.new("RGB", (columns * step_w + gap, rows * step_h + gap), (255, 255, 255))
    pen = PIL.ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        x, y = gap + i % columns * step_w, gap + i // columns * step_h
        sheet.paste(picture, (x + (cell_w - picture.width) // 2, y + (cell_h - picture.height) // 2))
        for n, line in enumerate(texts[i].split("\n") if texts else ()):
            pen.text((x, y + cell_h + n * line_height), line, fill=(0, 0, 0), font=font)
    return sheet


def _wrap(text: str, width: int, length: Any) -> str:
    """`text` with line breaks so that each line is at most `width` long where its words allow it."""
    lines: list[str] = []
    for word in text.split():
        if lines and length(f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(word)
    return "\n".join(lines)
