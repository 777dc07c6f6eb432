"""Directories of results: pictures with their settings in them, a grid, and a manifest with a row a picture."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvader_jax.errors import UserError
from mvader_jax.storage.atomic import local, make_directory, sweep

MANIFEST = "manifest.jsonl"


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


def write_pictures(out: Path, images: Mapping[int, Any], settings: Mapping[str, Any]) -> list[Path]:
    """Writes each picture and their grid as PNG, and a manifest row per picture; returns the paths, the grid last.

    images: {its number under the seed: a picture}. settings: JSON values, kept in every PNG and row. Numbers of
    files go on from what the directory holds. Raises UserError where the directory cannot be written.
    """
    from mvader_jax.images.png import save_png
    from mvader_jax.images.sheet import grid

    make_writable(out)
    start = 0
    while (out / f"{start:05d}.png").exists():
        start += 1
    rows, paths = [], []
    for number, (index, image) in enumerate(images.items()):
        path = out / f"{start + number:05d}.png"
        row = {**settings, "index": index}
        save_png(path, image, row)
        rows.append(json.dumps({"file": path.name, **row}, ensure_ascii=False) + "\n")
        paths.append(path)
    try:
        with (out / MANIFEST).open("a", encoding="utf-8") as manifest:
            manifest.write("".join(rows))
    except OSError as error:
        raise UserError(f"cannot write {str(out / MANIFEST)!r}: {error.strerror or error}") from None
    sheet = out / f"grid-{start:05d}.png"
    save_png(sheet, grid(list(images.values()), columns=min(len(images), 4)), settings)
    return [*paths, sheet]
