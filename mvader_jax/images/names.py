"""Whether a string is the name of a picture."""

from __future__ import annotations

import os
import pathlib
import re
from typing import Any

from mvader_jax.errors import UserError

#: How names of pictures end: what Pillow reads, and what people have beside it.
READABLE = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
_OTHERS = (
    "apng arw avif avifs cr2 cr3 dds dib dng eps exr hdr heic heif hif ico j2k jfif jif jp2 jpe jpx jxl nef orf "
    "pbm pcx pnm psb psd qoi raf raw rw2 svg svgz tga xcf xpm"
)
PICTURES = READABLE + tuple(f".{ending}" for ending in _OTHERS.split())

#: How files of PNG, JPEG, GIF, WebP, BMP and TIFF begin.
_PICTURE_STARTS = (b"\x89PNG", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\0", b"MM\0*")


#: A URL, and a picture written as one.
_URL = re.compile(r"[a-z][a-z0-9+.-]*://\S+|data:image/\S+", re.IGNORECASE)


def check_no_url(source: Any) -> None:
    """Raises UserError where a picture is given as a URL: nothing is fetched here."""
    if isinstance(source, str) and _URL.fullmatch(source):
        shown = source if len(source) <= 100 else f"{source[:97]}..."
        raise UserError(f"the image {shown!r} is a URL; pictures are read from files: save it as one")


def names_picture(text: str, root: str | os.PathLike[str] = ".") -> bool:
    """Whether a string ends as pictures' names do, nearly so in one word ("photo.jpge"), is a URL or a picture's."""
    if _URL.fullmatch(text):
        return True
    if _is_picture(pathlib.Path(root) / text):
        return True
    stem, dot, ending = text.rpartition(".")
    if not (stem and dot):
        return False
    if f".{ending.lower()}" in PICTURES:
        return True
    # Two letters exchanged, one too many or one left out, in what is no sentence.
    one_word = not any(c.isspace() for c in text)
    return one_word and any(_nearly(ending.lower(), known[1:]) for known in READABLE)


def _is_picture(path: pathlib.Path) -> bool:
    """Whether there is a file that begins as PNG, JPEG, GIF, WebP, BMP or TIFF files do."""
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return file.read(4).startswith(_PICTURE_STARTS)
    except (OSError, ValueError):
        return False


def _nearly(word: str, other: str) -> bool:
    """Whether a word is another with two neighbours exchanged, one letter too many, or one of four left out."""
    if len(word) == len(other):
        differ = [i for i, (a, b) in enumerate(zip(word, other, strict=True)) if a != b]
        return len(differ) == 2 and differ[1] == differ[0] + 1 and sorted(word) == sorted(other)
    longer, shorter = (word, other) if len(word) > len(other) else (other, word)
    if len(longer) != len(shorter) + 1 or len(shorter) < 3:
        return False
    return any(longer[:i] + longer[i + 1 :] == shorter for i in range(len(longer)))
