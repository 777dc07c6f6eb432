"""What a stored record holds, and under which names other people's metadata keep it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from mvader_jax.data.unicode import printable

if TYPE_CHECKING:
    import tensorflow_datasets as tfds

#: Column -> the names it goes by in LAION's releases and in img2dataset's output, in lower case.
SPELLINGS: dict[str, tuple[str, ...]] = {
    "url": ("url",),
    "caption": ("caption", "text"),
    "key": ("key",),
    "status": ("status",),
    "original_width": ("original_width", "width"),
    "original_height": ("original_height", "height"),
    "aesthetic": ("aesthetic_score", "aesthetic"),
    "watermark": ("pwatermark", "watermark"),
    "punsafe": ("punsafe",),
    "nsfw": ("nsfw",),
    "language": ("language",),
    "similarity": ("similarity",),
}
#: Numbers of a stored record; absent ones are NaN.
SCORES = ("aesthetic", "watermark", "punsafe", "similarity")
#: Texts of a stored record; absent ones are empty. details: what else a builder knows of it, as JSON.
TEXTS = ("key", "url", "nsfw", "language", "details")
_LARGEST_FLOAT = float(np.finfo(np.float32).max)
#: What is asked of all records at once (aspect buckets, descriptions), as one array file in their order.
COLUMNS = "columns.npy"
#: What the build did, with a digest of all records.
REPORT = "report.json"
COLUMN_TYPE = np.dtype([("width", np.int32), ("height", np.int32), ("aesthetic", np.float32)])


def features() -> tfds.features.FeaturesDict:
    """The features of every captioned data set: the picture as the file it was, and what is known of it."""
    import tensorflow_datasets as tfds

    scalar = tfds.features.Scalar
    return tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), doc="The file's bytes, never encoded again."),
            "caption": tfds.features.Text(doc="One or more, one a line; training draws one."),
            "width": scalar(dtype=np.int32, doc="Of the stored picture, as it is meant to be seen."),
            "height": scalar(dtype=np.int32),
            "original_width": scalar(dtype=np.int32, doc="Before any resizing on the way here."),
            "original_height": scalar(dtype=np.int32),
            **{name: scalar(dtype=np.float32, doc="NaN where unknown.") for name in SCORES},
            **{name: tfds.features.Text() for name in TEXTS},
        }
    )


def columns(names: Mapping[str, Any] | list[str]) -> dict[str, str]:
    """{column of SPELLINGS: its name among `names`}; any case matches, the first spelling wins."""
    lower = {name.lower(): name for name in reversed(list(names))}
    found = {}
    for column, spellings in SPELLINGS.items():
        for spelling in spellings:
            if spelling in lower:
                found[column] = lower[spelling]
                break
    return found


def number(value: Any) -> float:
    """A score as a float; NaN for what is none, or is too large for float32."""
    try:
        found = float(value)
    except (TypeError, ValueError, ArithmeticError):
        return math.nan
    return found if abs(found) <= _LARGEST_FLOAT else math.nan


def text(value: Any) -> str:
    """A text as it can be stored; empty for what is none."""
    return printable(value) if isinstance(value, (str, bytes)) else ""
