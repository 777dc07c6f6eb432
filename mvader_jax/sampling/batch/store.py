"""The directory of pictures: what is there already, and how more get into it, each of them whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from mvader_jax.errors import UserError
from mvader_jax.sampling.batch.requests import Request, fingerprint
from mvader_jax.sampling.output import MANIFEST, make_writable
from mvader_jax.storage.atomic import write_file

#: How every whole PNG ends: the IEND chunk.
_PNG_END = b"IEND\xaeB`\x82"


class Store:
    """A directory and its manifest.

    A picture is there when its row is in the manifest and its file is whole: files are renamed into place
    before their rows are written, so a run that was killed leaves at worst files without a row, which are
    drawn and replaced again.
    """

    def __init__(self, directory: Path, made_by: Mapping[str, Any]) -> None:
        """made_by: what beside the request shapes a picture (the bundle's hashes, the dtype)."""
        self.directory = directory
        self.made_by = dict(made_by)
        self._manifest: Any = None

    def row(self, request: Request, index: int) -> dict[str, Any]:
        """The manifest's row of a picture."""
        row = {**request.row(index), **self.made_by}
        return {**row, "fingerprint": fingerprint({**request.recorded, **self.made_by})}

    def present(self, requests: Iterable[Request]) -> tuple[set[str], list[dict[str, Any]]]:
        """(names of the files that are there as these requests ask for them, the rows worth keeping).

        Rows whose file is gone or damaged, or was asked for differently, are not worth keeping; those of
        other requests, and of `mvader sample` without a file, are.
        """
        wanted: dict[str, str] = {}
        for request in requests:
            mark = fingerprint({**request.recorded, **self.made_by})
            wanted.update((request.file(index), mark) for index in range(request.num_images))
        done: set[str] = set()
        kept: list[dict[str, Any]] = []
        for row in _rows(self.directory / MANIFEST):
            name = row["file"]
            good = name not in wanted or (row.get("fingerprint") == wanted[name] and name not in done)
            if good and _whole(self.directory / name):
                kept.append(row)
                if name in wanted:
                    done.add(name)
        return done, kept

    def open(self, kept: list[dict[str, Any]]) -> None:
        """Makes the directory, sweeps what a killed run left half written, and opens the manifest with `kept`.

        Raises UserError where the directory cannot be written.
        """
        make_writable(self.directory)
        target = self.directory / MANIFEST
        write_file(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in kept))
        try:
            self._manifest = target.open("a", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {str(target)!r}: {error.strerror or error}") from None

    def record(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows of pictures whose files are in place, in one write."""
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        try:
            self._manifest.write(text)
            self._manifest.flush()
        except OSError as error:
            raise UserError(f"cannot write the manifest: {error.strerror or error}") from None

    def close(self) -> None:
        if self._manifest is not None:
            self._manifest.close()


def _rows(path: Path) -> Iterable[dict[str, Any]]:
    """The manifest's rows that can be read; a line that was cut off is left out."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return
    except OSError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror or error}") from None
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("file"), str):
            yield row


def _whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        return False
