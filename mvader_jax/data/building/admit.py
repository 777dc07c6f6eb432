"""A raw sample becomes a record, or a reason why not."""

from __future__ import annotations

import dataclasses
import io
import math
from collections.abc import Callable, Mapping
from typing import Any

from mvader_jax.data.building.filters import FilterConfig
from mvader_jax.data.building.schema import SCORES, TEXTS, number, text
from mvader_jax.data.unicode import decoded
from mvader_jax.errors import UserError
from mvader_jax.images.read import MAX_PIXELS, load_image

#: EXIF orientations that swap width and height.
_SIDEWAYS = (5, 6, 7, 8)
_ORIENTATION = 0x0112
_LARGEST_SIDE = 2**31 - 1


class Rejected(Exception):
    """The sample is not kept; the message is the reason it is counted under."""


@dataclasses.dataclass(frozen=True)
class Sample:
    """One input as its container holds it.

    image, caption: called only when their turn comes; None where the container has no such part, and the
    caption, or a list of them, is among the metadata. Both may raise Rejected.
    metadata: under the columns of `schema.SPELLINGS`.
    """

    key: str
    image: Callable[[], bytes] | None
    caption: Callable[[], bytes] | None
    metadata: Mapping[str, Any]


def rejecting(reason: str) -> Callable[[], bytes]:
    """A content that cannot be had."""

    def read() -> bytes:
        raise Rejected(reason)

    return read


def admit(sample: Sample, filters: FilterConfig) -> dict[str, Any]:
    """The sample as a record of `schema.features`. Raises Rejected, and nothing else.

    In order of cost: whether it was downloaded, filters on metadata, the caption, the picture.
    """
    try:
        return _admit(sample, filters)
    except Rejected:
        raise
    except Exception as error:  # what nobody thought of is one sample's damage, not the build's end
        raise Rejected(f"sample cannot be read ({type(error).__name__})") from None


def _admit(sample: Sample, filters: FilterConfig) -> dict[str, Any]:
    metadata = sample.metadata
    status = metadata.get("status")
    if status is not None and text(status) != "success":
        raise Rejected("not downloaded")
    _stop_at(filters.reject(metadata))
    if sample.image is None:
        raise Rejected("image missing")
    caption = _caption(sample, filters)
    data = sample.image()
    if not isinstance(data, bytes):
        raise Rejected("image is no bytes")
    width, height = picture_size(data)
    # Without metadata the stored picture is the original.
    original_width = _original(metadata.get("original_width"), width)
    original_height = _original(metadata.get("original_height"), height)
    if (original_width, original_height) == (width, height):
        _stop_at(filters.reject_size(width, height))
    return {
        "image": data,
        "caption": caption,
        "width": width,
        "height": height,
        "original_width": original_width,
        "original_height": original_height,
        **{name: number(metadata.get(name)) for name in SCORES},
        **{name: text(metadata.get(name)) for name in TEXTS},
        "key": text(sample.key),
    }


def _original(value: Any, stored: int) -> int:
    """A side of the original in pixels; that of the stored picture where nothing is said."""
    try:
        sides = float(value)
    except (TypeError, ValueError):
        return stored
    except OverflowError:
        sides = math.inf
    if math.isnan(sides):
        return stored
    if not 1 <= sides <= _LARGEST_SIDE:
        raise Rejected("original size is no number of pixels")
    return int(sides)


def picture_size(data: bytes) -> tuple[int, int]:
    """(width, height) of a picture file as it is meant to be seen, after decoding it to the end.

    Raises Rejected for what is no picture, is cut, or is larger than `MAX_PIXELS`.
    """
    import PIL.Image

    if not data:
        raise Rejected("image has zero bytes")
    if data[:256].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml", b"<head")):
        raise Rejected("image is a web page")
    try:
        image = PIL.Image.open(io.BytesIO(data))
    except PIL.Image.DecompressionBombError:
        raise Rejected("image is a decompression bomb") from None
    except PIL.UnidentifiedImageError:
        raise Rejected("image of no known kind") from None
    except Exception:  # format plugins raise anything on a hostile header
        raise Rejected("image damaged") from None
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Rejected("image is a decompression bomb")
    try:
        if image.format == "JPEG":
            # An eighth of the size in each direction: reads the whole stream and skips most of the rest.
            image.draft(None, (max(width // 8, 1), max(height // 8, 1)))
            image.load()
        else:
            load_image(data)
    except (UserError, OSError):
        raise Rejected("image truncated or damaged") from None
    except Exception:  # as above
        raise Rejected("image damaged") from None
    try:
        sideways = image.getexif().get(_ORIENTATION) in _SIDEWAYS
    except Exception:  # an unreadable EXIF block is no reason to refuse the picture
        sideways = False
    return (height, width) if sideways else (width, height)


def _caption(sample: Sample, filters: FilterConfig) -> str:
    """The captions that pass, one a line; blanks of any kind become single ones."""
    found: Any = sample.caption() if sample.caption else sample.metadata.get("caption")
    if found is None:
        raise Rejected("caption missing")
    kept: list[str] = []
    reason = "caption missing"
    for raw in found if isinstance(found, (list, tuple)) else [found]:
        try:
            told = decoded(raw) if isinstance(raw, bytes) else raw
            if not isinstance(told, str):
                raise Rejected("caption is no text")
            told.encode("utf-8")  # half of a surrogate pair can come from JSON
            told = " ".join(told.replace("\x00", " ").replace("\ufeff", "").split())
            _stop_at(filters.reject_caption(told))
            kept.append(told)
        except UnicodeError:
            reason = "caption is not UTF-8"
        except Rejected as error:
            reason = str(error)
    if not kept:
        raise Rejected(reason)
    return "\n".join(kept)


def _stop_at(reason: str | None) -> None:
    if reason is not None:
        raise Rejected(reason)
