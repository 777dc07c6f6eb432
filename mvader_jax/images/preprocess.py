"""Pictures as the networks read them: CLIP's pixels, the VAE's pixels, weights of a picture's regions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import PIL.Image
from jaxtyping import Float, Float32, Float64, UInt8

from mvader_jax.images.pixels import to_float
from mvader_jax.images.read import load_image
from mvader_jax.prompt.checks import Box
from mvader_jax.prompt.elements import ImageSource

#: Mean and standard deviation of CLIP's preprocessing (openai/CLIP clip/clip.py).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
#: Sides in a larger ratio are cropped before resizing, so that a thin strip cannot ask for gigabytes.
_MAX_ASPECT = 32


def clip_preprocess(source: ImageSource, size: int) -> Float32[np.ndarray, "{size} {size} 3"]:
    """float32 [size, size, 3] as CLIP's image encoder reads it: short side to `size` (bicubic), centre
    crop, CLIP's mean and deviation.

    The arithmetic is that of openai/CLIP clip/clip.py `_transform` on torchvision, to the pixel; the one
    difference is that palettes and alpha are resolved before resizing, not after. Raises as `load_image`.
    """
    image = _limit_aspect(load_image(source))
    width, height = image.size
    short = min(width, height)
    # torchvision truncates the long side where it could round.
    new = (int(size * width / short), int(size * height / short))
    # As rows of size * 3 numbers: NumPy is ten times slower where the last axis is 3 long.
    pixels = _resize_and_crop(image, new, (size, size)).reshape(size, -1).astype(np.float32)
    pixels /= np.float32(255.0)
    pixels -= np.tile(np.asarray(CLIP_MEAN, np.float32), size)
    pixels /= np.tile(np.asarray(CLIP_STD, np.float32), size)
    return pixels.reshape(size, size, 3)


def to_vae_pixels(source: ImageSource, height: int, width: int) -> Float32[np.ndarray, "{height} {width} 3"]:
    """float32 [height, width, 3] in [-1, 1]: resized (bicubic) to cover the target, centre crop.

    Raises as `load_image`.
    """
    image = _limit_aspect(load_image(source))
    scale = max(height / image.height, width / image.width)
    new = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    return to_float(_resize_and_crop(image, new, (width, height)))


def _limit_aspect(image: PIL.Image.Image) -> PIL.Image.Image:
    width, height = image.size
    keep_w, keep_h = min(width, _MAX_ASPECT * height), min(height, _MAX_ASPECT * width)
    if (keep_w, keep_h) == (width, height):
        return image
    left, top = (width - keep_w) // 2, (height - keep_h) // 2
    return image.crop((left, top, left + keep_w, top + keep_h))


def _resize_and_crop(
    image: PIL.Image.Image, new: tuple[int, int], target: tuple[int, int]
) -> UInt8[np.ndarray, "{target[1]} {target[0]} 3"]:
    """uint8 [h, w, 3] of a `target` (w, h) cut from the centre of the image resized to `new` (w, h)."""
    if image.size != new:
        image = image.resize(new, PIL.Image.Resampling.BICUBIC)
    left, top = (round((new[i] - target[i]) / 2.0) for i in (0, 1))
    return np.asarray(image)[top : top + target[1], left : left + target[0]]


def region_weights(
    regions: Sequence[tuple[Box | Float32[np.ndarray, "_ _"], float]],
    grid: int,
    size: tuple[int, int] = (1, 1),
) -> Float64[np.ndarray, " {grid*grid}"]:
    """float64 [grid * grid], row-major: the factor of every image token under `regions` (see `prompt.Image`).

    size: width and height of the picture; the grid lies on its central square, as CLIP crops it.
    """
    weights = np.ones((grid, grid))
    short = min(size)
    # Edges of the grid's cells as fractions of the whole picture's width and height.
    edges_x, edges_y = (0.5 + (np.arange(grid + 1) / grid - 0.5) * (short / side) for side in size)
    for region, factor in regions:
        if isinstance(region, tuple):
            left, top, right, bottom = region
            rows = _overlap(edges_y, np.array([top, bottom]))
            columns = _overlap(edges_x, np.array([left, right]))
            cover = rows @ columns.T
        else:
            height, width = region.shape
            rows = _overlap(edges_y, np.linspace(0, 1, height + 1))
            columns = _overlap(edges_x, np.linspace(0, 1, width + 1))
            cover = rows @ region.astype(np.float64) @ columns.T
        # Rounded, so that a cell wholly inside takes the factor exactly (and 0 stays 0).
        weights *= 1.0 + np.clip(cover.round(6), 0.0, 1.0) * (factor - 1.0)
    return weights.reshape(-1)


def _overlap(cells: Float[np.ndarray, " C"], parts: Float[np.ndarray, " P"]) -> Float[np.ndarray, "C-1 P-1"]:
    """[cells, parts]: the fraction of each cell that each part covers, both given by their edges."""
    low = np.maximum(cells[:-1, None], parts[None, :-1])
    high = np.minimum(cells[1:, None], parts[None, 1:])
    return np.maximum(high - low, 0.0) / (cells[1:] - cells[:-1])[:, None]
