"""From a record as it is stored to one as it is trained on: decoded, cropped, of one size."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from mvader_jax.data.config import DataConfig
from mvader_jax.data.order import Record
from mvader_jax.images.preprocess import clip_preprocess
from mvader_jax.images.read import MAX_PIXELS, load_image
from mvader_jax.prompt.elements import Element, Image, Prompt

Size = tuple[int, int]


def decode(record: Record, config: DataConfig, rng: np.random.Generator | None, size: Size) -> Record:
    """The record with "image" as uint8 [height, width, 3], and with the pictures of "prompt" read.

    rng: places random crops and flips; None where the config asks for neither. size: (height, width).
    Raises UserError for a picture that cannot be read.
    """
    if "prompt" in record:
        record = {**record, "prompt": _with_pictures(record["prompt"])}
    if "image" not in record:
        return record
    pixels = crop(record["image"], size, rng if config.crop == "random" else None)
    if rng is not None and config.flip and rng.random() < config.flip:
        pixels = pixels[:, ::-1]
    return {**record, "image": pixels}


def crop(
    source: Any, size: Size, rng: np.random.Generator | None = None
) -> UInt8[np.ndarray, "{size[0]} {size[1]} 3"]:
    """uint8 [height, width, 3]: the largest part of the picture of `size`'s shape, resized to it (bicubic).

    source: anything `load_image` takes. rng: places the part; None takes the middle.
    Raises UserError as `load_image`.
    """
    if isinstance(source, np.ndarray) and source.dtype == np.uint8 and source.shape == (*size, 3):
        return source
    found = _fast_jpeg(source, size) if isinstance(source, bytes) else None
    if found is None:
        pixels = np.asarray(load_image(source))
        height, width = pixels.shape[:2]
    else:
        pixels, (height, width) = found
    scale = max(size[0] / height, size[1] / width)
    part = (size[0] / scale, size[1] / scale)
    at = (0.5, 0.5) if rng is None else rng.random(2)
    top, left = at[0] * (height - part[0]), at[1] * (width - part[1])
    if scale == 1.0:
        y, x = round(top), round(left)
        return pixels[y : y + size[0], x : x + size[1]]
    return _resized(pixels, size, (left, top, left + part[1], top + part[0]))


def _resized(pixels: np.ndarray, size: Size, box: tuple[float, float, float, float]) -> np.ndarray:
    import PIL.Image

    # Rounding may push the box's edge past the picture's.
    right, bottom = min(box[2], pixels.shape[1]), min(box[3], pixels.shape[0])
    picture = PIL.Image.fromarray(pixels).resize(
        (size[1], size[0]),
        PIL.Image.Resampling.BICUBIC,
        box=(max(box[0], 0.0), max(box[1], 0.0), right, bottom),
        reducing_gap=2.0,
    )
    return np.asarray(picture)


def _fast_jpeg(data: bytes, size: Size) -> tuple[np.ndarray, tuple[float, float]] | None:
    """A JPEG decoded by libjpeg-turbo, already shrunk if it is far larger than `size`, and the height and
    width that the picture has in it; None for any file that wants Pillow's care: other formats, CMYK, a
    rotation in its EXIF block, damage."""
    decoder = _jpeg_decoder()
    if decoder is None or not data.startswith(b"\xff\xd8") or b"Exif\x00" in data[:65536]:
        return None
    try:
        height, width, space, _ = decoder.decode_jpeg_header(data)
        if space not in ("YCbCr", "RGB", "Gray") or height * width > MAX_PIXELS:
            return None
        # Shrinking while decoding is coarse: the last factor of two is left to the resizing.
        scale = 2 * max(size[0] / height, size[1] / width)
        least = (math.ceil(height * scale), math.ceil(width * scale)) if scale < 1 else (0, 0)
        pixels = decoder.decode_jpeg(data, "RGB", min_height=least[0], min_width=least[1])
        # It shrinks by eighths and rounds up: the last row may hold less than a row of the picture.
        eighths = pixels.shape[0] * 8 // height
        return pixels, (height * eighths / 8, width * eighths / 8)
    except ValueError:
        return None


@functools.cache
def _jpeg_decoder() -> Any:
    try:
        import simplejpeg
    except ImportError:  # of the data extra
        return None
    return simplejpeg


def encoder_pixels(
    pictures: Sequence[UInt8[np.ndarray, "_ _ 3"]], size: int
) -> Float32[np.ndarray, "N {size} {size} 3"]:
    """float32 [N, size, size, 3] with CLIP's preprocessing."""
    out = np.zeros((len(pictures), size, size, 3), np.float32)
    for row, picture in zip(out, pictures, strict=True):
        row[:] = clip_preprocess(picture, size)
    return out


def _with_pictures(prompt: Prompt) -> Prompt:
    """The prompt with its image files read, so that a bad one is found here and not in the batch."""

    def read(element: Element) -> Element:
        if isinstance(element, Image) and element.path is not None:
            return dataclasses.replace(element, image=load_image(element.image))
        return element

    return dataclasses.replace(prompt, elements=tuple(read(element) for element in prompt.elements))
