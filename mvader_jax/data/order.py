"""From a position in the run to a decoded record: order, mixtures, and records that cannot be read.

A run is an endless sequence of positions. Which record stands at a position follows from the seed
alone, so that nothing but the position needs saving, whatever the number of processes.
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import sys
import typing
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, runtime_checkable

import grain
import numpy as np
from grain.experimental import index_shuffle

from mvader_jax.data.unicode import printable
from mvader_jax.errors import UserError

Record = dict[str, Any]

_PURPOSES = {"record": 0, "decode": 1}
#: Neighbours tried in place of a damaged record before giving up.
_SUBSTITUTES = 100


class DamagedRecord(ValueError):
    """A record that cannot be read or decoded, and why."""


@runtime_checkable
class Dataset(Protocol):
    """Records by number."""

    def __len__(self) -> int: ...

    def record(self, index: int, rng: np.random.Generator) -> Record:
        """The record; `rng` makes its random choices (the wording of a caption). Raises DamagedRecord."""
        ...

    def where(self, index: int) -> str:
        """The record's place in words, with its file."""
        ...


@dataclasses.dataclass(frozen=True)
class Damage:
    """A record that was passed over: which source, which number of its `of` records, why."""

    source: int
    index: int
    reason: str
    of: int


class _Lazy:
    """A generator that is made at its first use: many records make no choice."""

    def __init__(self, make: Callable[[], np.random.Generator]) -> None:
        self._make = make
        self._made: np.random.Generator | None = None

    def __getattr__(self, name: str) -> Any:
        if self._made is None:
            self._made = self._make()
        return getattr(self._made, name)

    #: What it stands for, to those who ask by `isinstance`.
    __class__ = property(lambda self: np.random.Generator)


class _Epochs(Sequence[int]):
    """The numbers from `start` to below `stop`, again and again, in another order each time.

    The order is that of grain's `shuffle` and `repeat`, without what they count at every look.
    """

    def __init__(self, start: int, stop: int, seed: int, shuffle: bool) -> None:
        self._start, self._length = start, stop - start
        # Seeds of neighbouring numbers must not give the same permutations an epoch apart.
        mixed = int(np.random.SeedSequence([seed, start]).generate_state(1)[0])
        self._seed = mixed if shuffle else None

    def __len__(self) -> int:
        return sys.maxsize

    def __getitem__(self, position: Any) -> Any:
        epoch, place = divmod(position, self._length)
        if self._seed is not None:
            seed = (self._seed + epoch) % 2**32
            place = index_shuffle(place, max_index=self._length - 1, seed=seed, rounds=4)
        return self._start + place


class Reader:
    """Several sources in one shuffled endless order, one epoch after the other.

    Without weights the sources are one long set and every record is seen once an epoch; with weights
    they are mixed in these proportions, each in epochs of its own.
    """

    def __init__(
        self, sources: Sequence[Dataset], weights: Sequence[float], seed: int, shuffle: bool
    ) -> None:
        if not sources or not all(len(source) for source in sources):
            raise UserError("a data set has no records")
        if weights and (len(weights) != len(sources) or not all(w > 0 for w in weights)):
            raise UserError(
                f"weights are {tuple(weights)}; expected a number above 0 for each of {len(sources)} paths"
            )
        self.sources = tuple(sources)
        self._seed = seed
        self._starts = [0, *itertools.accumulate(len(source) for source in sources)]
        if weights and len(sources) > 1:
            parts = [
                grain.MapDataset.source(_Epochs(start, stop, seed + number, shuffle))
                for number, (start, stop) in enumerate(zip(self._starts, self._starts[1:], strict=False))
            ]
            self.order = grain.MapDataset.mix(parts, list(weights))
        else:
            self.order = _Epochs(0, self._starts[-1], seed, shuffle)

    def __len__(self) -> int:
        """Records in all sources together."""
        return self._starts[-1]

    def at(self, step: int) -> tuple[Reader, int, tuple[int, int] | None]:
        """(what a step reads from, which of its batches, sides of its pictures): `Buckets` choose here."""
        return self, step, None

    def data_set(self, position: int) -> int:
        """Which of the sources the record at a position is of."""
        return bisect.bisect_right(self._starts, int(self.order[position])) - 1

    def rng(self, position: int, purpose: Literal["record", "decode"] = "record") -> np.random.Generator:
        """The random choices that belong to a position of the run."""
        return np.random.default_rng([self._seed, position, _PURPOSES[purpose]])

    def read(self, position: int, decode: Callable[[Record], Record]) -> tuple[Record, list[Damage]]:
        """The decoded record at a position, and what was passed over to find one.

        A damaged record is replaced by the next one in its source that is whole: the choice depends on
        nothing else, so that a resumed run makes the same. Raises UserError after 100 in a row, or all there are.
        """
        number, which = int(self.order[position]), self.data_set(position)
        source, first = self.sources[which], number - self._starts[which]
        passed: list[Damage] = []
        # One generator for all attempts: a substitute must not repeat the choices that did not do.
        rng = typing.cast(np.random.Generator, _Lazy(lambda: self.rng(position)))
        for step in range(min(_SUBSTITUTES, len(source))):
            index = (first + step) % len(source)
            try:
                return decode(source.record(index, rng)), passed
            except (DamagedRecord, UserError) as error:
                reason = printable(f"{source.where(index)}: {error}")
                passed.append(Damage(which, index, reason, len(source)))
        raise UserError(f"{len(passed)} damaged records in a row; the last: {passed[-1].reason}")
