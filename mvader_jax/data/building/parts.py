"""The inputs of a build, cut into parts that worker processes read: img2dataset's shards.

img2dataset writes `00000.tar` (webdataset), `00000/` (files) or pictures inside `00000.parquet`; beside
the first two, `00000.parquet` holds the metadata of every row it tried, failures included.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import tarfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Protocol

from mvader_jax.data.building.admit import Rejected, Sample, rejecting
from mvader_jax.data.building.tables import Row, named, parse_json, read_rows, table_columns, table_keys
from mvader_jax.errors import UserError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
_TAR_ERRORS = (tarfile.TarError, OSError, EOFError)


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


def find_shards(source: str | os.PathLike[str]) -> list[Part]:
    """img2dataset's shards in a folder, by name. Raises UserError where there are none."""
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
            f"{os.fspath(source)!r} holds no .tar, no .parquet and no numbered folder; "
            "expected the output folder of img2dataset"
        )
    return sorted(parts, key=lambda part: part.name)


@dataclasses.dataclass(frozen=True)
class TarPart:
    """A webdataset tar: a sample's members follow one another, named alike up to the first dot."""

    path: str
    table: str | None

    @property
    def name(self) -> str:
        return pathlib.Path(self.path).stem

    def samples(self, problems: list[str]) -> Iterator[Sample]:
        rows = _rows(self.table, self.path, problems)
        known = _by_key(rows)
        seen: set[str] = set()
        cut: list[str] = []
        for key, members in _tar_groups(self.path, cut):
            seen.add(key)
            row = known.get(key)
            if row is None and "json" in members:
                row = parse_json(_read_or_empty(members["json"]))
            image = next((members[s] for s in IMAGE_SUFFIXES if s in members), None)
            yield Sample(key, image, members.get("txt"), row or {})
        if cut:
            problems.append(f"{self.path}: the tar is cut or damaged: {cut[0]}")
        yield from _absent(rows, seen, _lost if cut else None)

    def key_list(self) -> list[str]:
        keys = table_keys(self.table) if self.table else None
        return keys if keys is not None else [key for key, _ in _tar_groups(self.path, [])]

    def columns(self) -> set[str] | None:
        known = table_columns(self.table) if self.table else None
        if known is not None:
            return known
        for _, members in _tar_groups(self.path, []):
            if "json" in members:
                return set(parse_json(_read_or_empty(members["json"])))
        return None


@dataclasses.dataclass(frozen=True)
class FolderPart:
    """A folder of `key.jpg`, `key.txt` and `key.json`."""

    path: str
    table: str | None

    @property
    def name(self) -> str:
        return pathlib.Path(self.path).name

    def samples(self, problems: list[str]) -> Iterator[Sample]:
        rows = _rows(self.table, self.path, problems)
        known = _by_key(rows)
        groups = self._groups()
        for key, files in groups.items():
            row = known.get(key)
            if row is None and "json" in files:
                row = parse_json(_read_or_empty(files["json"]))
            image = next((files[s] for s in IMAGE_SUFFIXES if s in files), None)
            yield Sample(key, image, files.get("txt"), row or {})
        yield from _absent(rows, set(groups), None)

    def key_list(self) -> list[str]:
        keys = table_keys(self.table) if self.table else None
        return keys if keys is not None else list(self._groups())

    def columns(self) -> set[str] | None:
        known = table_columns(self.table) if self.table else None
        if known is not None:
            return known
        for files in self._groups().values():
            if "json" in files:
                return set(parse_json(_read_or_empty(files["json"])))
        return None

    def _groups(self) -> dict[str, dict[str, FileBytes]]:
        groups: dict[str, dict[str, FileBytes]] = {}
        for entry in sorted(os.scandir(self.path), key=lambda entry: entry.name):
            key, _, suffix = entry.name.rpartition(".")
            if key and entry.is_file():
                groups.setdefault(key, {})[suffix.lower()] = FileBytes(
                    entry.path, "caption" if suffix.lower() == "txt" else "image"
                )
        return groups


