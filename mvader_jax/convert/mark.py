"""The file that an export leaves beside its weights: which files are its own, and what its components' past was."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mvader_jax.storage.atomic import write_file
from mvader_jax.storage.bundle_config import read_config

#: Its name; what it lists is what `--overwrite` may replace.
MARK = "mvader_export.json"
#: Of a component's record, what its numbers owe to training; the rest is each conversion's own.
_KEPT = ("trained", "fresh")
Records = Mapping[str, Mapping[str, Any]]


def files_of(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if not file.is_dir())


def write_mark(folder: Path, bundle: Path, names: Iterable[str]) -> None:
    """Marks the export in `folder`, of these components of a bundle, so that it may be replaced and told apart."""
    records = read_config(bundle)["components"]
    mark = {
        "written_by": "mvader_jax",
        "files": files_of(folder),
        "components": {name: records[name] for name in names},
    }
    write_file(folder / MARK, json.dumps(mark, indent=1) + "\n")


def not_an_export(path: Path) -> str:
    """What, in words, of a directory that is to be replaced is no export; "" where it is one, or empty."""
    files = files_of(path) if path.is_dir() else [path.name]
    try:
        mark = json.loads((path / MARK).read_text(encoding="utf-8")) if files else {"files": []}
        foreign = sorted({*files} - {MARK, *mark["files"]})
    except (OSError, ValueError, KeyError, TypeError):
        return "it holds no export that mvader wrote"
    return f"beside an export it holds {', '.join(foreign[:4])}" if foreign else ""


def earlier_records(source: Path) -> Records:
    """The components' records beside a source; {} where there are none, or none that can be read: they only tell."""
    folder = source if source.is_dir() else source.parent
    try:
        data = json.loads((folder / MARK).read_text(encoding="utf-8"))
        return {name: dict(record) for name, record in data["components"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def kept(earlier: Records, component: str, sha256: str) -> dict[str, Any]:
    """What of a component's earlier record still holds: it has the very same numbers."""
    record = earlier.get(component, {})
    return {key: record[key] for key in _KEPT if key in record} if record.get("sha256") == sha256 else {}
