"""Sheets of prompts and what was drawn of them: every label says what it belongs to."""

from __future__ import annotations

import numpy as np
import PIL.Image

from mvader_jax.paper.layout import Cell, names, setting, sheet, shown, weighted
from mvader_jax.prompt.elements import Image, Text

SMALL = np.full((64, 64, 3), 99, np.uint8)


def test_elements_are_told_apart() -> None:
    two = [Text("a"), Image(SMALL), Image(SMALL, 0.3)]
    assert names(two) == ["text", "image 1", "image 2"]
    assert names([Text("a"), Text("b"), Image(SMALL)]) == ["text 1", "text 2", "image"]
    assert weighted("image", 1.0) == "image" and weighted("image", 0.03) == f"image, {setting('θ', 0.03)}"
    assert [cell.label for cell in shown(two)] == ["text", "image 1", "image 2, θ\u00a0=\u00a00.3"]
    assert shown(two)[0].text == "a" and not shown(two)[0].given and shown(two)[1].given


def test_a_sheet_is_as_large_as_what_was_drawn() -> None:
    photo = Image(PIL.Image.new("RGB", (3000, 2000), "red"))
    laid = sheet(
        [[*shown([Text("a long text on a card " * 9), photo]), Cell(SMALL, "1")], [Cell(SMALL, "2")]]
    )
    assert laid.width == 3 * (128 + 6) + 6 and laid.height < 2 * (128 + 30)
    pixels = np.asarray(laid)
    # The photo keeps its shape: 128 x 85 in the middle of its cell.
    assert (pixels[6 + 64, 140:268] == (255, 0, 0)).all() and (pixels[6 + 10, 140:268] == 255).all()
    # The drawn one is enlarged by two.
    assert (pixels[6:134, 274:402] == 99).all()


def test_words_of_a_card_are_not_broken() -> None:
    def lines(text: str) -> int:
        ink = (np.asarray(sheet([[Cell(text=text)]])) < 128).any((1, 2))
        return int(np.sum(ink[1:] & ~ink[:-1]))

    assert lines("oberleitungsbus") == lines("mmm") == 1
    assert lines("mmmmmmmmm mmmmmmmmmmmmmm") == 2


def test_a_title_is_wrapped_above() -> None:
    bare = sheet([[Cell(SMALL)]])
    assert sheet([[Cell(SMALL)]], "a title of more than one line").height > bare.height + 2 * 25
    np.testing.assert_array_equal(np.asarray(sheet([[Cell(SMALL)]], "x"))[-bare.height :], np.asarray(bare))


def test_a_row_is_told_without_a_frame() -> None:
    element, row = (np.asarray(sheet([[Cell(text="x", label=label), Cell(SMALL)]])) for label in ("text", ""))
    assert (element[6, 6:134] == 200).all() and (row[6, 6:134] == 255).all()
    assert (row[6:134, 6:134] < 128).any()
