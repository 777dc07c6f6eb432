"""Captioned pictures in shards, parquet files or webdataset's tars: on this machine, or on the hub one shard at a time."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import posixpath
import re
import sys
from collections.abc import Iterable, Iterator, Sequence

from mvader_jax.data.building import tars
from mvader_jax.data.building.admit import Sample
from mvader_jax.data.building.columns import NONE, Columns, Held, of_table, of_tar
from mvader_jax.data.building.parts import ParquetPart, Part, TarPart, find_shards
from mvader_jax.data.building.tables import Table, Unreadable
from mvader_jax.errors import UserError
from mvader_jax.storage.hub import Address
from mvader_jax.storage.hub_shards import Shard, borrowed, listed, opened

#: Words in a file's path that say that it is not for training.
_HELD_OUT = {"test", "validation", "valid", "val", "dev", "eval"}


def is_shard(name: str) -> bool:
    """Whether a file is named as shards are."""
    return name.lower().endswith((".parquet", *tars.TAR_SUFFIXES))


def find_downloaded(source: pathlib.Path, columns: Columns = NONE) -> list[Part]:
    """img2dataset's shards in a folder. columns: where they are not those that it writes. Errors as `with_columns`."""
    parts = find_shards(source)
    return parts if columns == NONE else with_columns(parts, columns)


def with_columns(parts: Sequence[Part], asked: Columns) -> list[Part]:
    """Shards of this machine with their columns found, as the first of each kind has them.

    Raises UserError where these are not to be told.
    """
    found: dict[type, Columns] = {}

    def known(part: Part) -> Part:
        if not isinstance(part, (ParquetPart, TarPart)):
            return part
        if type(part) not in found:
            of = of_table if isinstance(part, ParquetPart) else of_tar
            try:
                found[type(part)], _ = of(part.path, part.path, asked)
            except Unreadable:  # its samples will be counted as lost; the next shard may tell
                return dataclasses.replace(part, chosen=asked)
        return dataclasses.replace(part, chosen=found[type(part)])

    return [known(part) for part in parts]


@dataclasses.dataclass(frozen=True)
class HubPart:
    """A shard on the hub. Its keys begin with its own name, so no two shards have one in common.

    table: img2dataset's, beside a tar. metadata: columns of `schema.SPELLINGS`, as the first shard has them; None: none.
    room: the folder where it lies while it is read.
    """

    shard: Shard
    table: Shard | None
    chosen: Columns
    metadata: frozenset[str] | None
    room: pathlib.Path

    @property
    def name(self) -> str:
        folder, file = posixpath.split(self.shard.address.file)
        return posixpath.join(folder, tars.stem(pathlib.Path(file)) or pathlib.Path(file).stem)

    def samples(self, problems: list[str]) -> Iterator[Sample]:
        with contextlib.ExitStack() as held:
            path = held.enter_context(borrowed(self.shard, self.room))
            table = held.enter_context(borrowed(self.table, self.room)) if self.table else None
            part: Part = ParquetPart(str(path), self.chosen)
            if tars.stem(path) is not None:
                part = TarPart(str(path), None if table is None else str(table), self.chosen)
            own: list[str] = []
            for sample in part.samples(own):
                key = f"{self.name}/{sample.key.removeprefix(f'{part.name}/')}"
                yield dataclasses.replace(sample, key=key)
            problems += [text.replace(str(path), str(self.shard.address)) for text in own]

    def key_list(self) -> list[str]:
        return []

    def columns(self) -> set[str] | None:
        return None if self.metadata is None else set(self.metadata)

    def files(self) -> Iterable[pathlib.Path | str]:
        # By content: a commit that changes something else makes no other data set.
        for shard in (self.shard, self.table):
            if shard is not None:
                yield f"{shard.address.file} {shard.size} {shard.digest}"
        yield repr(self.chosen)


def find_hub(source: str, asked: Columns, room: pathlib.Path) -> list[Part]:
    """The shards of a data set on the hub, `hf:ORG/NAME[/PATTERN][@REVISION]`; without a pattern those for training.

    room: the folder where each lies while it is read. Raises UserError where it has no shards, nothing says which of them
    or of their columns are meant, and as `hub_shards.listed`.
    """
    address, files = listed(source)
    by_name = {shard.address.file: shard for shard in files}
    names = _selected(address, list(by_name))
    tables = {name.removesuffix(".parquet"): name for name in names if name.endswith(".parquet")}
    beside: dict[str, Shard] = {}
    for name in [name for name in names if not name.endswith(".parquet")]:
        path = posixpath.join(posixpath.dirname(name), tars.stem(pathlib.Path(name)) or "")
        if path in tables:
            beside[name] = by_name[tables[path]]
            names.remove(tables[path])
    if len({name.endswith(".parquet") for name in names}) > 1:
        raise UserError(
            f"{address} holds .parquet files and tars: name those that are meant, as in {address.place}/*.parquet"
        )
    shards = [by_name[name] for name in names]
    size = sum(shard.size for shard in (*shards, *beside.values()))
    print(f"{len(shards)} shards, {size / 1e9:.2f} GB, of {address}, brought one at a time", file=sys.stderr)
    chosen, metadata = _held(shards, asked)
    table = next((table for table in beside.values()), None)
    if table is not None:
        with opened(table) as file, contextlib.suppress(Unreadable):
            metadata = frozenset(Table(file).columns)
    return [HubPart(shard, beside.get(shard.address.file), chosen, metadata, room) for shard in shards]


def _selected(address: Address, names: Sequence[str]) -> list[str]:
    """Of a repository's files the shards that are meant."""
    if address.file:
        chosen = [name for name in address.choose(names, list) if is_shard(name)]
        if not chosen:
            raise UserError(f"{address} names no .parquet file and no tar")
        return chosen
    shards = [name for name in names if is_shard(name)]
    if not shards:
        raise UserError(
            f"{address.place} holds no .parquet files and no tars; the hub keeps most data sets as parquet too: try "
            f"{address.place}@refs/convert/parquet, or download it (`hf download`) and name its folder"
        )
    return for_training(shards, address.place, "/*")


def for_training(shards: Sequence[str], place: str, all_of: str = "") -> list[str]:
    """Of shards by their paths within a place those that are not held out; a line says so where some are.

    all_of: what after a folder names all that it holds. Raises UserError where they lie in several folders.
    """
    training = [name for name in shards if not _HELD_OUT & set(re.split(r"[/._-]", name.lower()))] or [
        *shards
    ]
    if len(training) < len(shards):
        print(f"for training: {len(training)} of the {len(shards)} shards of {place}", file=sys.stderr)
    folders = sorted({posixpath.dirname(name) for name in training})
    if len(folders) > 1:
        raise UserError(
            f"{place} has shards in several folders ({', '.join(folders[:8])}): name those that are meant, as in "
            f"{place}/{folders[-1]}{all_of}"
        )
    return training


def _held(shards: Sequence[Shard], asked: Columns) -> Held:
    """What the first shard that can be read holds."""
    reason = ""
    for shard in shards:
        of = of_table if shard.address.file.endswith(".parquet") else of_tar
        try:
            with opened(shard) as file:
                return of(file, shard.address.place, asked)
        except Unreadable as error:
            reason = reason or f"{shard.address} cannot be read: {error}"
    raise UserError(reason)
