"""Images on the host: reading them safely, preprocessing, writing PNGs, laying out grids."""

from __future__ import annotations

import io
import json
import math
import os
import pathlib
import threading
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mvader_jax.errors import UserError

if TYPE_CHECKING:
    import PIL.Image

    from mvader_jax.prompt import Box, ImageSource

#: Pixels above which a file is refused as a decompression bomb (Pillow's own warning limit).
MAX_PIXELS = 1024 * 1024 * 1024 // 4 // 3
#: Mean and standard deviation of CLIP's preprocessing (openai/CLIP clip/clip.py).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
#: Sides in a larger ratio are cropped before resizing, so that a thin strip cannot ask for gigabytes.
_MAX_ASPECT = 32
#: IPTC's term for a picture made by a trained model, in the XMP packet every written PNG carries.
_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"

# warnings.catch_warnings changes process-wide state: one reader at a time.
_open_lock = threading.Lock()


def load_image(source: ImageSource) -> PIL.Image.Image:
    """Any picture as a Pillow image of mode RGB: rotated by its EXIF tag, alpha composited on white,
    16 bits reduced to 8, CMYK and palettes resolved, the first frame of an animation.

    source: a path, the bytes of a file, a Pillow image, or an array [H, W], [H, W, 1], [H, W, 3] or
        [H, W, 4] of uint8 or of floats in [-1, 1].
    Raises UserError, naming the file, if it is missing, a directory, not an image, truncated, of an
    unknown kind, or larger than MAX_PIXELS.
    """
    import PIL.Image

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
    return _decode(_from_array(np.asarray(source)), "the image")


def _open(file: Any, name: str) -> PIL.Image.Image:
    import PIL.Image

    try:
        with _open_lock, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a bomb is an error below, not a warning
            image = PIL.Image.open(file)
    except PIL.Image.DecompressionBombError:
        raise UserError(f"{name} is larger than {MAX_PIXELS:,} pixels, the limit for one image") from None
    except PIL.UnidentifiedImageError:
        raise UserError(f"{name} is not an image that Pillow can read") from None
    except Exception as error:  # format plugins raise anything on a hostile header
        raise UserError(f"{name} is damaged: {error}") from None
    return _decode(image, name)


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
        warnings.warn(f"{name} has unreadable EXIF data; its rotation is ignored", stacklevel=2)
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
    if array.dtype != np.uint8:
        if array.dtype.kind in "iub":
            raise UserError(f"an image array has type {array.dtype}; expected uint8 or floats in [-1, 1]")
        array = array.astype(np.float32)
        if not np.all(np.abs(array) <= 1.0 + 1e-3):
            raise UserError("an image array of floats has values outside of [-1, 1]")
        array = to_uint8(array)
    return PIL.Image.fromarray(np.ascontiguousarray(array))


def clip_preprocess(source: ImageSource, size: int) -> np.ndarray:
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


def to_vae_pixels(source: ImageSource, height: int, width: int) -> np.ndarray:
    """float32 [height, width, 3] in [-1, 1]: resized (bicubic) to cover the target, centre crop.

    Raises as `load_image`.
    """
    image = _limit_aspect(load_image(source))
    scale = max(height / image.height, width / image.width)
    new = (max(width, round(image.width * scale)), max(height, round(image.height * scale)))
    pixels = _resize_and_crop(image, new, (width, height))
    return pixels.astype(np.float32) / 127.5 - 1.0


def _limit_aspect(image: PIL.Image.Image) -> PIL.Image.Image:
    width, height = image.size
    keep_w, keep_h = min(width, _MAX_ASPECT * height), min(height, _MAX_ASPECT * width)
    if (keep_w, keep_h) == (width, height):
        return image
    left, top = (width - keep_w) // 2, (height - keep_h) // 2
    return image.crop((left, top, left + keep_w, top + keep_h))


