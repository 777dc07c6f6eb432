"""Directories of results: pictures with their settings in them, a grid, and a manifest with a row per picture."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image

from mvader_jax.errors import UserError
from mvader_jax.images.png import read_png_metadata, save_png
from mvader_jax.images.sheet import grid
from mvader_jax.sampling.manifest import MANIFEST, add_rows, read_rows
from mvader_jax.sampling.pictures import drawn_with, kept
from mvader_jax.storage.atomic import TakenError, local, make_directory, sweep
from mvader_jax.storage.lock import moment

#: The names that `write_pictures` gives, whatever their ending.
_NUMBERED = re.compile(r"(?:grid-|attention-)?(\d{5})\.")


def make_writable(directory: Path) -> None:
    """Makes a directory for results. Raises UserError when that, or writing in it, is not possible."""
    check_writable(directory)
    sweep(make_directory(directory))


def check_writable(directory: Path) -> None:
    """Raises UserError where results could not be written into a directory, without making it."""
    try:
        place = local(directory).absolute()
        while not os.path.lexists(place) and place != place.parent:
            place = place.parent
        if not place.is_dir():
            raise UserError(f"cannot write into {str(directory)!r}: {str(place)!r} is not a directory")
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"cannot write into {str(directory)!r}: {error}") from None
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"cannot write into {str(directory)!r}: permission denied")


def check_results(directory: Path) -> None:
    """Raises UserError where pictures and their rows could not be written into a directory."""
    check_writable(directory)
    manifest = directory / MANIFEST
    if os.path.lexists(manifest) and not (manifest.is_file() and os.access(manifest, os.R_OK | os.W_OK)):
        raise UserError(f"cannot write {str(manifest)!r}: it is no file that can be read and written")


def check_replaceable(path: Path, mark: str, inputs: Collection[Any] = ()) -> None:
    """Raises UserError where a picture may not be written to `path`: what is there is neither nothing nor one
    that this package wrote with `mark` among its settings, or it is one of the `inputs`."""
    check_writable(local(path).parent)
    if not os.path.lexists(path):
        return
    if any(isinstance(one, (str, os.PathLike)) and _same(path, one) for one in inputs):
        raise UserError(f"{str(path)!r} is one of the pictures to be read; choose another --out")
    try:
        made = read_png_metadata(path)
    except UserError:
        made = {}
    if made.get("Software") != "mvader-jax" or mark not in made:
        raise UserError(
            f"{str(path)!r} exists already and is no {mark} that mvader drew; choose another --out"
        )


def _same(one: Path, other: str | os.PathLike[str]) -> bool:
    try:
        return os.path.samefile(one, other)
    except (OSError, ValueError):
        return False


def write_pictures(
    out: Path,
    images: Mapping[int, PIL.Image.Image | np.ndarray],
    settings: Mapping[str, Any],
    attention: PIL.Image.Image | None = None,
) -> list[Path]:
    """Writes each picture and their grid as PNG, and a manifest row per picture; returns the paths, the grid last.

    images: {its number under the seed: a picture}. settings: JSON values, kept in every PNG and row, beside what a
    picture itself says it was drawn with. Numbers of files go on from the largest that the directory or its
    manifest holds; nothing that is there is replaced, whoever else writes there. attention: a sheet that is
    written beside the grid. Raises UserError where the directory cannot be written: what is
    in place by then stays, with its row.
    """
    make_writable(out)
    rows: list[dict[str, Any]] = []
    paths: list[Path] = []
    with moment(out):
        number = first = _next_number(out)
        try:
            for index, image in images.items():
                own = drawn_with(image)
                number_of: dict[str, Any] = {key: own[key] for key in ("seed", "index") if key in own}
                row = {**own, **settings, "index": index, **number_of}
                number, path = _save_numbered(
                    out, "", number, image, {**row, **kept(getattr(image, "info", {}))}
                )
                rows.append({"file": path.name, **row})
                paths.append(path)
                number += 1
            sheet = grid(list(images.values()), columns=min(len(images), 4))
            paths.append(_save_numbered(out, "grid-", first, sheet, settings)[1])
            if attention is not None:
                paths.append(_save_numbered(out, "attention-", first, attention, settings)[1])
        finally:
            add_rows(out, rows)
    return paths


def _save_numbered(
    out: Path, prefix: str, number: int, image: PIL.Image.Image | np.ndarray, metadata: Mapping[str, Any]
) -> tuple[int, Path]:
    """(the number, the path) of a picture under the first number from `number` on that is free."""
    while True:
        path = out / f"{prefix}{number:05d}.png"
        try:
            save_png(path, image, metadata, new=True)
            return number, path
        except TakenError:
            number += 1


def _next_number(out: Path) -> int:
    """One more than the largest number of a picture, of a grid, or of a row whose picture is gone."""
    names = [*(path.name for path in out.iterdir()), *(row["file"] for row in read_rows(out))]
    return max((int(found[1]) for name in names if (found := _NUMBERED.match(name))), default=-1) + 1
