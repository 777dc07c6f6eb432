"""Bytes that should be text, in whichever of Unicode's encodings; what is none is kept, and seen later."""

from __future__ import annotations

import codecs
from typing import Any

_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def encoding(head: bytes) -> str:
    """The encoding of a text file that begins with `head`: by its byte order mark, UTF-8 where there is none."""
    for mark, name in _MARKS.items():
        if head.startswith(mark):
            return name
    # UTF-16 without its mark: of a Latin text every second byte is zero, and no other.
    even, odd = head[0::2], head[1::2]
    for zeros, others, name in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if len(head) > 8 and zeros.count(0) > 0.6 * len(zeros) and not others.count(0):
            return name
    return "utf-8"


def decoded(data: bytes) -> str:
    """The text of a file. Raises UnicodeError."""
    return data.decode(encoding(data[:4096]))


def printable(value: Any) -> str:
    """A text that can be written and shown; what is no Unicode in it is spelled out (\\udce9)."""
    if isinstance(value, bytes):
        return value.decode("utf-8", "backslashreplace")
    return str(value).encode("utf-8", "backslashreplace").decode()


def _keep(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "".join(chr(0xDC00 + byte) for byte in error.object[error.start : error.end]), error.end


#: An error handler as "surrogateescape", for any encoding: a byte that is no text becomes a lone surrogate.
KEEP = "mvader_keep"
codecs.register_error(KEEP, _keep)
