"""Data sets built by `mvader data build` (or any TFDS set of these features), read in any order."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Int, Shaped

from mvader_jax.bounds import PositiveFloat
from mvader_jax.data.building.schema import COLUMN_TYPE, COLUMNS, REPORT
from mvader_jax.data.order import DamagedRecord, Dataset, Record
from mvader_jax.data.scenes.world import Split
from mvader_jax.data.sources.base import Source, split_numbers
from mvader_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Records(Source):
    """Data sets that `mvader data build` wrote."""

    #: Folders, local or gs://; several are one long set, or mixed by `weights`.
    paths: tuple[str, ...] = ()
    #: Proportions of the paths, one for each; by their number of records where there are none.
    weights: tuple[PositiveFloat, ...] = ()

    def pictures(self, split: Split, seed: int, size: int) -> Sequence[Stored]:
        if not self.paths:
            raise UserError("data of source 'records' needs paths: folders that `mvader data build` wrote")
        return [Stored(path, split) for path in self.paths]

    def shapes(self, pictures: Sequence[Stored]) -> Sequence[Int[np.ndarray, "N 2"]]:
        return [data_set.shapes() for data_set in pictures]

    def captions(self, pictures: Stored, index: int) -> list[str]:
        return pictures.captions(index)

    def origin(self, seed: int, size: int) -> dict[str, Any]:
        if len(self.paths) != 1:
            raise UserError("encode each data set into a folder of its own")
        return {"source": self.kind, "path": self.paths[0], "digest": digest(self.paths[0])}

    def differs(self, origin: Mapping[str, Any], seed: int, size: int) -> str:
        # Encoded sets stand in place of the paths, which need not be named, nor the pictures be there.
        known, now = origin.get("digest"), digest(origin["path"])
        same = known is None or now is None or known == now
        return (
            "" if same else f"{origin['path']!r} as it was: its records have changed since; encode it again"
        )

    def of_origin(self, origin: Mapping[str, Any], split: Split, seed: int, size: int) -> Dataset:
        return Stored(origin["path"], split)


class Stored:
    """{"image": bytes of the file, "caption": str}; of several captions one is drawn at each reading.

    path: the folder with dataset_info.json, local or gs://. split: None for all its training records,
    those held out for validation included.
    """

    def __init__(self, path: str, split: Split | None) -> None:
        """Raises UserError if there is no data set at `path`, or it lacks pictures."""
        self.path = path
        self.split = split
        self._open()

    def _open(self) -> None:
        try:
            import tensorflow_datasets as tfds
        except ImportError:
            raise UserError(
                "reading data sets needs the data extra: pip install 'mvader-jax[data]'"
            ) from None
        try:
            builder = tfds.builder_from_directory(os.fspath(self.path))
        except Exception as error:  # TFDS raises whatever the file system does
            raise UserError(f"there is no data set at {self.path!r}: {_first_line(error)}") from None
        splits = builder.info.splits
        name = self.split if self.split in splits else "train"
        if name not in splits:
            raise UserError(f"the data set at {self.path!r} has no split {self.split!r}")
        self._info = splits[name]
        self._features = builder.info.features
        # Of a record's many columns training needs two: parsing them all costs a third of a JPEG's decoding.
        missing = [name for name in ("image", "caption") if name not in self._features]
        if missing:
            raise UserError(
                f"the records of {self.path!r} have no {' and no '.join(missing)}, but {', '.join(self._features)}"
            )
        self._needed = tfds.features.FeaturesDict(
            {name: self._features[name] for name in ("image", "caption")}
        )
        self._decoders = {"image": tfds.decode.SkipDecoding()}
        try:
            self._records = builder.as_data_source(
                split=name, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES
            )
            total = len(self._records)
        except Exception as error:  # as above
            raise UserError(f"the data set at {self.path!r} cannot be opened: {_first_line(error)}") from None
        own = "validation" in splits
        self._numbers = split_numbers(total, None if own else self.split)
        if total and not len(self._numbers):
            raise UserError(
                f"the data set at {self.path!r} has {total} record, which is held out for validation; more are needed"
            )

    def __len__(self) -> int:
        return len(self._numbers)

    def number(self, index: int) -> int:
        """Which record of the files the `index`-th of this split is."""
        return self._numbers[index]

    def record(self, index: int, rng: np.random.Generator) -> Record:
        stored = self._stored(index, self._needed)
        return {**stored, "caption": draw_caption(stored["caption"], rng)}

    def row(self, index: int) -> Record:
        """All that is stored of a record, texts as bytes. Raises DamagedRecord."""
        return self._stored(index, self._features)

    def column(self, name: str) -> list[bytes]:
        """A text of every record, in order. Raises UserError where the records hold none or cannot be read."""
        if name not in self._features:
            raise UserError(f"the records of {self.path!r} have no {name!r}")
        import tensorflow_datasets as tfds

        alone = tfds.features.FeaturesDict({name: self._features[name]})
        try:
            return [
                alone.deserialize_example_np(self._records[number])[name]
                for number in map(self.number, range(len(self)))
            ]
        except Exception as error:  # as in `_stored`
            raise UserError(f"{self.path!r} cannot be read: {_first_line(error)}") from None

    def _stored(self, index: int, features: Any) -> Record:
        try:
            found: Record = features.deserialize_example_np(
                self._records[self.number(index)], decoders=self._decoders
            )
        except Exception as error:  # the reader raises RuntimeError, TFDS's parser several kinds
            raise DamagedRecord(f"it cannot be read: {_first_line(error)}") from None
        return found

    def captions(self, index: int) -> list[str]:
        """All captions of a record; none where it cannot be read."""
        try:
            return _text(self._stored(index, self._needed)["caption"]).split("\n")
        except DamagedRecord:
            return []

    def shapes(self) -> Int[np.ndarray, "{len(self)} 2"]:
        """int [N, 2]: height and width of every picture. Raises UserError as `columns`."""
        columns = self.columns()
        return np.stack([columns["height"], columns["width"]], axis=1)

    def columns(self) -> Shaped[np.ndarray, " {len(self)}"]:
        """`schema.COLUMN_TYPE` [N] of all its records; read one by one where the data set came without.

        Raises UserError if the records hold no sizes.
        """
        file = epath.Path(self.path) / COLUMNS
        if file.exists():
            try:
                with file.open("rb") as stream:
                    return np.asarray(np.load(stream)[np.asarray(self._numbers)], COLUMN_TYPE)
            except (ValueError, OSError, EOFError, LookupError) as error:
                raise UserError(f"{os.fspath(file)!r} cannot be read: {_first_line(error)}") from None
        rows = np.zeros(len(self), COLUMN_TYPE)
        for index in range(len(self)):
            try:
                record = self.row(index)
                rows[index] = (record["width"], record["height"], record.get("aesthetic", np.nan))
            except DamagedRecord:
                rows[index] = (1, 1, np.nan)
            except KeyError as error:
                raise UserError(f"the records of {self.path!r} have no {error.args[0]!r}") from None
        return rows

    @property
    def files(self) -> list[str]:
        return [os.fspath(path) for path in self._info.filepaths]

    @property
    def bytes(self) -> int:
        """Of all its records."""
        return int(self._info.num_bytes)

    def where(self, index: int) -> str:
        number = self.number(index)
        for path, length in zip(self._info.filepaths, self._info.shard_lengths, strict=True):
            if number < length:
                return f"record {number} of {os.fspath(path)}"
            number -= length
        raise IndexError(index)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "split": self.split}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path, self.split = state["path"], state["split"]
        self._open()


def digest(path: str) -> str | None:
    """What tells one data set from another that was built in its place; None where there is none."""
    try:
        report = epath.Path(path) / REPORT
        known = json.loads(report.read_text())["report"].get("digest") if report.exists() else None
        return known or hashlib.sha256((epath.Path(path) / "dataset_info.json").read_bytes()).hexdigest()
    except (OSError, ValueError, KeyError, AttributeError):
        return None


def draw_caption(stored: bytes | str, rng: np.random.Generator) -> str:
    """One of a record's captions, which stand one a line. Raises DamagedRecord for what is no text."""
    captions = _text(stored).split("\n")
    return captions[int(rng.integers(len(captions)))] if len(captions) > 1 else captions[0]


def _text(stored: bytes | str) -> str:
    try:
        return stored.decode("utf-8") if isinstance(stored, bytes) else stored
    except UnicodeDecodeError:
        raise DamagedRecord("its caption is not UTF-8") from None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
