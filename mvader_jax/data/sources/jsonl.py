"""Records from JSON lines: pairs with hard negatives, and interleaved prompts with their target pictures."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int64

from mvader_jax.bounds import PositiveFloat
from mvader_jax.data.order import DamagedRecord, Dataset, Record
from mvader_jax.data.scenes.world import Split
from mvader_jax.data.sources.base import HOLD_OUT, HoldOut, Source, split_numbers
from mvader_jax.errors import UserError
from mvader_jax.prompt.elements import Prompt


@dataclasses.dataclass(frozen=True)
class Pairs(Source):
    """Texts that belong together, with hard negatives, in JSON lines (see `PairLines`)."""

    #: Files, local or gs://; several are one long set, or mixed by `weights`.
    paths: tuple[str, ...] = ()
    #: Proportions of the paths, one for each; by their number of records where there are none.
    weights: tuple[PositiveFloat, ...] = ()
    #: One line in so many is for validation, from the first on; 0 trains on all lines, and validates on them.
    hold_out: HoldOut = HOLD_OUT

    def pairs(self, split: Split, seed: int, size: int, pictures: bool = False) -> Sequence[Dataset]:
        if pictures:
            raise UserError("data of source 'pairs' has no pictures beside its pairs; scenes have")
        if not self.paths:
            raise UserError("data of source 'pairs' needs paths: JSONL files")
        return [PairLines([path], split, self.hold_out) for path in self.paths]

    def texts(self, split: Split, seed: int, size: int) -> Sequence[Dataset]:
        return self.pairs(split, seed, size)


class JsonLines:
    """Lines of several files by number; only the offsets of the lines are kept in memory.

    One line in `hold_out`, from the first on, is held out for validation.
    """

    def __init__(self, paths: Sequence[str], split: Split | None = None, hold_out: int = HOLD_OUT) -> None:
        """split: None for all lines. Raises UserError for a file that is missing or has no lines."""
        self.paths = tuple(paths)
        if not self.paths:
            raise UserError("no JSONL file is named in the data's paths")
        self._starts: list[Int64[np.ndarray, " lines"]] = []
        for path in self.paths:
            self._starts.append(_line_starts(path))
            if not len(self._starts[-1]):
                raise UserError(f"{path!r} has no lines; expected one JSON object a line")
        self._ends = np.cumsum([len(starts) for starts in self._starts])
        total = int(self._ends[-1])
        self._numbers = split_numbers(total, split, hold_out)
        if not len(self._numbers):
            raise UserError(
                f"{', '.join(self.paths)} has {total} line, which is held out for validation; more are needed"
            )

    def __len__(self) -> int:
        return len(self._numbers)

    def read(self, index: int) -> tuple[dict[str, Any], str]:
        """(object, folder of its file). Raises DamagedRecord."""
        number, line = self._place(index)
        with epath.Path(self.paths[number]).open("rb") as file:
            file.seek(int(self._starts[number][line]))
            text = file.readline()
        try:
            value = json.loads(text)
        except ValueError as error:
            raise DamagedRecord(f"it is not JSON: {error}") from None
        except RecursionError:
            raise DamagedRecord("it is nested too deeply") from None
        if not isinstance(value, dict):
            raise DamagedRecord("it is no JSON object")
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:  # half of a surrogate pair can be spelled in JSON
            raise DamagedRecord("it holds text that is no Unicode") from None
        return value, os.path.dirname(self.paths[number])

    def where(self, index: int) -> str:
        number, line = self._place(index)
        return f"record {line} of {self.paths[number]}"

    def _place(self, index: int) -> tuple[int, int]:
        """(file, line) of a record, both from 0."""
        line = self._numbers[index]
        number = int(np.searchsorted(self._ends, line, side="right"))
        return number, line - (int(self._ends[number - 1]) if number else 0)


class PairLines(JsonLines):
    """{"query": str, "positive": str, "negatives": [str, ...]} a line; one negative is drawn at each reading.

    Records: {"query", "positive", "negative"}.
    """

    def record(self, index: int, rng: np.random.Generator) -> Record:
        value, _ = self.read(index)
        negatives = value.get("negatives")
        texts = [value.get("query"), value.get("positive")]
        if not isinstance(negatives, list) or not negatives:
            raise DamagedRecord("it has no negatives")
        texts.append(negatives[int(rng.integers(len(negatives)))])
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise DamagedRecord("its query, positive or negative is no text")
        return dict(zip(("query", "positive", "negative"), texts, strict=True))


class Interleaved(JsonLines):
    """{"prompt": [elements as `Prompt.from_json` takes them], "target": path} a line, paths relative to it.

    Records: {"prompt": Prompt, "image": path of the target}.
    """

    def record(self, index: int, rng: np.random.Generator) -> Record:
        value, root = self.read(index)
        if not isinstance(value.get("target"), str) or not value["target"]:
            raise DamagedRecord("it has no target")
        try:
            prompt = Prompt.from_json(value.get("prompt"), root or ".")
        except UserError as error:
            raise DamagedRecord(str(error)) from None
        return {"prompt": prompt, "image": os.path.join(root, value["target"])}


def _line_starts(path: str) -> Int64[np.ndarray, " lines"]:
    try:
        with epath.Path(path).open("rb") as file:
            starts, at = [], 0
            for line in file:
                if line.strip():
                    starts.append(at)
                at += len(line)
    except OSError as error:
        raise UserError(f"cannot read {path!r}: {error.strerror or error}") from None
    return np.asarray(starts, np.int64)
