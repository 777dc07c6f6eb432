"""manifest.jsonl: a row per picture of a directory of results, which several runs may write to at once."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mvader_jax.errors import UserError
from mvader_jax.images.png import utf8
from mvader_jax.storage.atomic import explained, write_file

MANIFEST = "manifest.jsonl"

Row = dict[str, Any]


def read_rows(directory: Path) -> Iterator[Row]:
    """The rows that name a file; what else stands in the manifest is left out. Raises UserError as `_lines`."""
    return (row for line in _lines(directory) if (row := _row(line)) is not None)


def add_rows(directory: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Appends rows, all or none; for a holder of the directory's lock (`moment`). Raises UserError."""
    data = b"".join(utf8(json.dumps(row, ensure_ascii=False) + "\n") for row in rows)
    if not data:
        return
    file = directory / MANIFEST
    with explained(file, directory), file.open("ab+") as manifest:
        size = manifest.seek(0, os.SEEK_END)
        if size:
            manifest.seek(size - 1)
            # A row that was cut off must not swallow the next one.
            data = (b"" if manifest.read(1) == b"\n" else b"\n") + data
        try:
            manifest.write(data)
            manifest.flush()
        except OSError:
            os.ftruncate(manifest.fileno(), size)
            raise


def drop_rows(directory: Path, stale: Callable[[Row], bool]) -> None:
    """Leaves out the rows that are stale, and a last one that was cut off; every other line stays as it is.

    For a holder of the directory's lock. Raises UserError where the manifest cannot be read or written.
    """
    lines = _lines(directory)
    kept = [line for line in lines if (row := _row(line)) is None or not stale(row)]
    if kept and not kept[-1].endswith(b"\n") and _row(kept[-1]) is None:
        kept.pop()
    if kept != lines:
        write_file(directory / MANIFEST, b"".join(kept))


def _lines(directory: Path) -> list[bytes]:
    try:
        return (directory / MANIFEST).read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise UserError(f"cannot read {str(directory / MANIFEST)!r}: {error.strerror or error}") from None


def _row(line: bytes) -> Row | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) and isinstance(row.get("file"), str) else None
