"""What a picture may be given as. No library is imported to tell."""

from __future__ import annotations

import os
from typing import Any

from mvader_jax.errors import UserError

ACCEPTED = "a path, the bytes of a file, a file opened with 'rb', a Pillow image or an array"


def is_source(value: Any) -> bool:
    """Whether a value may be a picture by its type; of a string nothing but its words tells."""
    arrays = ("__array_interface__", "__array__")
    return isinstance(value, (os.PathLike, bytes)) or any(hasattr(value, name) for name in (*arrays, "read"))


def held(value: Any) -> Any:
    """A picture as it can be read again and again: a file that is open as its bytes, from where it stands.

    Raises UserError for what is no picture.
    """
    if not isinstance(value, str) and not is_source(value):
        raise UserError(f"a picture is of type {type(value).__name__}; accepted: {ACCEPTED}")
    if not hasattr(value, "read"):
        return value
    try:
        data = value.read()
    except (OSError, ValueError) as error:  # closed, or open for writing
        raise UserError(f"the file of a picture cannot be read: {error}") from None
    if not isinstance(data, bytes):
        raise UserError("the file of a picture gives text; open it with 'rb'")
    return data
