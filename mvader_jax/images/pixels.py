"""Pixels between files and networks: uint8 of 0 to 255, floats of -1 to 1. The one place for either way.

NumPy's arrays and JAX's alike, on the host or within a program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from jaxtyping import Float, Float32, UInt8

if TYPE_CHECKING:
    import jax

    Pixels = TypeVar("Pixels", np.ndarray, jax.Array)
else:  # JAX is not imported for a name
    Pixels = TypeVar("Pixels")


def to_float(pixels: UInt8[Pixels, "*shape"]) -> Float32[Pixels, "*shape"]:
    """uint8 -> float32 in [-1, 1], any shape."""
    return pixels.astype("float32") / 127.5 - 1.0


def to_uint8(pixels: Float[Pixels, "*shape"]) -> UInt8[Pixels, "*shape"]:
    """Floats in [-1, 1] -> uint8, any shape: the nearest (halves to the even one); values beyond are clipped.

    Raises ValueError for NaN on the host, which would otherwise be written as a black picture.
    """
    pixels = pixels.astype("float32")
    if isinstance(pixels, np.ndarray) and np.isnan(pixels).any():
        raise ValueError("the pixels hold NaN")
    return ((pixels.clip(-1.0, 1.0) + 1.0) * 127.5).round().astype("uint8")
