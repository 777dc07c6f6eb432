"""The inputs of a build, cut into parts that worker processes read: img2dataset's shards.

img2dataset writes `00000.tar` (webdataset), `00000/` (files) or pictures inside `00000.parquet`; beside
the first two, `00000.parquet` holds the metadata of every row it tried, failures included. Its keys are those of
the whole set; a shard of somebody else's counts its own.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

from mvader_jax.data.building import tars
from mvader_jax.data.building.admit import Rejected, Sample, rejecting
from mvader_jax.data.building.captions import IMAGE_SUFFIXES
from mvader_jax.data.building.columns import NONE, Columns
from mvader_jax.data.building.tables import (
    Row,
    Table,
    Unreadable,
    key_of,
    parse_json,
    read_rows,
    table_columns,
    table_keys,
)
from mvader_jax.errors import UserError

#: {suffix: its bytes when called} of one sample.
Members = Mapping[str, Callable[[], bytes]]


class Part(Protocol):
    """A piece of the input with a name of its own; travels to a worker process by pickle."""

    @property
    def name(self) -> str: ...

    def samples(self, problems: list[str]) -> Iterator[Sample]:
        """Every sample the part holds or should hold; what is wrong with the part goes to `problems`."""
        ...

    def key_list(self) -> list[str]:
        """The keys of its samples, cheaply; duplicates among the parts are found by them."""
        ...

    def columns(self) -> set[str] | None:
        """Its metadata columns (of `schema.SPELLINGS`); None where it has no metadata."""
        ...

    def files(self) -> Iterable[pathlib.Path | str]:
        """What it is read from, or in words what it says of itself: a build knows by them what it is of."""
        ...


def find_shards(source: str | os.PathLike[str]) -> list[Part]:
    """img2dataset's shards in a folder, by name. Raises UserError where there are none."""
    root = pathlib.Path(source)
    if not root.is_dir():
        raise UserError(f"{os.fspath(source)!r} is no folder; expected the output folder of img2dataset")
    parts = shards_of(sorted(root.iterdir()))
    if not parts:
        raise UserError(
            f"{os.fspath(source)!r} holds no .tar, no .parquet and no numbered folder; "
            "expected the output folder of img2dataset"
        )
    return parts


def shards_of(entries: Sequence[pathlib.Path]) -> list[Part]:
    """The shards among files and folders, by name; a table of a shard's name belongs to it."""
    tables = {entry.stem: str(entry) for entry in entries if entry.suffix == ".parquet" and entry.is_file()}
    parts: list[Part] = []
    for entry in entries:
        name = tars.stem(entry)
        if name is not None and entry.is_file():
            parts.append(TarPart(str(entry), tables.pop(name, None)))
        elif entry.is_dir() and (entry.name in tables or entry.name.isdigit()):
            parts.append(FolderPart(str(entry), tables.pop(entry.name, None)))
    parts += [ParquetPart(path) for path in tables.values()]
    return sorted(parts, key=lambda part: part.name)


@dataclasses.dataclass(frozen=True)
class _Grouped:
    """A shard whose samples are files named alike, with a table of them beside it or none."""

    path: str
    table: str | None
    chosen: Columns = NONE

    @property
    def name(self) -> str:
        path = pathlib.Path(self.path)
        return tars.stem(path) or path.name

    def groups(self, cut: list[str]) -> Iterable[tuple[str, Members]]:
        """(name, members) of every sample; an end before the end goes to `cut`."""
        raise NotImplementedError

    def samples(self, problems: list[str]) -> Iterator[Sample]:
        rows = read_rows(self.table, problems) if self.table else None
        if rows is None and (self.table or self.chosen == NONE):
            problems.append(
                f"{self.path}: no readable parquet beside it; the metadata is that of its JSON files"
            )
        known = {key: row for row in rows or () if (key := key_of(row)) is not None}
        seen: set[str] = set()
        cut: list[str] = []
        prefix = self._prefix()
        for name, members in self.groups(cut):
            # A table knows a sample by its file's name, in whichever folder of the shard that is.
            key = name if name in known else name.rpartition("/")[2]
            row = known.get(key)
            seen.add(key)
            if "json" in members and (row is None or self.chosen.caption not in ("", "txt")):
                row = {**(row or {}), **parse_json(_read_or_empty(members["json"]), self.chosen.caption)}
            wanted = (self.chosen.image,) if self.chosen.image else IMAGE_SUFFIXES
            image = next((members[s] for s in wanted if s in members), None)
            caption = members.get(self.chosen.caption or "txt")
            yield Sample(key if key in known else prefix + name, image, caption, row or {})
        if cut:
            problems.append(f"{self.path}: the shard is cut or damaged: {cut[0]}")
        yield from _absent(rows or (), seen, _lost if cut else None)

    def key_list(self) -> list[str]:
        keys = table_keys(self.table) if self.table else None
        if keys is not None:
            return keys
        prefix = self._prefix()
        return [prefix + name for name, _ in self.groups([])]

    def columns(self) -> set[str] | None:
        known = table_columns(self.table) if self.table else None
        if known is not None:
            return known
        found = self._first_json()
        return None if found is None else set(found)

    def files(self) -> Iterable[pathlib.Path | str]:
        return [*(pathlib.Path(path) for path in (self.path, self.table) if path), *_told(self.chosen)]

    def _first_json(self) -> Row | None:
        """The metadata of the first sample that has any of its own."""
        for _, members in self.groups([]):
            if "json" in members:
                return parse_json(_read_or_empty(members["json"]))
        return None

    def _prefix(self) -> str:
        """What makes the shard's keys those of the whole set: nothing where img2dataset wrote them."""
        if self.table and "key" in (table_columns(self.table) or ()):
            return ""
        return "" if "key" in (self._first_json() or {}) else f"{self.name}/"


