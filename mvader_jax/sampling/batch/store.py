"""The directory of pictures: what is there already, and how more get into it, each of them whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mvader_jax.errors import UserError
from mvader_jax.images.png import read_png_metadata, save_png
from mvader_jax.prompt.elements import Image
from mvader_jax.sampling.batch.requests import Request, fingerprint
from mvader_jax.sampling.manifest import Row, add_rows, drop_rows, read_rows
from mvader_jax.sampling.output import make_writable
from mvader_jax.sampling.pictures import kept
from mvader_jax.storage.atomic import TakenError
from mvader_jax.storage.lock import moment

_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"
#: Where `save_png` writes what made a picture: its first text chunk.
_MARK, _MARKED_WITHIN = b"mvader-jax", 200


class Store:
    """A directory and its manifest; several runs may write to one.

    A picture is there when its row is in the manifest and its file is whole: files get their names before
    their rows are written, so a run that was killed leaves at worst files without a row, which are drawn and
    replaced again. Nothing else is replaced but pictures of the same file of prompts.
    """

    def __init__(
        self, directory: Path, made_by: Mapping[str, Any], loaded: Mapping[str, Any] | None = None
    ) -> None:
        """made_by: what beside the request shapes a picture (the bundle's hashes, the dtype); loaded: what draws, as
        `Pipeline.load` takes it."""
        self.loaded = dict(loaded or {})
        self.directory = directory
        self.made_by = dict(made_by)
        self._replaced: set[str] = set()

    def row(self, request: Request, index: int) -> Row:
        """The manifest's row of a picture."""
        row = {**request.row(index), **self.made_by}
        return {**row, "fingerprint": self._mark(request, index)}

    def _mark(self, request: Request, index: int) -> str:
        return fingerprint({**request.shaped_by(index), **self.made_by})

    def open(self, requests: Iterable[Request]) -> tuple[list[str], list[str]]:
        """(names of the files that are there as these requests ask for them, names of those to be replaced).

        Makes the directory and drops the rows of pictures that are gone, damaged or asked for otherwise.
        Raises UserError where the directory cannot be written, a name is a file's that is not of the same
        file of prompts, or a picture that is to be replaced is one that a request reads.
        """
        wanted = {
            request.file(index): (request, index) for request in requests for index in range(request.count)
        }
        make_writable(self.directory)
        with moment(self.directory):
            rows = {row["file"]: row for row in read_rows(self.directory) if row["file"] in wanted}
            done = {
                name
                for name, row in rows.items()
                if row.get("fingerprint") == self._mark(*wanted[name]) and _whole(self.directory / name)
            }
            there = [name for name in wanted if name not in done and os.path.lexists(self.directory / name)]
            for name in there:
                if not self._ours(name, *wanted[name], rows.get(name)):
                    raise UserError(
                        f"{str(self.directory / name)!r} exists already and is no picture of these prompts; "
                        f"give line {wanted[name][0].line} another id, or choose another --out"
                    )
            _check_unread(self.directory, there, {name: request for name, (request, _) in wanted.items()})
            kept: set[str] = set()

            def stale(row: Row) -> bool:
                name = row["file"]
                if name not in wanted:
                    return False
                good = name in done and row == rows[name] and name not in kept
                if good:
                    kept.add(name)
                return not good

            drop_rows(self.directory, stale)
        return sorted(done), there

    def adopt(self, replaced: Iterable[str]) -> None:
        """Says which names this run may replace."""
        self._replaced = set(replaced)

    def _ours(self, name: str, request: Request, index: int, row: Row | None) -> bool:
        """Whether a file is a picture that this file of prompts made, or the damaged rest of one."""
        path = self.directory / name
        if _whole(path):
            made = _metadata(path)
            mine = made.get("prompts_file") == request.source
            return mine or made.get("fingerprint") == self._mark(request, index)
        return _rest_of_ours(path) and (row is None or row.get("prompts_file") in (None, request.source))

    def save(self, picture: np.ndarray, row: Row, info: Mapping[str, Any] | None = None) -> bool:
        """Writes a picture with its row and its `info`; returns whether it was this run that did.

        Raises UserError where it cannot be written."""
        path = self.directory / row["file"]
        try:
            save_png(path, picture, {**row, **kept(info or {})}, new=row["file"] not in self._replaced)
        except TakenError:
            # Another run of the same prompts was quicker.
            if _metadata(path).get("fingerprint") == row["fingerprint"]:
                return False
            raise
        return True

    def close(self) -> None:
        """Leaves one row of each picture, where another run of the same prompts has added its own."""
        seen: set[str] = set()

        def twice(row: Row) -> bool:
            key = f"{row['file']} {row.get('fingerprint')}"
            known = key in seen
            seen.add(key)
            return known and "fingerprint" in row

        with moment(self.directory):
            drop_rows(self.directory, twice)

    def record(self, rows: Iterable[Row]) -> None:
        """Appends rows of pictures whose files are in place."""
        with moment(self.directory):
            add_rows(self.directory, rows)


def _check_unread(directory: Path, replaced: Iterable[str], wanted: Mapping[str, Request]) -> None:
    """Raises UserError where one of the files to be replaced is a picture that a request reads."""
    read = {}
    for request in wanted.values():
        for prompt in (request.prompt, request.negative):
            for element in prompt.elements if prompt else ():
                if isinstance(element, Image) and element.path is not None:
                    read[os.path.realpath(element.path)] = request.line
        if request.init_image is not None and request.init_image.path is not None:
            read[os.path.realpath(request.init_image.path)] = request.line
    for name in replaced:
        line = read.get(os.path.realpath(directory / name))
        if line is not None:
            raise UserError(
                f"line {wanted[name].line} would overwrite {str(directory / name)!r}, which line {line} reads; "
                "give it another id, or choose another --out"
            )


def _whole(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            file.seek(-len(_PNG_END), os.SEEK_END)
            return file.read() == _PNG_END
    except OSError:
        return False


def _metadata(path: Path) -> dict[str, str]:
    try:
        return read_png_metadata(path)
    except UserError:
        return {}


def _rest_of_ours(path: Path) -> bool:
    """Whether a file is empty, or begins as this package's PNGs do."""
    try:
        with path.open("rb") as file:
            start = file.read(_MARKED_WITHIN)
    except OSError:
        return False
    if len(start) < _MARKED_WITHIN:
        return _PNG_START.startswith(start[: len(_PNG_START)]) and path.is_file()
    return start.startswith(_PNG_START) and _MARK in start
