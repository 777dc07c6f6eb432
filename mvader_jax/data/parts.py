"""The inputs of a build, cut into parts that are read one a process: img2dataset's shards.

img2dataset writes `00000.tar` (webdataset), `00000/` (files) or pictures inside `00000.parquet`; beside
the first two, `00000.parquet` holds the metadata of every row it tried, failures included.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import tarfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

from mvader_jax.data.admit import Rejected, Sample
from mvader_jax.data.schema import columns
from mvader_jax.errors import UserError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")


class Part(Protocol):
    """A piece of the input with a name of its own; goes to a worker process by pickle."""

    @property
    def name(self) -> str: ...

    def samples(self) -> Iterator[Sample]:
        """Every sample the part should hold, those it has lost included. Notes what it stumbles over in
        `problems`."""
        ...

    def keys(self) -> list[str] | None:
        """The keys of its samples where they can be had without reading it; None otherwise."""
        ...

    def columns(self) -> set[str] | None:
        """Its metadata columns (of `schema.SPELLINGS`); None where it has no metadata."""
        ...


def find_shards(source: str | os.PathLike[str]) -> list[Part]:
    """img2dataset's shards in a folder, in order. Raises UserError where there are none."""
    root = pathlib.Path(source)
    if not root.is_dir():
        raise UserError(f"{os.fspath(source)!r} is no folder; expected the output folder of img2dataset")
    entries = sorted(root.iterdir())
    tables = {entry.stem: str(entry) for entry in entries if entry.suffix == ".parquet"}
    parts: list[Part] = []
    for entry in entries:
        if entry.suffix == ".tar":
            parts.append(TarPart(str(entry), tables.pop(entry.stem, None)))
        elif entry.is_dir() and (entry.name in tables or entry.name.isdigit()):
            parts.append(FolderPart(str(entry), tables.pop(entry.name, None)))
    parts += [ParquetPart(path) for path in tables.values()]
    if not parts:
        raise UserError(
            f"{os.fspath(source)!r} holds no .tar, no .parquet and no numbered folder; expected img2dataset's output"
        )
    return sorted(parts, key=lambda part: part.name)


@dataclasses.dataclass
class TarPart:
    """A webdataset tar: the members of a sample follow one another and share their name up to the first dot."""

    path: str
    table: str | None
    problems: list[str] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        return pathlib.Path(self.path).stem

    def samples(self) -> Iterator[Sample]:
        rows = _read_table(self.table, self.problems)
        if rows is None:
            self.problems.append(f"{self.path}: no parquet beside it; metadata from its own JSON")
        seen: set[str] = set()
        cut: list[str] = []
        try:
            with tarfile.open(self.path) as tar:
                for key, members in _grouped(tar, cut):
                    seen.add(key)
                    yield _tar_sample(tar, key, members, (rows or {}).get(key), bool(rows))
        except (tarfile.TarError, OSError, EOFError) as error:
            cut.append(str(error))
        if cut:
            self.problems.append(f"{self.path}: the tar is cut or damaged: {cut[0]}")
        yield from _lost(rows, seen, "lost in a cut tar" if cut else None)

    def keys(self) -> list[str] | None:
        if self.table is not None and (keys := _table_keys(self.table)) is not None:
            return keys
        keys = []
        try:
            with tarfile.open(self.path) as tar:
                keys = [key for key, _ in _grouped(tar, [])]
        except (tarfile.TarError, OSError, EOFError):
            pass
        return keys

    def columns(self) -> set[str] | None:
        known = _table_columns(self.table)
        if known is not None:
            return known
        try:
            with tarfile.open(self.path) as tar:
                for member in tar:
                    if member.name.endswith(".json"):
                        return set(columns(list(_json(_member(tar, member)()))))
        except (tarfile.TarError, OSError, EOFError, Rejected):
            pass
        return None


