"""Aspect buckets: whole batches of pictures of about one shape, cropped to that shape's own sides."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Int

from mvader_jax.data.decode import Size
from mvader_jax.data.order import Damage, Dataset, Reader, Record
from mvader_jax.errors import UserError


class Subset:
    """Some records of the source number `which`, numbered anew."""

    def __init__(self, which: int, source: Dataset, numbers: Int[np.ndarray, " N"]) -> None:
        self.which, self.source, self.numbers = which, source, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def record(self, index: int, rng: np.random.Generator) -> Record:
        return self.source.record(int(self.numbers[index]), rng)

    def where(self, index: int) -> str:
        return self.source.where(int(self.numbers[index]))


class _BucketReader(Reader):
    """The records of one bucket; damage is reported by the numbers of the whole sources."""

    def read(self, position: int, decode: Callable[[Record], Record]) -> tuple[Record, list[Damage]]:
        record, passed = super().read(position, decode)
        return record, [self._named(damage) for damage in passed]

    def _named(self, damage: Damage) -> Damage:
        subset = self.sources[damage.source]
        assert isinstance(subset, Subset)
        index = int(subset.numbers[damage.index])
        return dataclasses.replace(damage, source=subset.which, index=index, of=len(subset.source))


class Buckets:
    """Every bucket is an endless shuffled order of its own; steps take the buckets in the proportion of
    their records, so that every record is seen equally often.

    As with `Reader`, what a step reads follows from its number alone.
    """

    def __init__(
        self,
        sources: Sequence[Dataset],
        shapes: Sequence[Int[np.ndarray, "N 2"]],
        sides: Sequence[Size],
        weights: Sequence[float],
        seed: int,
        shuffle: bool,
    ) -> None:
        """shapes: int [N, 2], height and width of every record of each source. sides: of the buckets.

        weights: as of `Reader`. Raises UserError for sides that are no positive numbers, and for a mixture
        in which a source has no picture near a bucket that others fill.
        """
        if not all(len(side) == 2 and min(side) > 0 for side in sides):
            raise UserError(
                f"aspect_buckets are {tuple(sides)}; expected pairs of height and width in pixels"
            )
        chosen = [nearest_bucket(shape, sides) for shape in shapes]
        self.sides: list[Size] = []
        self.readers: list[Reader] = []
        for bucket, side in enumerate(sides):
            parts = [
                Subset(which, source, np.flatnonzero(found == bucket).astype(np.int32))
                for which, (source, found) in enumerate(zip(sources, chosen, strict=True))
            ]
            filled = [part for part in parts if len(part)]
            if not filled:
                continue
            if weights and len(filled) < len(parts):
                raise UserError(
                    f"one of the mixed data sets has no picture near the aspect bucket {tuple(side)}; leave it out"
                )
            self.readers.append(_BucketReader(filled, weights, seed + 1000 * (bucket + 1), shuffle))
            self.sides.append((side[0], side[1]))
        self._sizes = [len(reader) for reader in self.readers]

    def __len__(self) -> int:
        return sum(self._sizes)

    def at(self, step: int) -> tuple[Reader, int, Size | None]:
        """(the bucket's records, which of its batches, its sides) of a step."""
        bucket, number = turn(step, self._sizes)
        return self.readers[bucket], number, self.sides[bucket]


def nearest_bucket(shapes: Int[np.ndarray, "N 2"], sides: Sequence[Size]) -> Int[np.ndarray, " N"]:
    """int [N]: for shapes [N, 2] (height, width) the bucket whose ratio of sides is nearest, in logarithms."""
    ratios = np.log(np.maximum(shapes[:, 1], 1) / np.maximum(shapes[:, 0], 1))
    buckets = np.log(np.array([width / height for height, width in sides]))
    return np.argmin(np.abs(ratios[:, None] - buckets), axis=1)


def turn(step: int, sizes: Sequence[int]) -> tuple[int, int]:
    """(whose turn step number `step` is, which of its turns), each getting its share of all turns evenly.

    The first takes floor(step * its share) turns before the step; the others divide what is left alike.
    """
    left = sum(sizes)
    for number, size in enumerate(sizes):
        before = step * size // left
        if (step + 1) * size // left > before:
            return number, before
        step, left = step - before, left - size
    raise AssertionError("the last one takes all turns that are left")
