"""What a source of training data answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import Int

from mvader_jax.bounds import LARGEST_INT, Bound, PositiveFloat
from mvader_jax.data.order import Dataset
from mvader_jax.data.scenes.world import Split
from mvader_jax.errors import UserError
from mvader_jax.settings import Choice

#: One record in so many is held out for validation where a data set has no such split of its own.
HOLD_OUT = 100
HoldOut = Annotated[int, Bound(lambda every: every == 0 or 2 <= every <= LARGEST_INT, "0, or 2 and more")]


class Source(Choice):
    """Settings of where records come from, and what can be had there; one file each in this folder.

    What a source does not have it refuses in one sentence. seed: of the data's config, which makes what is
    drawn; size: side of the target pictures in pixels.
    """

    #: Pictures are drawn as they are read, squares of the size asked for, without end.
    drawn: ClassVar[bool] = False
    #: How several data sets are mixed; by their number of records where there are none.
    weights: tuple[PositiveFloat, ...] = ()

    def pictures(self, split: Split, seed: int, size: int) -> Sequence[Dataset]:
        """Data sets of {"image", "caption"}. Raises UserError where there are none."""
        raise UserError(f"the objective needs pictures; data of source {self.kind!r} has none")

    def pairs(self, split: Split, seed: int, size: int, pictures: bool = False) -> Sequence[Dataset]:
        """Data sets of {"query", "positive", "negative"}, with `pictures` also of "image".

        Raises UserError where there are none.
        """
        raise UserError(f"the contrastive objective needs pairs; data of source {self.kind!r} has none")

    def shapes(self, pictures: Sequence[Any]) -> Sequence[Int[np.ndarray, "N 2"]]:
        """int [N, 2] of each of its data sets of pictures: their heights and widths as stored.

        Raises UserError where these are not known.
        """
        raise UserError(
            f"aspect_buckets are of pictures with shapes of their own; those of source {self.kind!r} have none"
        )

    def interleaved(self, split: Split, seed: int, size: int) -> Sequence[Dataset]:
        """Data sets of {"prompt", "image"} that the source makes itself. Raises UserError where it cannot."""
        raise UserError(
            f"p_interleaved is set, but no interleaved JSONL file is named, and data of source {self.kind!r} "
            "makes no such prompts itself"
        )

    def texts(self, split: Split, seed: int, size: int) -> Sequence[Dataset]:
        """Data sets whose records hold "caption", or "query" and "positive", for training a tokenizer."""
        return self.pictures(split, seed, size)

    def captions(self, pictures: Any, index: int) -> list[str]:
        """All captions of a record of one of its data sets of pictures, for an encoded record to keep."""
        return [pictures.record(index, np.random.default_rng(0))["caption"]]

    def wording(self, split: Split, seed: int, size: int) -> Callable[[int, np.random.Generator], str] | None:
        """(record, generator) -> its caption, where captions are worded anew at each reading and not kept."""
        return None

    def origin(self, seed: int, size: int) -> dict[str, Any]:
        """Which pictures these are, as plain JSON values: an encoded set of them keeps it."""
        raise UserError(f"there are no pictures to encode: data of source {self.kind!r} has none")

    def differs(self, origin: Mapping[str, Any], seed: int, size: int) -> str:
        """In words, what else than the source's pictures an encoded set of that origin is of; empty where of these."""
        own = self.origin(seed, size)
        return (
            "" if origin == own else f"other {self.kind}: {_words(origin)} against the config's {_words(own)}"
        )

    def of_origin(self, origin: Mapping[str, Any], split: Split, seed: int, size: int) -> Dataset:
        """The pictures that an encoded set of that origin was made of."""
        return self.pictures(split, seed, size)[0]


def _words(origin: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in origin.items())


def split_numbers(total: int, split: Split | None, every: int = HOLD_OUT) -> Sequence[int]:
    """Which of `total` records a split has: every `every`-th, from the first on, is held out for validation.

    split: None for all of them; every: 0 holds out none, and both splits are the whole.
    """
    if split is None or not every:
        return range(total)
    return range(0, total, every) if split == "validation" else AllBut(total, every)


class AllBut(Sequence[int]):
    """The numbers below `total` that `every` does not divide."""

    def __init__(self, total: int, every: int) -> None:
        self._length = total - -(-total // every)
        self._every = every

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._length:
            raise IndexError(index)
        return index + index // (self._every - 1) + 1

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        index = np.arange(self._length)
        return np.asarray(index + index // (self._every - 1) + 1, dtype)