def _resize_and_crop(image: PIL.Image.Image, new: tuple[int, int], target: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w, 3] of a `target` (w, h) cut from the centre of the image resized to `new` (w, h)."""
    import PIL.Image

    if image.size != new:
        image = image.resize(new, PIL.Image.Resampling.BICUBIC)
    left, top = (round((new[i] - target[i]) / 2.0) for i in (0, 1))
    return np.asarray(image)[top : top + target[1], left : left + target[0]]


def region_weights(
    regions: Sequence[tuple[Box | np.ndarray, float]], grid: int, size: tuple[int, int] = (1, 1)
) -> np.ndarray:
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


def _overlap(cells: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """[cells, parts]: the fraction of each cell that each part covers, both given by their edges."""
    low = np.maximum(cells[:-1, None], parts[None, :-1])
    high = np.minimum(cells[1:, None], parts[None, 1:])
    return np.maximum(high - low, 0.0) / (cells[1:] - cells[:-1])[:, None]


def to_uint8(pixels: Any) -> np.ndarray:
    """uint8 from floats in [-1, 1] of any shape, rounded; values beyond are clipped.

    Raises ValueError for NaN, which would otherwise be written as a black picture.
    """
    values = np.asarray(pixels).astype(np.float32)
    if np.isnan(values).any():
        raise ValueError("the pixels hold NaN")
    return np.clip(np.rint((values + 1.0) * 127.5), 0, 255).astype(np.uint8)


def save_png(path: str | os.PathLike[str], image: Any, metadata: Mapping[str, Any] | None = None) -> None:
    """Write a PNG whole or not at all: under a temporary name, then renamed.

    image: uint8 [H, W, 3], floats in [-1, 1], or a Pillow image.
    metadata: kept in text chunks, values that are no strings as JSON; every file is marked as
        AI-generated, for people (`AI-generated: true`) and for machines (IPTC's digital source type).
    Raises UserError if the file cannot be written.
    """
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    entries = {"Software": "mvader-jax", **(metadata or {}), "AI-generated": "true"}
    for key, value in entries.items():
        info.add_itxt(key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    info.add_itxt("XML:com.adobe.xmp", _xmp_packet())
    target = pathlib.Path(path)
    temporary = target.with_name(f".{target.name}.tmp")
    picture = load_image(image)
    try:
        try:
            picture.save(temporary, format="PNG", pnginfo=info)
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise UserError(f"cannot write {os.fspath(path)!r}: {error.strerror or error}") from None


def _xmp_packet() -> str:
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
        '<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" '
        f'Iptc4xmpExt:DigitalSourceType="{_SOURCE_TYPE}"/></rdf:RDF></x:xmpmeta>'
    )


def read_png_metadata(path: str | os.PathLike[str]) -> dict[str, str]:
    """The text chunks of a PNG written by `save_png`. Raises UserError if it is no PNG."""
    import PIL.Image

    try:
        with PIL.Image.open(path, formats=["PNG"]) as image:
            image.load()
            return dict(getattr(image, "text", {}))
    except (OSError, SyntaxError) as error:
        raise UserError(f"{os.fspath(path)!r} is not a PNG that can be read: {error}") from None


def grid(
    images: Sequence[Any], columns: int | None = None, labels: Sequence[str] | None = None, *, gap: int = 2
) -> PIL.Image.Image:
    """The images row by row on white, each centred in a cell of the largest's size.

    columns: default, about as many as rows. labels: a line or more under each image, wrapped to its
    width; '' for none. gap: pixels between cells and around.
    Raises UserError if there are no images or not one label an image.
    """
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

    pictures = [load_image(image) for image in images]
    if not pictures:
        raise UserError("a grid needs at least one image")
    if labels is not None and len(labels) != len(pictures):
        raise UserError(f"a grid of {len(pictures)} images has {len(labels)} labels; expected one an image")
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    rows = math.ceil(len(pictures) / columns)
    cell_w, cell_h = max(p.width for p in pictures), max(p.height for p in pictures)
    font = PIL.ImageFont.load_default(max(10, min(20, cell_w // 16)))
    pen = PIL.ImageDraw.Draw(PIL.Image.new("RGB", (1, 1)))
    texts = [_wrap(label, cell_w, lambda line: pen.textlength(line, font=font)) for label in labels or ()]
    line_height = math.ceil(pen.textbbox((0, 0), "Äg|", font=font)[3]) + 2
    label_h = max((text.count("\n") + 1 for text in texts if text), default=0) * line_height
    step_w, step_h = cell_w + gap, cell_h + label_h + gap
    sheet = PIL.Image.new("RGB", (columns * step_w + gap, rows * step_h + gap), (255, 255, 255))
    pen = PIL.ImageDraw.Draw(sheet)
    for i, picture in enumerate(pictures):
        x, y = gap + i % columns * step_w, gap + i // columns * step_h
        sheet.paste(picture, (x + (cell_w - picture.width) // 2, y + (cell_h - picture.height) // 2))
        for n, line in enumerate(texts[i].split("\n") if texts else ()):
            pen.text((x, y + cell_h + n * line_height), line, fill=(0, 0, 0), font=font)
    return sheet


def _wrap(text: str, width: int, length: Any) -> str:
    """`text` with line breaks so that each line is at most `width` long where its words allow it."""
    lines: list[str] = []
    for word in text.split():
        if lines and length(f"{lines[-1]} {word}") <= width:
            lines[-1] = f"{lines[-1]} {word}"
        else:
            lines.append(word)
    return "\n".join(lines)
