"""Seeds as people write them: one, a range or a list."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, TypeAlias

from mvader_jax.bounds import Seed
from mvader_jax.errors import UserError
from mvader_jax.settings import convert

Seeds: TypeAlias = Seed | tuple[Seed, ...]

#: Where nothing is said.
SEED: int = 0
#: The most of one call.
MOST = 1_000_000
_PART = re.compile(r"\s*(-?\d{1,10})\s*(?::\s*(-?\d{1,10})\s*)?")


def read_seeds(value: Any) -> int | tuple[int, ...]:
    """One seed as a number, several as a tuple.

    value: a whole number; "3"; "0:16", which is 0 to 15 as Python's ranges are; "0,3,7", of both kinds; a range,
    a list or an array of numbers. Raises UserError for anything else, and for seeds beyond 0 to 2**32 - 1.
    """
    if isinstance(value, str):
        ranges = [_range(part, value) for part in value.split(",")]
        if len(ranges) == 1 and ":" not in value:
            return one_seed(ranges[0][0])
    elif isinstance(value, (list, tuple)) or (isinstance(value, Iterable) and getattr(value, "ndim", 1) == 1):
        ranges = [value]  # type: ignore[list-item]
    else:
        return one_seed(value)
    count = sum(map(len, ranges))
    if not 1 <= count <= MOST:
        raise UserError(f"seed has {count} seeds; accepted: 1 to {MOST}")
    return tuple(one_seed(seed) for some in ranges for seed in some)


def one_seed(value: Any) -> int:
    """Raises UserError unless it is a whole number that a seed may be."""
    return int(convert(Seed, value, "seed"))


def _range(part: str, whole: str) -> range:
    found = _PART.fullmatch(part)
    if found is None:
        raise UserError(
            f"seed is {whole!r}; accepted: a number of 0 to {2**32 - 1}, a range such as 0:16 (0 to 15), or a list "
            "such as 0,3,7"
        )
    first, end = int(found[1]), found[2]
    return range(first, first + 1 if end is None else int(end))
