"""How a picture becomes Inception's 299 x 299 pixels. FID depends on it more than on most models that it compares."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable

import numpy as np
import PIL.Image
from jaxtyping import Float32, UInt8

from mvader_jax.images.pixels import HALF, centred


@dataclasses.dataclass(frozen=True)
class Resize:
    """resized: uint8 [H, W, 3] -> float32 [S, S, 3] of 0 to 255; middle: what becomes 0, as `centred` has it."""

    name: str
    resized: Callable[[UInt8[np.ndarray, "H W 3"], int], Float32[np.ndarray, "S S 3"]]
    middle: float = HALF

    def pixels(self, picture: UInt8[np.ndarray, "H W 3"], size: int) -> Float32[np.ndarray, "S S 3"]:
        """As the network reads them."""
        return centred(self.resized(picture, size), self.middle)


@functools.lru_cache(maxsize=256)
def _places(length: int, size: int, halves: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(lower, upper, share of the upper) for `size` numbers out of `length`.

    halves: pixels are squares about their middles (PyTorch's align_corners=False); else they are points, and the last
    ones are never reached (TensorFlow 1's resize_bilinear).
    """
    # In float32, as both libraries reckon.
    step, at = np.float32(length / size), np.arange(size, dtype=np.float32)
    at = np.maximum((at + np.float32(0.5)) * step - np.float32(0.5), np.float32(0)) if halves else at * step
    lower = np.minimum(at.astype(np.int64), length - 1)
    return lower, np.minimum(lower + 1, length - 1), at - lower.astype(np.float32)


def _bilinear(
    picture: UInt8[np.ndarray, "H W 3"], size: int, *, halves: bool
) -> Float32[np.ndarray, "S S 3"]:
    """Of four pixels each, whatever the scale: what is made smaller is not averaged first."""
    height, width = picture.shape[:2]
    top, bottom, down = _places(height, size, halves)
    left, right, across = _places(width, size, halves)
    # Each row that is needed once, and as rows of numbers: NumPy is several times slower where the last axis is 3 long.
    needed, which = np.unique(np.concatenate([top, bottom]), return_inverse=True)
    rows = picture[needed].reshape(len(needed), -1).astype(np.float32)
    before, after = (np.take(rows, _of_channels(place), axis=1) for place in (left, right))
    upper, lower = np.split(_mixed(before, after, np.repeat(across, 3))[which], 2)
    return _mixed(upper, lower, down[:, None]).reshape(size, size, 3)


def _mixed(a: np.ndarray, b: np.ndarray, share: np.ndarray) -> np.ndarray:
    """a (1 - share) + b share, in place of a."""
    a *= 1 - share
    b *= share
    a += b
    return a


def _of_channels(pixels: np.ndarray) -> np.ndarray:
    """Where the numbers of a row's pixels are."""
    return (3 * pixels[:, None] + np.arange(3)).ravel()


def _bicubic(picture: UInt8[np.ndarray, "H W 3"], size: int) -> Float32[np.ndarray, "S S 3"]:
    """Pillow's, a channel at a time in floats, averaged where it is made smaller, and neither rounded nor clipped."""
    channels = [
        PIL.Image.fromarray(np.ascontiguousarray(picture[..., i], np.float32)).resize(
            (size, size), PIL.Image.Resampling.BICUBIC
        )
        for i in range(3)
    ]
    return np.stack([np.asarray(channel) for channel in channels], axis=-1)


#: pytorch-fid's `F.interpolate(mode="bilinear", align_corners=False)`; the TensorFlow 1 original's `resize_bilinear`;
#: clean-fid's `clean` mode. The last two feed (x - 128) / 128 to the network, the first -1 to 1.
RESIZES = {
    resize.name: resize
    for resize in (
        Resize("pytorch-fid", functools.partial(_bilinear, halves=True)),
        Resize("tensorflow", functools.partial(_bilinear, halves=False), 128.0),
        Resize("clean-fid", _bicubic, 128.0),
    )
}
