"""Prompts and what was drawn of them, laid out: a row of elements and pictures, or a figure of such rows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import PIL.Image
import PIL.ImageDraw
import PIL.ImageOps

from mvader_jax.images.letters import Letters, check_letters
from mvader_jax.images.read import load_image
from mvader_jax.images.sheet import LEGIBLE, grid
from mvader_jax.prompt.elements import Element, Text

if TYPE_CHECKING:
    from mvader_jax.prompt.elements import ImageSource

#: Between the pictures of a sheet, in pixels.
_GAP = 6
_WHITE, _FRAME = (255, 255, 255), (200, 200, 200)


@dataclasses.dataclass(frozen=True)
class Cell:
    """One place of a sheet: a picture, a text on a card, or nothing; and the label below it. A text without a label
    tells of its row.

    given: an input, which is shown at most as large as what was drawn.
    """

    picture: ImageSource | None = None
    label: str = ""
    text: str = ""
    given: bool = False


def setting(name: str, value: float) -> str:
    """'θ = 0.2', which no line break parts."""
    return f"{name} = {value:g}".replace(" ", "\N{NO-BREAK SPACE}")


def weighted(name: str, weight: float) -> str:
    """'image, θ = 0.2'; the name alone where the weight is 1."""
    return name if weight == 1.0 else f"{name}, {setting('θ', weight)}"


def names(elements: Sequence[Element]) -> list[str]:
    """What each element is called: 'text', 'image'; 'image 1' and 'image 2' where there are two."""
    kinds = ["text" if isinstance(one, Text) else "image" for one in elements]
    return [
        kind if kinds.count(kind) == 1 else f"{kind} {kinds[: i + 1].count(kind)}"
        for i, kind in enumerate(kinds)
    ]


def shown(elements: Sequence[Element]) -> list[Cell]:
    """A cell for each element of a prompt, labelled with its name and weight."""
    cells = []
    for one, name in zip(elements, names(elements), strict=True):
        label = weighted(name, one.weight)
        if isinstance(one, Text):
            cells.append(Cell(text=one.text, label=label))
        else:
            cells.append(Cell(one.image, label, given=True))
    return cells


def sheet(rows: Sequence[Sequence[Cell]], title: str = "") -> PIL.Image.Image:
    """The rows below each other under a title, shorter ones filled up with nothing.

    Small pictures are enlarged by whole factors, inputs that are larger than all that was drawn are made smaller.
    """
    columns = max(map(len, rows))
    cells = [cell for row in rows for cell in (*row, *[Cell()] * (columns - len(row)))]
    side = max([LEGIBLE, *_sides(cell for cell in cells if not cell.given)])
    laid = [_card(cell, side) if cell.picture is None else _fitted(cell.picture, side) for cell in cells]
    below = grid(laid, columns, [cell.label for cell in cells], gap=_GAP)
    if not title:
        return below
    letters = Letters(20)
    check_letters([title])
    lines = letters.wrap(title, below.width - 2 * _GAP)
    height = _GAP + len(lines) * letters.height + _GAP
    whole = PIL.Image.new("RGB", (below.width, height + below.height), _WHITE)
    pen = PIL.ImageDraw.Draw(whole)
    for n, line in enumerate(lines):
        letters.draw(pen, (_GAP, _GAP + n * letters.height), line)
    whole.paste(below, (0, height))
    return whole


def _sides(cells: Iterable[Cell]) -> list[int]:
    return [max(load_image(cell.picture).size) for cell in cells if cell.picture is not None]


def _fitted(picture: Any, side: int) -> PIL.Image.Image:
    image = load_image(picture)
    if max(image.size) <= side:
        return image
    return PIL.ImageOps.contain(image, (side, side), PIL.Image.Resampling.LANCZOS)


def _card(cell: Cell, side: int) -> PIL.Image.Image:
    """A text as a picture of its own, as large as fits without a broken word, framed where it is an element; nothing
    without a text."""
    card = PIL.Image.new("RGB", (side, side), _WHITE)
    if not cell.text:
        return card
    check_letters([cell.text])
    pen = PIL.ImageDraw.Draw(card)
    if cell.label:
        pen.rectangle((0, 0, side - 1, side - 1), outline=_FRAME)
    for size in range(max(14, side // 8), 7, -1):
        letters = Letters(size)
        lines = letters.wrap(cell.text, 0.9 * side)
        whole = all(letters.length(word) <= 0.9 * side for word in cell.text.split())
        if whole and len(lines) * letters.height <= 0.9 * side:
            break
    top = (side - len(lines) * letters.height) / 2
    for n, line in enumerate(lines):
        letters.draw(pen, ((side - letters.length(line)) / 2, top + n * letters.height), line)
    return card
