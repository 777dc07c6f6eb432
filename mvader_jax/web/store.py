"""The pictures that a page shows and takes: kept in memory under a name of their content, the oldest let go."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import PIL.Image

from mvader_jax.errors import UserError
from mvader_jax.images.names import PICTURES
from mvader_jax.images.png import png_bytes
from mvader_jax.images.read import load_image

#: The most that an uploaded file holds, in bytes and in pixels.
MOST_BYTES, MOST_PIXELS = 20 * 1024**2, 40_000_000
#: The most that all pictures take together, in bytes of PNG.
CAPACITY = 512 * 1024**2


@dataclasses.dataclass(frozen=True)
class Kept:
    """A picture. id: of its content; png: the file."""

    id: str
    size: tuple[int, int]
    png: bytes = dataclasses.field(repr=False)

    def image(self) -> PIL.Image.Image:
        """The pixels, mode RGB."""
        return load_image(self.png)


class Store:
    """Pictures by id. Several threads may use it."""

    def __init__(self, capacity: int = CAPACITY) -> None:
        """capacity: bytes of PNG; where more come in, those that nobody asked for longest go."""
        self._capacity, self._held = capacity, 0
        self._pictures: OrderedDict[str, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def add(self, image: Any, metadata: Mapping[str, Any] | None = None) -> Kept:
        """Keeps a picture that was drawn, marked as every PNG that is written here."""
        return self._keep(load_image(image).size, png_bytes(image, metadata))

    def upload(self, data: bytes) -> Kept:
        """Keeps a file from outside, of any format that is read, as PNG.

        Raises UserError for one that is too large or no picture.
        """
        check_bytes(len(data))
        _check_pixels(data)
        image, plain = load_image(data), io.BytesIO()
        image.info = {}  # a profile or a comment of the file is nothing that is drawn from
        image.save(plain, format="PNG", compress_level=1)
        return self._keep(image.size, plain.getvalue())

    def get(self, id: Any) -> Kept:
        """Raises UserError for a picture that is not here, or no longer."""
        with self._lock:
            if not isinstance(id, str) or id not in self._pictures:
                raise UserError("a picture of the prompt is no longer on the server; add it again")
            self._pictures.move_to_end(id)
            return self._pictures[id]

    def _keep(self, size: tuple[int, int], png: bytes) -> Kept:
        kept = Kept(hashlib.sha256(png).hexdigest()[:32], size, png)
        with self._lock:
            if self._pictures.pop(kept.id, None) is None:
                self._held += len(png)
            self._pictures[kept.id] = kept
            while self._held > self._capacity and len(self._pictures) > 1:
                self._held -= len(self._pictures.popitem(last=False)[1].png)
        return kept


def check_bytes(size: int) -> None:
    """Raises UserError for a file of more bytes than are taken."""
    if size > MOST_BYTES:
        raise UserError(f"the file is too large; the page takes up to {MOST_BYTES // 1024**2} MB")


def _check_pixels(data: bytes) -> None:
    try:
        with PIL.Image.open(io.BytesIO(data)) as header:
            width, height = header.size
    except Exception:  # what it is, `load_image` says
        return
    if width * height > MOST_PIXELS:
        raise UserError(f"the picture has {width} x {height} pixels; the page takes up to {MOST_PIXELS:,}")


def safe_name(name: Any) -> str:
    """A picture's file name without a directory, and with nothing in it that a shell or a browser reads otherwise."""
    plain = re.sub(r"[^\w.-]+", "-", str(name).replace("\\", "/").rpartition("/")[2]).strip("-.")[-60:]
    stem, dot, ending = plain.rpartition(".")
    return plain if stem and dot and f".{ending.lower()}" in PICTURES else f"{plain or 'picture'}.png"
