"""What the weights, regions and factors of a prompt may be."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

from mvader_jax.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import PIL.Image

#: (left, top, right, bottom) as fractions of the picture's width and height, the origin top left.
Box: TypeAlias = tuple[float, float, float, float]

#: Factors on log theta: one a layer, or rows of one a head.
Factors: TypeAlias = Sequence[float] | Sequence[Sequence[float]]


def check_weight(weight: Any, what: str) -> float:
    """`weight` as a float. Raises UserError unless it is a finite number of at least 0."""
    try:
        value = float(weight)
    except (TypeError, ValueError, OverflowError):
        raise UserError(f"the weight of {what} is {weight!r}; a weight is a number of at least 0") from None
    if isinstance(weight, bool) or not math.isfinite(value) or value < 0:
        raise UserError(f"the weight of {what} is {weight!r}; a weight is a finite number of at least 0")
    return value


def checked_region(region: Any) -> Box | np.ndarray:
    """A box as a tuple, or a mask as an array of its own. Raises UserError for anything else."""
    import numpy as np

    if isinstance(region, (str, os.PathLike)):
        array = _read_mask(region)
    elif hasattr(region, "getbands"):  # a Pillow image
        array = _grey(region)
    else:
        array = np.asarray(region, np.float32)
    if array.shape == (4,):
        left, top, right, bottom = (float(v) for v in region)
        if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
            raise UserError(
                f"the region {tuple(region)!r} is no box; expected (left, top, right, bottom) in [0, 1], "
                "left < right, top < bottom"
            )
        return (left, top, right, bottom)
    if array.ndim != 2 or not array.size or not np.all((array >= 0) & (array <= 1)):
        raise UserError(
            f"a region has shape {array.shape}; "
            "expected a box of four numbers, a mask [h, w] of numbers in [0, 1] or the path of one"
        )
    array = array.copy()
    array.setflags(write=False)
    return array


def _read_mask(path: str | os.PathLike[str]) -> np.ndarray:
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            return _grey(image)
    except FileNotFoundError:
        raise UserError(f"cannot read the mask {os.fspath(path)!r}: it does not exist") from None
    except Exception:  # a path that the system does not accept; and format plugins raise anything
        raise UserError(f"cannot read the mask {os.fspath(path)!r}: it is no image") from None


def _grey(image: PIL.Image.Image) -> np.ndarray:
    """White is 1, black and what is transparent 0."""
    import numpy as np

    grey = np.asarray(image.convert("L"), np.float32) / np.float32(255.0)
    return grey * (np.asarray(image.getchannel("A"), np.float32) / 255.0) if "A" in image.getbands() else grey


def checked_factors(value: Any, name: str) -> Factors:
    """`value` as a tuple of numbers or of equally long tuples of numbers. Raises UserError for anything else."""
    what = name.replace("_", " ")
    rows = value.tolist() if hasattr(value, "tolist") else value
    if not isinstance(rows, (list, tuple)) or not rows:
        raise UserError(f"{what} is {value!r}; expected a list of numbers by layer, or of such lists by head")
    nested = [isinstance(row, (list, tuple)) for row in rows]
    if not any(nested):
        return tuple(_checked_factor(number, what) for number in rows)
    if not all(nested) or not rows[0] or len({len(row) for row in rows}) > 1:
        raise UserError(f"the rows of {what} have different lengths; expected one number a head in each")
    return tuple(tuple(_checked_factor(number, what) for number in row) for row in rows)


def _checked_factor(number: Any, what: str) -> float:
    if isinstance(number, bool) or not isinstance(number, (int, float)) or not 0 <= number < math.inf:
        raise UserError(f"{what} holds {number!r}; a factor is a finite number of at least 0")
    return float(number)


def quote(text: str) -> str:
    """The text in quotes, its beginning where it is long."""
    return repr(text if len(text) <= 40 else text[:37] + "...")
