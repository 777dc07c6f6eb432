"""Sheets of pictures: small ones are enlarged by whole factors, labels are whole."""

from __future__ import annotations

import numpy as np
import pytest

from mvader_jax.errors import UserError
from mvader_jax.images.read import load_image
from mvader_jax.images.sheet import enlarged, grid, letters_beside


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8)


def test_small_pictures_are_enlarged_by_whole_factors() -> None:
    small = [picture(64, 64, seed) for seed in range(4)]
    sheet = np.asarray(grid(small))
    assert sheet.shape == (2 * 130 + 2, 2 * 130 + 2, 3)
    for i, one in enumerate(small):
        y, x = 2 + i // 2 * 130, 2 + i % 2 * 130
        np.testing.assert_array_equal(sheet[y : y + 128, x : x + 128], one.repeat(2, 0).repeat(2, 1))


def test_pictures_of_several_sizes_fill_their_cells() -> None:
    wide, small = picture(300, 512), picture(64, 64, 1)
    sheet = np.asarray(grid([wide, small], columns=1))
    assert sheet.shape == (2 + 2 * 514, 516, 3)
    np.testing.assert_array_equal(sheet[108:408, 2:514], wide)
    np.testing.assert_array_equal(sheet[516:1028, 2:514], small.repeat(8, 0).repeat(8, 1))
    assert enlarged(load_image(picture(96, 80)), 128).size == (80, 96)


def test_labels_are_whole_and_within_their_cell() -> None:
    words = "a large solid red circle on the left beside a very_long_name_without_any_blank on white"
    black = np.zeros((64, 64, 3), np.uint8)
    sheet = np.asarray(grid([black, black, black], columns=2, labels=[words, "short", ""], gap=4))
    lines = letters_beside(128).wrap(words, 124)
    assert len(lines) > 3 and all(letters_beside(128).length(line) <= 124 for line in lines)
    first = 4 + 128 + len(lines) * letters_beside(128).height + 4 + 4
    # Below the first row's labels comes the second row, which has none and needs no room for them.
    assert sheet.shape == (first + 128 + 4, 2 * 132 + 4, 3)
    assert (sheet[:first, :4] == 255).all() and (sheet[132:first, 132:136] == 255).all()
    assert (sheet[first : first + 128, 4:132] == 0).all()


def test_mistakes() -> None:
    with pytest.raises(UserError, match="at least one"):
        grid([])
    with pytest.raises(UserError, match="2 images has 1 labels"):
        grid([picture(8, 8)] * 2, labels=["a"])