@dataclasses.dataclass
class FolderPart:
    """A folder of `key.jpg`, `key.txt` and `key.json`."""

    path: str
    table: str | None
    problems: list[str] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        return pathlib.Path(self.path).name

    def samples(self) -> Iterator[Sample]:
        rows = _read_table(self.table, self.problems)
        if rows is None:
            self.problems.append(f"{self.path}: no parquet beside it; metadata from its own JSON")
        groups = self._groups()
        for key, files in groups.items():
            row = (rows or {}).get(key)
            metadata = row if row is not None else _named(_json_file(files.get("json")))
            image = next((_file(files[s]) for s in IMAGE_SUFFIXES if s in files), None)
            yield Sample(key, image, _file(files["txt"]) if "txt" in files else None, metadata)
        yield from _lost(rows, set(groups), None)

    def keys(self) -> list[str] | None:
        keys = _table_keys(self.table) if self.table is not None else None
        return keys if keys is not None else list(self._groups())

    def columns(self) -> set[str] | None:
        known = _table_columns(self.table)
        if known is not None:
            return known
        for files in self._groups().values():
            if "json" in files:
                return set(_named(_json_file(files["json"])))
        return None

    def _groups(self) -> dict[str, dict[str, str]]:
        groups: dict[str, dict[str, str]] = {}
        for entry in sorted(os.scandir(self.path), key=lambda e: e.name):
            key, _, suffix = entry.name.rpartition(".")
            if key and entry.is_file():
                groups.setdefault(key, {})[suffix.lower()] = entry.path
        return groups


@dataclasses.dataclass
class ParquetPart:
    """A parquet file with the pictures' bytes in a column named by their format."""

    path: str
    problems: list[str] = dataclasses.field(default_factory=list)

    @property
    def name(self) -> str:
        return pathlib.Path(self.path).stem

    def samples(self) -> Iterator[Sample]:
        import pyarrow.parquet

        done, total = 0, 0
        try:
            file = pyarrow.parquet.ParquetFile(self.path)
            total = file.metadata.num_rows
            names = file.schema_arrow.names
            image = next((name for name in names if name.lower() in IMAGE_SUFFIXES), None)
            for batch in file.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    data = row.pop(image, None) if image else None
                    metadata = _named(row)
                    done += 1
                    yield Sample(
                        _key(metadata.get("key"), f"{self.name}/{done - 1}"), _bytes(data), None, metadata
                    )
        except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
            self.problems.append(f"{self.path}: the parquet is cut or damaged: {error}")
        for number in range(done, total):
            yield Sample(
                f"{self.name}/{number}", _rejecting("lost in a cut parquet"), None, {"caption": "lost"}
            )

    def keys(self) -> list[str] | None:
        return _table_keys(self.path)

    def columns(self) -> set[str] | None:
        return _table_columns(self.path)


def _grouped(tar: tarfile.TarFile, cut: list[str]) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    key: str | None = None
    members: dict[str, tarfile.TarInfo] = {}
    try:
        for member in tar:
            if not member.isfile():
                continue
            name, _, suffix = pathlib.PurePosixPath(member.name).name.partition(".")
            suffix = suffix.lower()
            if key is not None and (name != key or suffix in members):
                yield key, members
                members = {}
            key = name
            members[suffix] = member
    except (tarfile.TarError, OSError, EOFError) as error:
        cut.append(str(error))
    if key is not None:
        yield key, members


def _tar_sample(
    tar: tarfile.TarFile,
    key: str,
    members: Mapping[str, tarfile.TarInfo],
    row: Mapping[str, Any] | None,
    has_table: bool,
) -> Sample:
    metadata = row
    if metadata is None:
        # A sample that the table does not know is asked by its own JSON.
        del has_table
        metadata = {}
        if "json" in members:
            try:
                metadata = _named(_json(_member(tar, members["json"])()))
            except Rejected:
                metadata = {}
    image = next((_member(tar, members[s]) for s in IMAGE_SUFFIXES if s in members), None)
    caption = _member(tar, members["txt"]) if "txt" in members else None
    return Sample(key, image, caption, metadata)
