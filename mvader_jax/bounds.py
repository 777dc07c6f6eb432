"""What a number of the settings may be, declared once, in the type of its field.

`steps: PositiveInt`, or `Annotated[float, above(0)]`. `settings.Checked` checks fields whenever a dataclass is
made; flags of the command line are declared the same way.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np

#: Steps, sizes and counts end up in int32 on a device.
LARGEST_INT = 2**31 - 1
_LARGEST_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True)
class Bound:
    """What a value may be beside its type: the test, and the words for a person."""

    accepts: Callable[[Any], bool]
    accepted: str


def at_least(low: float) -> Bound:
    """`low` or more."""
    return Bound(lambda x: bool(low <= x), f"{low} or more")


def above(low: float) -> Bound:
    """More than `low`, in float32 too."""
    return Bound(lambda x: bool(np.float32(x) > low), f"more than {low}")


def between(low: float, high: float) -> Bound:
    """`low` to `high`, both accepted."""
    return Bound(lambda x: low <= x <= high, f"{low} to {high}")


def below(low: float, high: float) -> Bound:
    """`low` or more, and less than `high`, in float32 too."""
    return Bound(lambda x: bool(low <= x and np.float32(x) < high), f"{low} or more, and less than {high}")


def any_number(why: str) -> Bound:
    """Every number that is finite; `why` none is senseless."""
    return Bound(lambda x: True, f"any finite number: {why}")


def _compiles(text: str) -> bool:
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError):
        return False
    return True


POSITIVE = between(1, LARGEST_INT)
NON_NEGATIVE = between(0, LARGEST_INT)
PositiveInt = Annotated[int, POSITIVE]
NonNegativeInt = Annotated[int, NON_NEGATIVE]
PositiveFloat = Annotated[float, above(0)]
NonNegativeFloat = Annotated[float, at_least(0)]
#: A probability, or a part of a whole.
Share = Annotated[float, between(0, 1)]
Seed = Annotated[int, between(0, _LARGEST_SEED)]
#: Threads or processes of one host: more than any has cores for.
Workers = Annotated[int, between(0, 1024)]
#: What a network computes in.
ComputeDtype = Literal["float32", "bfloat16"]
#: What parameters that do not train may be kept in: the last two are for the matrices of a decoder's layers
#: (models/quantised.py).
FrozenDtype = Literal["float32", "bfloat16", "int8", "int4"]
RegularExpression = Annotated[str, Bound(_compiles, "a regular expression, as Python's re reads it")]
