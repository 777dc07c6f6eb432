"""Pixels between people, files and networks. The one place for every way between them.

uint8 of 0 to 255: files'. Floats of 0 to 1: people's, the convention of PIL, torch and scikit-image; what they give
and what they get. Floats of -1 to 1: the networks' own, between functions of this package alone.
NumPy's arrays and JAX's alike, on the host or within a program.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import numpy as np
from jaxtyping import Float, Float32, UInt8

from mvader_jax.errors import UserError

if TYPE_CHECKING:
    import jax

    Pixels = TypeVar("Pixels", np.ndarray, jax.Array)
else:  # JAX is not imported for a name
    Pixels = TypeVar("Pixels")

#: How far a person's floats may lie outside of [0, 1]: half precision and resizing lead so far.
_SLACK = 1e-3
#: Half of what a file's pixels reach.
HALF = 127.5


def to_float(pixels: UInt8[Pixels, "*shape"]) -> Float32[Pixels, "*shape"]:
    """uint8 -> float32 in [-1, 1], any shape."""
    return pixels.astype("float32") / 127.5 - 1.0


def centred(pixels: Float32[Pixels, "*shape"], middle: float = HALF) -> Float32[Pixels, "*shape"]:
    """Floats of 0 to 255, which resizing makes of uint8 -> [-1, 1], any shape. middle: what becomes 0; with 128, as some
    networks of TensorFlow read pixels, 1 is not reached."""
    return (pixels - middle) / middle


def to_uint8(pixels: Float[Pixels, "*shape"]) -> UInt8[Pixels, "*shape"]:
    """Floats in [-1, 1] -> uint8, any shape: the nearest (halves to the even one); values beyond are clipped.

    Raises ValueError for NaN on the host, which would otherwise be written as a black picture.
    """
    pixels = _without_nan(pixels.astype("float32"))
    return ((pixels.clip(-1.0, 1.0) + 1.0) * 127.5).round().astype("uint8")


def check_pixels(pixels: np.ndarray) -> None:
    """Raises UserError unless they are a person's: uint8, or floats in [0, 1]."""
    if pixels.dtype == np.uint8:
        return
    # ml_dtypes' bfloat16 is of kind V.
    if pixels.dtype.kind not in "fV":
        raise UserError(
            f"an image array has type {pixels.dtype}; accepted are uint8 of 0 to 255 and floats of 0 to 1"
        )
    values = pixels.astype(np.float32)
    if not np.all((values >= -_SLACK) & (values <= 1 + _SLACK)):
        raise UserError(
            f"an image array of floats goes from {values.min():g} to {values.max():g}; accepted are floats of 0 to 1, "
            "which (x + 1) / 2 makes of -1 to 1 and x / 255 of 0 to 255, and uint8"
        )


def from_unit(pixels: Float[Pixels, "*shape"]) -> Float32[Pixels, "*shape"]:
    """A person's floats in [0, 1] -> a network's in [-1, 1], any shape."""
    return pixels.astype("float32").clip(0.0, 1.0) * 2.0 - 1.0


def to_unit(pixels: Float[Pixels, "*shape"]) -> Float32[Pixels, "*shape"]:
    """A network's floats in [-1, 1] -> a person's in [0, 1], any shape; values beyond are clipped."""
    return (pixels.astype("float32").clip(-1.0, 1.0) + 1.0) * 0.5


def unit_to_uint8(pixels: Float[Pixels, "*shape"]) -> UInt8[Pixels, "*shape"]:
    """A person's floats in [0, 1] -> uint8, any shape: as `to_uint8`."""
    return (_without_nan(pixels.astype("float32")).clip(0.0, 1.0) * 255.0).round().astype("uint8")


def _without_nan(pixels: Pixels) -> Pixels:
    if isinstance(pixels, np.ndarray) and np.isnan(pixels).any():
        raise ValueError("the pixels hold NaN")
    return pixels
