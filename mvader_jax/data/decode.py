"""From a record as it is stored to one as it is trained on: decoded, cropped, of one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mvader_jax import images
from mvader_jax.data.config import DataConfig
from mvader_jax.data.reader import Record


def decode(record: Record, config: DataConfig, rng: np.random.Generator) -> Record:
    """The record with "image" as uint8 [H, W, 3] of the config's size; others pass through.

    Raises UserError for an image that cannot be read.
    """
    if "image" not in record:
        return record
    side = config.image_size
    pixels = record["image"]
    if not (isinstance(pixels, np.ndarray) and pixels.shape == (side, side, 3)):
        pixels = crop(pixels, side, side, config, rng)
    if config.flip and rng.random() < config.flip:
        pixels = pixels[:, ::-1]
    return {**record, "image": pixels}


def crop(source: Any, height: int, width: int, config: DataConfig, rng: np.random.Generator) -> np.ndarray:
    """uint8 [height, width, 3]: the short side resized to fit, then the centre or a random part."""
    return images.to_uint8(images.to_vae_pixels(source, height, width))


def to_float(pixels: np.ndarray) -> np.ndarray:
    """float32 in [-1, 1] from uint8."""
    return _LEVELS[pixels]


_LEVELS = (np.arange(256) / 127.5 - 1.0).astype(np.float32)


def encoder_pixels(pictures: Sequence[np.ndarray], size: int) -> np.ndarray:
    """float32 [N, size, size, 3] with CLIP's preprocessing."""
    out = np.zeros((len(pictures), size, size, 3), np.float32)
    for row, picture in enumerate(pictures):
        out[row] = images.clip_preprocess(picture, size)
    return out
