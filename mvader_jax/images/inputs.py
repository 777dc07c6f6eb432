"""The pictures and masks that a drawing was made from, as its PNG keeps them: small ones whole, of files a digest too.

A PNG that is sent to somebody, or dropped on a page, draws again where its inputs lie in it. They are bounded, so that no
picture becomes many times its size, and hold pixels alone: no EXIF block, no place where a photograph was taken.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import io
import math
import os
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from mvader_jax.errors import UserError
from mvader_jax.images.read import load_image, open_quietly

#: Bytes of one input, as PNG or compressed mask, and of all inputs of a picture; pixels of one.
KEPT_BYTES, KEPT_TOTAL, KEPT_PIXELS = 1 << 19, 1 << 20, 1 << 22

Entry = dict[str, Any]


class Inputs:
    """Inputs in order. sources: pictures as `load_image` takes them, and masks, float32 [h, w]; whole: keep small pictures,
    not only where they are."""

    def __init__(self, sources: Iterable[Any], *, whole: bool = True) -> None:
        self.sources, self.whole = list(sources), whole

    @functools.cached_property
    def entries(self) -> list[Entry]:
        """JSON values, an entry each: {"name", "bytes", "digest"} of a file, {"png"} or {"mask", "data"} of what is kept
        whole, {"same": n} of what entry n is already; empty for what is not kept. Worked out when asked for."""
        found: list[Entry] = []
        known: dict[Any, int] = {}
        left = KEPT_TOTAL
        for number, source in enumerate(self.sources):
            key = os.fspath(source) if isinstance(source, (str, os.PathLike)) else id(source)
            if key in known:
                found.append({"same": known[key]})
                continue
            known[key] = number
            entry, data = _entry(source, min(KEPT_BYTES, left), self.whole)
            left -= data
            found.append(entry)
        return found


class LostPicture:
    """Stands for a picture that is not kept and is not to be found. Raises UserError, in one sentence, where it is read."""

    def __init__(self, name: str | None) -> None:
        self.name = name

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        raise UserError(
            f"{'a picture' if self.name is None else f'the picture {self.name!r}'} that this was drawn from is not kept in "
            f"it (it needs more than {KEPT_BYTES >> 10} KiB), and no such file is at hand; give a picture in its place"
        )


def restored(entries: Any, root: str | os.PathLike[str] | None = None) -> list[Any]:
    """The inputs that entries tell of: paths of files that are the same still, else pictures and masks that are kept.

    root: where paths begin; None opens no file. A picture that is in neither place is a `LostPicture`.
    Raises UserError for what are no entries, and for a mask that is not kept.
    """
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError("the inputs of the picture are damaged")
    found: list[Any] = []
    for entry in entries:
        same = entry.get("same")
        if same is not None and not (type(same) is int and 0 <= same < len(found)):
            raise UserError("the inputs of the picture are damaged")
        found.append(_restored(entry, root) if same is None else found[same])
    return found


def _entry(source: Any, limit: int, whole: bool) -> tuple[Entry, int]:
    """(what is kept of an input, how many bytes of it). limit: the most; whole: whether of a picture any."""
    if isinstance(source, np.ndarray) and source.ndim == 2 and source.dtype == np.float32:
        data = zlib.compress(np.ascontiguousarray(source, "<f4").tobytes())
        mask: Entry = {"mask": list(source.shape)}
        return (mask | {"data": _text(data)}, len(data)) if len(data) <= limit else (mask, 0)
    entry: Entry = {}
    try:
        if isinstance(source, (str, os.PathLike)):
            path = Path(source)
            entry = {"name": os.fspath(source), "bytes": path.stat().st_size, "digest": file_digest(path)}
        picture = _png(source, limit) if whole and limit else b""
    except (UserError, OSError):  # gone since
        return entry, 0
    return (entry | {"png": _text(picture)}, len(picture)) if picture else (entry, 0)


def _png(source: Any, limit: int) -> bytes:
    """Nothing where it is too large."""
    picture = load_image(source)
    if picture.width * picture.height > KEPT_PIXELS:
        return b""
    data = io.BytesIO()
    picture.copy().save(data, format="PNG")
    return data.getvalue() if data.tell() <= limit else b""


def _restored(entry: Entry, root: str | os.PathLike[str] | None) -> Any:
    name, kept, mask = entry.get("name"), entry.get("png"), entry.get("mask")
    if mask is not None:
        return _mask(mask, entry.get("data"))
    if isinstance(name, str) and root is not None and _is_same(Path(root) / name, entry):
        return os.fspath(Path(root) / name)
    if kept is None:
        return LostPicture(name if isinstance(name, str) else None)
    try:
        picture = open_quietly(io.BytesIO(_data(kept)), ["PNG"])
        if picture.width * picture.height > KEPT_PIXELS:
            raise ValueError("too many pixels")
        return load_image(picture)
    except Exception:  # Pillow's readers raise anything
        raise UserError("an input picture that is kept in the picture is damaged") from None


def _is_same(path: Path, entry: Entry) -> bool:
    """Whether a file is there and holds what it held."""
    try:
        known = path.is_file() and path.stat().st_size == entry.get("bytes")
        return known and file_digest(path) == entry.get("digest")
    except (OSError, ValueError):
        return False


def file_digest(path: str | os.PathLike[str]) -> str:
    """A short hash of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=12)).hexdigest()


def _mask(shape: Any, data: Any) -> np.ndarray:
    if data is None:
        raise UserError("a mask that this was drawn with is not kept in it; it needs too many bytes")
    try:
        height, width = shape
        wanted = 4 * math.prod((height, width))
        if not (type(height) is type(width) is int and 0 < wanted <= 4 * KEPT_PIXELS):
            raise ValueError(shape)
        numbers = zlib.decompressobj().decompress(_data(data), wanted)
        return np.frombuffer(numbers, "<f4").reshape(height, width).astype(np.float32)
    except (TypeError, ValueError, zlib.error):
        raise UserError("a mask that is kept in the picture is damaged") from None


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _data(text: Any) -> bytes:
    if not isinstance(text, str) or len(text) > 4 * KEPT_TOTAL // 3 + 4:
        raise ValueError("no text of this length")
    return base64.b64decode(text, validate=True)


def same_names(sources: Sequence[Any]) -> list[str | None]:
    """The paths of those that are files."""
    return [os.fspath(one) if isinstance(one, (str, os.PathLike)) else None for one in sources]
