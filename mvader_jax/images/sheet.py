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

    from mvader_jax.images.letters import Letters

#: The side, in pixels, that small pictures are enlarged to, so that they and their labels can be read.
LEGIBLE = 128
#: Between a picture and its label, in pixels.
_INDENT = 2


def grid(
    images: Sequence[Any], columns: int | None = None, labels: Sequence[str] | None = None, *, gap: int = 2
) -> PIL.Image.Image:
    """The images row by row on white, each centred in a cell of the largest's size.

    Small ones are enlarged by whole factors, each pixel a square: to the largest's size, and to 128 pixels. columns:
    default, about as many as rows. labels: a line or more under each image, wrapped to its width; '' for none.
    gap: pixels between cells and around. Gives a Notice of characters that no font here has. Raises UserError if
    there are no images or not one label an image, and for arguments of another type.
    """
    import PIL.Image
    import PIL.ImageDraw

    from mvader_jax.images.letters import check_letters

    for name, given, of in (("images", images, "pictures"), ("labels", labels or (), "strings")):
        if isinstance(given, (str, bytes)) or not hasattr(given, "__iter__"):
            raise UserError(f"{name} is {given!r:.80}; expected a list of {of}")
    columns, gap = convert(PositiveInt | None, columns, "columns"), convert(NonNegativeInt, gap, "gap")
    pictures = [load_image(image) for image in images]
    if not pictures:
        raise UserError("a grid needs at least one image")
    if labels is not None and len(labels) != len(pictures):
        raise UserError(f"a grid of {len(pictures)} images has {len(labels)} labels; expected one an image")
    side = max(LEGIBLE, *(max(picture.size) for picture in pictures))
    pictures = [enlarged(picture, side) for picture in pictures]
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    letters = letters_beside(width)
    check_letters(labels or ())
    texts = [letters.wrap(label, width - 2 * _INDENT) for label in labels or [""] * len(pictures)]
    rows = [range(first, min(first + columns, len(pictures))) for first in range(0, len(pictures), columns)]
    lines = [max(len(texts[i]) for i in row) for row in rows]
    below = [gap + (count * letters.height + 2 * _INDENT if count else 0) for count in lines]
    sheet = PIL.Image.new(
        "RGB", (columns * (width + gap) + gap, gap + len(rows) * height + sum(below)), (255, 255, 255)
    )
    pen = PIL.ImageDraw.Draw(sheet)
    y = gap
    for row, space in zip(rows, below, strict=True):
        for column, i in enumerate(row):
            x, picture = gap + column * (width + gap), pictures[i]
            sheet.paste(picture, (x + (width - picture.width) // 2, y + (height - picture.height) // 2))
            for n, line in enumerate(texts[i]):
                letters.draw(pen, (x + _INDENT, y + height + _INDENT + n * letters.height), line)
        y += height + space
    return sheet


def letters_beside(width: int) -> Letters:
    """The letters of labels of pictures so wide, in pixels."""
    from mvader_jax.images.letters import Letters

    return Letters(max(12, min(24, width // 20)))


def enlarged(picture: PIL.Image.Image, side: int) -> PIL.Image.Image:
    """A picture by the greatest whole factor at which it fits into a square of this side, in pixels."""
    import PIL.Image

    times = side // max(picture.size)
    if times < 2:
        return picture
    return picture.resize((picture.width * times, picture.height * times), PIL.Image.Resampling.NEAREST)