@dataclasses.dataclass(frozen=True)
class ParquetPart:
    """A parquet file with the pictures' bytes in a column that is named by their format."""

    path: str

    @property
    def name(self) -> str:
        return pathlib.Path(self.path).stem

    def samples(self, problems: list[str]) -> Iterator[Sample]:
        import pyarrow.parquet

        done, total = 0, 0
        try:
            file = pyarrow.parquet.ParquetFile(self.path)
            total = file.metadata.num_rows
            image = next((name for name in file.schema_arrow.names if name.lower() in IMAGE_SUFFIXES), None)
            for batch in file.iter_batches(batch_size=64):
                for row in batch.to_pylist():
                    data = row.get(image) if image else None
                    metadata = named(row)
                    key = str(metadata.get("key") or f"{self.name}/{done}")
                    done += 1
                    yield Sample(key, None if data is None else Held(data), None, metadata)
        except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
            problems.append(f"{self.path}: the parquet is cut or damaged: {str(error).splitlines()[0]}")
        for number in range(done, total):
            yield Sample(f"{self.name}/{number}", _lost, _lost, {})

    def key_list(self) -> list[str]:
        return table_keys(self.path) or []

    def columns(self) -> set[str] | None:
        return table_columns(self.path)


@dataclasses.dataclass(frozen=True)
class FileBytes:
    """The content of a file when called. Raises Rejected if it cannot be read; `what` names its role."""

    path: str
    what: str = "file"

    def __call__(self) -> bytes:
        try:
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


_lost = rejecting("lost in a damaged shard")


def _tar_groups(path: str, cut: list[str]) -> Iterator[tuple[str, dict[str, Callable[[], bytes]]]]:
    """(key, {suffix: its bytes when called}) in the tar's order; an end before the end goes to `cut`."""
    key: str | None = None
    members: dict[str, Callable[[], bytes]] = {}
    try:
        with tarfile.open(path) as tar:
            for member in _tar_members(tar, cut):
                name, _, suffix = pathlib.PurePosixPath(member.name).name.partition(".")
                suffix = suffix.lower()
                # The same file twice is a second sample of that key, to be counted as such.
                if key is not None and (name != key or suffix in members):
                    yield key, members
                    members = {}
                key = name
                members[suffix] = _member(tar, member)
            if key is not None:
                yield key, members
    except _TAR_ERRORS as error:
        cut.append(str(error))


def _tar_members(tar: tarfile.TarFile, cut: list[str]) -> Iterator[tarfile.TarInfo]:
    try:
        while (member := tar.next()) is not None:
            if member.isfile():
                yield member
            # The list of all members, which nobody asks for, would grow with the tar.
            tar.members.clear()  # type: ignore[attr-defined]
        # tarfile takes a damaged or missing header for the end; the true end is a block of zeros.
        assert tar.fileobj is not None
        tar.fileobj.seek(tar.offset)
        if tar.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            cut.append(f"no valid header at byte {tar.offset}")
    except _TAR_ERRORS as error:
        cut.append(str(error))


def _member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            file = tar.extractfile(member)
            data = file.read() if file else b""
        except _TAR_ERRORS:
            raise Rejected("lost in a damaged shard") from None
        if len(data) != member.size:
            raise Rejected("lost in a damaged shard")
        return data

    return read


def _read_or_empty(read: Callable[[], bytes]) -> bytes:
    try:
        return read()
    except Rejected:
        return b""


def _rows(table: str | None, path: str, problems: list[str]) -> list[Row]:
    rows = read_rows(table, problems) if table else None
    if rows is None:
        problems.append(f"{path}: no readable parquet beside it; the metadata is that of its JSON files")
    return rows or []


def _by_key(rows: Iterable[Row]) -> dict[str, Row]:
    return {str(row["key"]): row for row in rows if row.get("key") is not None}


def _absent(rows: Iterable[Row], seen: set[str], image: Any) -> Iterator[Sample]:
    """The rows of the table that have no picture: failed downloads, and what a damaged shard has lost."""
    listed: set[str] = set()
    for row in rows:
        key = str(row.get("key"))
        if key not in seen or key in listed:
            yield Sample(key, image, None, row)
        listed.add(key)