@dataclasses.dataclass(frozen=True)
class TarPart(_Grouped):
    """A webdataset tar."""

    def groups(self, cut: list[str]) -> Iterable[tuple[str, Members]]:
        return ((group.key, group.members) for group in tars.groups(self.path, cut))


@dataclasses.dataclass(frozen=True)
class FolderPart(_Grouped):
    """A folder of `key.jpg`, `key.txt` and `key.json`."""

    def groups(self, cut: list[str]) -> Iterable[tuple[str, Members]]:
        found: dict[str, dict[str, FileBytes]] = collections.defaultdict(dict)
        try:
            entries = sorted(os.scandir(self.path), key=lambda entry: entry.name)
        except OSError as error:
            cut.append(error.strerror or str(error))
            return []
        for entry in entries:
            key, _, suffix = entry.name.rpartition(".")
            if key and not entry.is_dir():
                suffix = suffix.lower()
                found[key][suffix] = FileBytes(entry.path, "caption" if suffix == "txt" else "image")
        return found.items()

    def files(self) -> Iterable[pathlib.Path | str]:
        # The folder's own time changes when a file comes or goes, and those of its files when they do.
        return [*super().files(), *sorted(pathlib.Path(self.path).iterdir())]


@dataclasses.dataclass(frozen=True)
class ParquetPart:
    """A parquet file with the pictures' bytes in a column: the chosen one, else one that is named by their format."""

    path: str
    chosen: Columns = NONE

    @property
    def name(self) -> str:
        return pathlib.Path(self.path).stem

    def samples(self, problems: list[str]) -> Iterator[Sample]:
        done, total = 0, 0
        try:
            table = Table(self.path)
            # A damaged count may be any number; a row takes some of the file.
            total = min(table.rows, pathlib.Path(self.path).stat().st_size)
            image = self.chosen.image or table.named_as(IMAGE_SUFFIXES)
            wanted = {"picture": image or "", "caption": self.chosen.caption}
            there = {column: name for column, name in wanted.items() if name in table.names}
            missing = [name for column, name in wanted.items() if name and column not in there]
            problems += [f"{self.path}: it has no column {name!r}" for name in missing]
            for row in table.read(there):
                data = row.pop("picture", None)
                # `datasets` keeps a picture as its bytes and its path.
                data = data.get("bytes") if isinstance(data, dict) else data
                key = key_of(row) or f"{self.name}/{done}"
                done += 1
                yield Sample(key, None if data is None else Held(data), None, row)
        except (Unreadable, OSError) as error:
            problems.append(f"{self.path}: the parquet is cut or damaged: {error}")
        for number in range(done, total):
            yield Sample(f"{self.name}/{number}", _lost, _lost, {})

    def key_list(self) -> list[str]:
        return table_keys(self.path) or []

    def columns(self) -> set[str] | None:
        return table_columns(self.path)

    def files(self) -> Iterable[pathlib.Path | str]:
        return [pathlib.Path(self.path), *_told(self.chosen)]


@dataclasses.dataclass(frozen=True)
class FileBytes:
    """The content of a file when called. Raises Rejected if it cannot be read; `what` names its role."""

    path: str
    what: str = "file"

    def __call__(self) -> bytes:
        try:
            state = os.stat(self.path)
            # A pipe would be waited for without end.
            if not stat.S_ISREG(state.st_mode):
                raise Rejected(f"{self.what} is no file")
            if state.st_size > tars.LARGEST:
                raise Rejected("file larger than 1 GiB")
            return pathlib.Path(self.path).read_bytes()
        except FileNotFoundError:
            raise Rejected(f"{self.what} missing") from None
        except (OSError, ValueError):
            raise Rejected(f"{self.what} cannot be read") from None


@dataclasses.dataclass(frozen=True)
class Held:
    """Bytes at hand."""

    data: bytes

    def __call__(self) -> bytes:
        return self.data


_lost = rejecting(tars.LOST)


def _told(chosen: Columns) -> list[str]:
    """Chosen columns as a build is known by; nothing where none were, as in builds of before."""
    return [] if chosen == NONE else [repr(chosen)]


def _read_or_empty(read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except Rejected:
        return b""


def _absent(rows: Iterable[Row], seen: set[str], image: Any) -> Iterator[Sample]:
    """The rows of the table that have no picture: failed downloads, and what a damaged shard has lost."""
    listed: set[str] = set()
    for row in rows:
        key = str(key_of(row))
        if key not in seen or key in listed:
            yield Sample(key, image, None, row)
        listed.add(key)
