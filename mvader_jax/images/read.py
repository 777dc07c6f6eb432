"""Pictures read safely: any file, any mode, as RGB."""

from __future__ import annotations

import io
import os
import pathlib
import re
import threading
import warnings
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from mvader_jax.errors import Notice, UserError
from mvader_jax.images.names import check_no_url
from mvader_jax.images.pixels import check_pixels, unit_to_uint8
from mvader_jax.images.sources import held

if TYPE_CHECKING:
    import PIL.Image

    from mvader_jax.prompt.elements import ImageSource

#: Pixels above which a file is refused as a decompression bomb (Pillow's own warning limit).
MAX_PIXELS = 1024 * 1024 * 1024 // 4 // 3

# warnings.catch_warnings changes process-wide state: one reader at a time.
_open_lock = threading.Lock()


def load_image(source: ImageSource) -> PIL.Image.Image:
    """Any picture as a Pillow image of mode RGB: rotated by its EXIF tag, alpha composited on white,
    16 bits reduced to 8, CMYK and palettes resolved, the first frame of an animation.

    source: a path, the bytes of a file, a file opened with 'rb', a Pillow image, or an array [H, W],
        [H, W, 1], [H, W, 3] or [H, W, 4] of uint8 or of floats in [0, 1], of any library that NumPy can read.
    Raises UserError, naming the file, if it is missing, a directory, not an image, truncated, of an
    unknown kind, or larger than MAX_PIXELS.
    """
    import PIL.Image

    source = held(source)
    check_no_url(source)
    if isinstance(source, PIL.Image.Image):
        return _decode(source, "the image")
    if isinstance(source, bytes):
        return _open(io.BytesIO(source), "the image")
    if isinstance(source, (str, os.PathLike)):
        name = f"the image {os.fspath(source)!r}"
        path = pathlib.Path(source)
        try:
            if path.is_dir():
                raise UserError(f"{name} is a directory; expected an image file")
            if not path.exists():
                raise UserError(f"{name} does not exist")
            if not path.is_file():
                raise UserError(f"{name} is not a regular file")
            with path.open("rb") as file:
                return _open(file, name)
        except OSError as error:
            raise UserError(f"{name} cannot be read: {error.strerror or error}") from None
        except ValueError as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{name} has a path that the system does not accept") from None
    try:
        array = np.asarray(source)
    except UserError:  # of a picture that is not kept
        raise
    except Exception as error:  # a tensor on a GPU, or one that asks for gradients
        raise UserError(
            f"a picture of type {type(source).__name__} is no array on the host: {error}"
        ) from None
    return _decode(_from_array(array), "the image")


def _open(file: BinaryIO, name: str) -> PIL.Image.Image:
    import PIL.Image

    try:
        image = open_quietly(file)
    except PIL.Image.DecompressionBombError:
        raise UserError(f"{name} is larger than {MAX_PIXELS:,} pixels, the limit for one image") from None
    except PIL.UnidentifiedImageError:
        raise UserError(f"{name} {_what(file)}") from None
    except Exception as error:  # format plugins raise anything on a hostile header
        raise UserError(f"{name} is damaged: {error}") from None
    return _decode(image, name)


def open_quietly(
    file: str | os.PathLike[str] | BinaryIO, formats: list[str] | None = None
) -> PIL.Image.Image:
    """Pillow's `open` without its warnings of many pixels: its pixels are not read yet. Raises whatever Pillow raises."""
    import PIL.Image

    with _open_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return PIL.Image.open(file, formats=formats)


#: (where it stands, how files of a kind are marked, what they are): kinds that Pillow itself does not read.
_KINDS = (
    (4, rb"ftyp(heic|heix|hevc|hevx|heim|heis|mif1|msf1)", "a HEIC picture"),
    (4, rb"ftypavi[fs]", "an AVIF picture"),
    (4, rb"ftypcrx ", "a camera's raw picture"),
    (4, rb"ftyp", "a video"),
    (0, rb"\xff\x0a|\0\0\0\x0cJXL ", "a JPEG XL picture"),
    (0, rb"\s*(<\?xml[^>]*>)?\s*(<!--.*?-->|<!DOCTYPE svg[^>]*>|\s)*<svg", "an SVG drawing"),
    (0, rb"\s*<(!doctype html|html|head|body)", "a web page"),
    (0, rb"%PDF", "a PDF document"),
    (0, rb"8BPS", "a Photoshop file"),
    (0, rb"gimp xcf", "a GIMP file"),
    (0, rb"\x76\x2f\x31\x01", "an OpenEXR picture"),
    (0, rb"version https://git-lfs", "a pointer of Git LFS, not the file itself"),
)


def _what(file: BinaryIO) -> str:
    """What a file is that Pillow has no reader for, in words."""
    file.seek(0)
    start = file.read(4096)
    if not start.strip(b"\0"):
        return "is empty" if not start else "holds nothing but zeros"
    for place, mark, kind in _KINDS:
        if re.match(mark, start[place:], re.IGNORECASE | re.DOTALL):
            return f"is {kind}, which cannot be read here; save it as PNG, JPEG or WebP"
    return "is not an image that Pillow can read"


def _decode(image: PIL.Image.Image, name: str) -> PIL.Image.Image:
    import PIL.Image
    import PIL.ImageOps

    if not image.width or not image.height:
        raise UserError(f"{name} has no pixels")
    if image.width * image.height > MAX_PIXELS:
        raise UserError(
            f"{name} has {image.width} x {image.height} pixels; the limit for an image is {MAX_PIXELS:,}"
        )
    try:
        image.load()
    except Exception as error:  # as in _open: decoders raise anything on damaged data
        raise UserError(f"{name} is truncated or damaged: {error}") from None
    try:
        image = PIL.ImageOps.exif_transpose(image)
    except Exception:  # an unreadable EXIF block is no reason to refuse the picture
        warnings.warn(f"{name} has unreadable EXIF data; its rotation is ignored", Notice, stacklevel=2)
    try:
        return _to_rgb(image)
    except (ValueError, OSError):
        raise UserError(f"{name} has pixels of mode {image.mode!r}, which cannot be read as RGB") from None


def _to_rgb(image: PIL.Image.Image) -> PIL.Image.Image:
    import PIL.Image

    if image.mode.startswith("I"):  # 16 bits, which Pillow's own conversion would clip at 255
        wide = np.clip(np.asarray(image).astype(np.int64), 0, 65535)
        image = PIL.Image.fromarray(((wide * 255 + 32767) // 65535).astype(np.uint8))
    if image.mode == "F":
        raise ValueError("floating point pixels have no agreed range")
    if image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = PIL.Image.new("RGBA", layer.size, (255, 255, 255, 255))
        return PIL.Image.alpha_composite(white, layer).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_array(array: np.ndarray) -> PIL.Image.Image:
    import PIL.Image

    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if (array.ndim != 2 and (array.ndim != 3 or array.shape[-1] not in (3, 4))) or not array.size:
        raise UserError(f"an image array has shape {array.shape}; expected [H, W], [H, W, 3] or [H, W, 4]")
    check_pixels(array)
    if array.dtype != np.uint8:
        array = unit_to_uint8(array)
    return PIL.Image.fromarray(np.ascontiguousarray(array))
