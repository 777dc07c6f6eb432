"""Pictures in files, named by a folder, a table, COCO's annotations or the emoji package."""

from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import os
import pathlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from mvader_jax.data.building.admit import Sample, rejecting
from mvader_jax.data.building.parts import IMAGE_SUFFIXES, FileBytes, Part
from mvader_jax.data.building.tables import named
from mvader_jax.errors import UserError

#: Records a part: few enough that a stopped build loses little.
PART_SIZE = 2000
_PATH_COLUMNS = ("path", "file", "file_name", "filename", "image", "image_path")


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
    """A run of entries."""

    name: str
    entries: tuple[Entry, ...]

    def samples(self, problems: list[str]) -> Iterator[Sample]:
        del problems
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
        return set().union(*(entry.metadata for entry in self.entries[:1]))


def find_captions(
    source: str | os.PathLike[str], pictures: str | os.PathLike[str] | None = None
) -> list[Part]:
    """The parts of a captioned set: a folder of pictures with .txt beside them, a CSV or JSONL file with a
    path and a caption in each row, or COCO's caption annotations.

    pictures: what paths in a file are relative to; default, the file's folder.
    Raises UserError for a source that is none of these or names no picture.
    """
    path = pathlib.Path(source)
    root = pathlib.Path(pictures) if pictures is not None else path.parent
    if path.is_dir():
        entries: Iterable[Entry] = _from_folder(path)
    elif not path.is_file():
        raise UserError(f"{os.fspath(source)!r} does not exist; expected a folder, CSV, JSONL or COCO's JSON")
    elif path.suffix.lower() == ".json":
        entries = _from_coco(path, root)
    elif path.suffix.lower() in (".csv", ".tsv", ".jsonl"):
        entries = _from_rows(path, root)
    else:
        raise UserError(f"{os.fspath(source)!r} is no folder, .csv, .tsv, .jsonl or .json of captions")
    return _parts(entries, path)


def find_emoji(source: str | os.PathLike[str]) -> list[Part]:
    """The parts of an unpacked npm package `emoji-datasource-google`: Noto's pictures under their names.

    Raises UserError if the folder is something else.
    """
    root = pathlib.Path(source)
    root = root / "package" if (root / "package").is_dir() else root
    pictures = root / "img" / "google" / "64"
    if not (root / "emoji.json").is_file() or not pictures.is_dir():
        raise UserError(
            f"{os.fspath(source)!r} is not the unpacked npm package emoji-datasource-google: "
            "it has no emoji.json and img/google/64"
        )
    emoji = _load_json(root / "emoji.json")
    entries = []
    for item in emoji:
        if item.get("has_img_google"):
            names = [item.get("name") or "", *item.get("short_names", ())]
            words = [name.replace("_", " ").replace("-", " ").strip().lower() for name in names]
            captions = [word for word in dict.fromkeys(words) if word]
            entries.append(Entry(item["unified"], str(pictures / item["image"]), None, {"caption": captions}))
    return _parts(entries, root)


def _parts(entries: Iterable[Entry], source: pathlib.Path) -> list[Part]:
    parts: list[Part] = []
    rest = iter(entries)
    while chunk := tuple(itertools.islice(rest, PART_SIZE)):
        parts.append(ListPart(f"{source.stem}-{len(parts):05d}", chunk))
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
    for number, row in enumerate(_rows(path)):
        if row is None:
            yield Entry(f"row {number}", None, None, {}, "line is no JSON object")
            continue
        lower = {str(name).lower(): value for name, value in row.items()}
        picture = next((lower[name] for name in _PATH_COLUMNS if lower.get(name)), None)
        if not number and (picture is None or "caption" not in named(row)):
            raise UserError(
                f"{str(path)!r} has the columns {', '.join(map(str, row))}; expected a path "
                f"({', '.join(_PATH_COLUMNS)}) and a caption (caption, text)"
            )
        metadata = named(row)
        key = str(metadata.get("key") or picture or f"row {number}")
        yield Entry(key, str(root / str(picture)) if picture else None, None, metadata)


def _rows(path: pathlib.Path) -> Iterator[dict[str, Any] | None]:
    # A caption that is no UTF-8 is one record's fault: it survives reading and is counted later.
    with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
        if path.suffix.lower() != ".jsonl":
            csv.field_size_limit(1 << 24)
            clean = (line.replace("\x00", "") for line in file)
            yield from csv.DictReader(clean, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
            return
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if line.strip():
                yield row if isinstance(row, dict) else None


def _from_coco(path: pathlib.Path, root: pathlib.Path) -> Iterator[Entry]:
    data = _load_json(path)
    if not isinstance(data, dict) or not {"images", "annotations"} <= set(data):
        raise UserError(f"{str(path)!r} is not COCO's: it lacks 'images' and 'annotations'")
    captions: dict[Any, list[str]] = {}
    for note in data["annotations"]:
        captions.setdefault(note.get("image_id"), []).append(note.get("caption"))
    for image in data["images"]:
        metadata = {"caption": captions.get(image["id"])}
        sides = {f"original_{side}": image[side] for side in ("width", "height") if side in image}
        yield Entry(str(image["id"]), str(root / image["file_name"]), None, {**metadata, **sides})


def _load_json(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise UserError(f"{str(path)!r} cannot be read as JSON: {error}") from None
