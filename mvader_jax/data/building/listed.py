"""Pictures in files, named by a folder, a table or COCO's annotations."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mvader_jax.data.building.admit import Rejected, Sample, rejecting
from mvader_jax.data.building.captions import IMAGE_SUFFIXES, picture_of, read_table
from mvader_jax.data.building.columns import NONE, Columns
from mvader_jax.data.building.parts import FileBytes, Part, shards_of
from mvader_jax.data.building.sharded import for_training, is_shard, with_columns
from mvader_jax.data.building.tables import key_of, named
from mvader_jax.data.unicode import encoding
from mvader_jax.errors import UserError
from mvader_jax.storage.atomic import local

#: Records a part: few enough that a stopped build loses little.
PART_SIZE = 2000


@dataclasses.dataclass(frozen=True)
class Entry:
    """One picture. image: its path, None if it has none; caption: the path of a text file, None where the
    metadata holds it; broken: why it can only be counted."""

    key: str
    image: str | None
    caption: str | None
    metadata: Mapping[str, Any]
    broken: str | None = None


@dataclasses.dataclass(frozen=True)
class ListPart:
    """A run of entries. source: the file or folder that names them; problems: of the source, in words."""

    name: str
    entries: tuple[Entry, ...]
    source: str
    problems: tuple[str, ...] = ()

    def samples(self, problems: list[str]) -> Iterator[Sample]:
        problems += self.problems
        for entry in self.entries:
            if entry.broken:
                lost = rejecting(entry.broken)
                yield Sample(entry.key, lost, lost, {})
                continue
            image = FileBytes(entry.image, "image") if entry.image else None
            caption = FileBytes(entry.caption, "caption") if entry.caption else None
            yield Sample(entry.key, image, caption, entry.metadata)

    def key_list(self) -> list[str]:
        return [entry.key for entry in self.entries]

    def columns(self) -> set[str] | None:
        return set().union(*(entry.metadata for entry in self.entries))

    def files(self) -> Iterable[pathlib.Path | str]:
        for entry in self.entries:
            yield from (pathlib.Path(path) for path in (entry.image, entry.caption) if path)
            yield repr((entry.key, entry.metadata, entry.broken))


def find_captions(
    source: str | os.PathLike[str],
    pictures: str | os.PathLike[str] | None = None,
    columns: Columns = NONE,
) -> list[Part]:
    """The parts of a captioned set: a folder of pictures with .txt beside them, a CSV or JSONL file with a
    path and a caption in each row, COCO's caption annotations, or parquet files and tars with the pictures inside.

    columns: of these last, where they are not to be told.
    pictures: what paths in a file are relative to; default, the file's folder.
    Raises UserError for a source that is none of these or names no picture.
    """
    path = pathlib.Path(source)
    root = local(pictures) if pictures is not None else path.parent
    problems: list[str] = []
    shards = _shards(path)
    if shards:
        if pictures is not None:
            raise UserError(
                f"--pictures belongs to a file of paths; {os.fspath(source)!r} holds the pictures"
            )
        return with_columns(shards_of(shards), columns)
    if columns != NONE:
        raise UserError("--image-column and --caption-column belong to parquet files and tars")
    if path.is_dir():
        entries: Iterable[Entry] = _from_folder(path)
    elif not path.is_file():
        raise UserError(
            f"{os.fspath(source)!r} does not exist; expected a folder, CSV, JSONL, COCO's JSON, parquet or tar"
        )
    elif path.suffix.lower() == ".json":
        entries, problems = _from_coco(path, root)
    elif path.suffix.lower() in (".csv", ".tsv", ".jsonl"):
        entries = _from_rows(path, root)
    else:
        raise UserError(
            f"{os.fspath(source)!r} is no folder, .csv, .tsv, .jsonl or .json of captions, no .parquet and no tar"
        )
    return _parts(entries, path, problems)


def _shards(path: pathlib.Path) -> list[pathlib.Path]:
    """The parquet files and tars that a source names, or a folder holds that has no picture of its own."""
    if path.is_file():
        return [path] if is_shard(path.name) else []
    if not path.is_dir() or any(entry.image for entry in _from_folder(path)):
        return []
    found = [entry for entry in path.rglob("*") if is_shard(entry.name) and entry.is_file()]
    names = sorted(entry.relative_to(path).as_posix() for entry in found)
    return [path / name for name in for_training(names, str(path))] if names else []


def _parts(entries: Iterable[Entry], source: pathlib.Path, problems: Iterable[str] = ()) -> list[Part]:
    parts: list[Part] = []
    rest = iter(entries)
    said = tuple(problems)
    while chunk := tuple(itertools.islice(rest, PART_SIZE)):
        parts.append(ListPart(f"{source.stem}-{len(parts):05d}", chunk, str(source), said))
        said = ()
    if not parts:
        raise UserError(f"{str(source)!r} names no picture")
    return parts


def _from_folder(root: pathlib.Path) -> Iterator[Entry]:
    for folder, folders, files in os.walk(root):
        folders.sort()
        pictures: dict[str, list[str]] = {}
        texts: dict[str, str] = {}
        for name in sorted(files):
            stem, _, suffix = name.rpartition(".")
            if suffix.lower() in IMAGE_SUFFIXES:
                pictures.setdefault(stem, []).append(os.path.join(folder, name))
            elif suffix.lower() == "txt":
                texts[stem] = os.path.join(folder, name)
        for stem in sorted({*pictures, *texts}):
            key = os.path.relpath(os.path.join(folder, stem), root)
            # `a.jpg` and `a.png` share a caption and, as one key twice, are counted as duplicates.
            for picture in pictures.get(stem) or (None,):
                yield Entry(key, picture, texts.get(stem), {})


def _from_rows(path: pathlib.Path, root: pathlib.Path) -> Iterator[Entry]:
    for number, row in enumerate(read_table(path, root)):
        metadata = {} if isinstance(row, Rejected) else named(row)
        key = key_of(metadata) or f"row {number}"
        if isinstance(row, Rejected):
            yield Entry(key, None, None, {}, str(row))
            continue
        picture = picture_of(row)
        if picture is None:
            yield Entry(key, None, None, metadata)
        elif not isinstance(picture, str):
            yield Entry(key, None, None, {}, "path is no text")
        else:
            picture = picture.strip()
            yield Entry(key_of(metadata) or picture, str(root / picture), None, metadata)


def _from_coco(path: pathlib.Path, root: pathlib.Path) -> tuple[list[Entry], list[str]]:
    """(the pictures, what is wrong with captions that belong to none)."""
    data = _load_json(path)
    if not isinstance(data, dict) or not all(
        isinstance(data.get(s), list) for s in ("images", "annotations")
    ):
        raise UserError(f"{str(path)!r} is not COCO's: it lacks the lists 'images' and 'annotations'")
    captions: dict[str, list[Any]] = {}
    wrong: collections.Counter[str] = collections.Counter()
    for note in data["annotations"]:
        if not isinstance(note, dict) or note.get("image_id") is None:
            wrong["name no image_id"] += 1
        elif "caption" not in note:
            wrong["have no caption"] += 1
        else:
            # 7 and "7" are one picture: files mix them.
            captions.setdefault(str(note["image_id"]), []).append(note["caption"])
    entries = []
    for number, image in enumerate(data["images"]):
        if not isinstance(image, dict) or image.get("id") is None:
            entries.append(Entry(f"image {number}", None, None, {}, "image has no id"))
            continue
        key, name = str(image["id"]), image.get("file_name")
        if not isinstance(name, str) or not name:
            entries.append(Entry(key, None, None, {}, "image has no file_name"))
            continue
        metadata = {"caption": captions.get(key)}
        sides = {f"original_{side}": image[side] for side in ("width", "height") if side in image}
        entries.append(Entry(key, str(root / name), None, {**metadata, **sides}))
    wrong["are of no picture that is listed"] += len(captions.keys() - {entry.key for entry in entries})
    return entries, [f"{path}: {count} captions {what}" for what, count in wrong.items() if count]


def _load_json(path: pathlib.Path) -> Any:
    try:
        data = path.read_bytes()
        return json.loads(data.decode(encoding(data[:4096])))
    except (ValueError, OSError, RecursionError) as error:
        raise UserError(f"{str(path)!r} cannot be read as JSON: {error}") from None
