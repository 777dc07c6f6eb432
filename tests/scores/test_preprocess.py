"""Ways to Inception's pixels, on odd sizes."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch

from mvader_jax.scores.preprocess import RESIZES


@pytest.mark.parametrize("size", [(1, 1), (37, 53), (299, 299), (300, 298), (640, 427)])
def test_pytorch_fids_is_interpolate(size: tuple[int, int]) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    theirs = torch.nn.functional.interpolate(
        torch.tensor(picture).permute(2, 0, 1)[None] / 255,
        size=(299, 299),
        mode="bilinear",
        align_corners=False,
    )
    expected = (2 * theirs - 1)[0].permute(1, 2, 0).numpy()
    found = RESIZES["pytorch-fid"].pixels(picture, 299)
    # Its places are reckoned in float32 there, in an order of its own: to a hundredth of a level.
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert np.linalg.norm(found - expected) <= 5e-6 * np.linalg.norm(expected)


def test_tensorflows_takes_pixels_for_points() -> None:
    """2 to 4: a number at 0, between, at 1, and beyond the last, which stays the last (its source's own definition)."""
    picture = np.array([[0, 128]], np.uint8)[..., None].repeat(3, axis=2).repeat(2, axis=0)
    found = RESIZES["tensorflow"].pixels(picture, 4)[0, :, 0]
    np.testing.assert_allclose(found * 128 + 128, [0, 64, 128, 128])
    # As pytorch-fid has them, pixels are squares about their middles.
    halves = RESIZES["pytorch-fid"].pixels(picture, 4)[0, :, 0]
    np.testing.assert_allclose(halves * 127.5 + 127.5, [0, 32, 96, 128], atol=1e-4)


def test_clean_fids_is_pillows_by_the_channel_unrounded() -> None:
    picture = np.random.default_rng(1).integers(0, 256, (431, 277, 3), np.uint8)
    for channel in range(3):
        whole = PIL.Image.fromarray(picture[..., channel]).convert("F")
        expected = np.asarray(whole.resize((299, 299), resample=PIL.Image.BICUBIC))
        found = RESIZES["clean-fid"].pixels(picture, 299)[..., channel]
        np.testing.assert_allclose(found, (expected - 128) / 128, atol=1e-6)
    assert len(np.unique(found)) > 256
