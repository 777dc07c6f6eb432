"""A contact sheet of each part: what the first prompts ask, what is right, and what each method made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from mvader_jax.data.emoji.world import World
from mvader_jax.images.png import save_png
from mvader_jax.images.read import load_image
from mvader_jax.paper.emoji.features import SIDE
from mvader_jax.paper.emoji.methods import KEYS, METHODS, best, named
from mvader_jax.paper.emoji.tasks import BenchTask
from mvader_jax.paper.layout import Cell, sheet
from mvader_jax.storage.atomic import make_directory

#: Prompts of a sheet: the first, whatever became of them.
COUNT = 12
#: Pictures beside each other; prompts that need few stand beside each other too.
_COLUMNS = 12
Row = Mapping[str, Any]


class Strips:
    """The first pictures of each row, side by side in a file: sheets are made of them, whenever they were drawn."""

    def __init__(self, folder: Path) -> None:
        self.folder = self._strips = folder

    def begin(self, weights: str) -> None:
        """Apart from those that other weights drew."""
        self._strips = self.folder / f"strips-{weights}"

    def add(self, part: str, row: Row, pictures: UInt8[np.ndarray, "N 64 64 3"]) -> None:
        """Raises UserError where the file cannot be written."""
        make_directory(self._strips)
        strip = PIL.Image.fromarray(np.concatenate(pictures[:COUNT], axis=1))
        save_png(self._file(part, row), strip, {})

    def save_sheet(self, world: World, part: str, tasks: Sequence[BenchTask], rows: Sequence[Row]) -> None:
        """Writes `PART.png`: the prompt itself, and every method at its best, of the rows whose strips are there."""
        there = [row for row in _shown(rows) if self._file(part, row).is_file()]
        strips = [np.asarray(load_image(self._file(part, row))) for row in there]
        prompts = []
        for number, task in enumerate(tasks[: min(COUNT, *(strip.shape[1] // SIDE for strip in strips))]):
            cells = [Cell(text=word, label="words") for word in task.words]
            same = task.shown == (task.target,)
            cells += [Cell(world.render(one, SIDE), "shown" + ", right" * same) for one in task.shown]
            cells += [] if same else [Cell(world.render(task.target, SIDE), "right")]
            place = slice(number * SIDE, (number + 1) * SIDE)
            cells += [
                Cell(np.ascontiguousarray(strip[:, place]), named(row))
                for row, strip in zip(there, strips, strict=True)
            ]
            prompts.append(cells)
        if prompts:
            title = f"{part}: the first {len(prompts)} prompts"
            save_png(self.folder / f"{part}.png", sheet(_lines(prompts), title), {})

    def _file(self, part: str, row: Row) -> Path:
        names = (part, *(row[name] for name in KEYS if name in row))
        return self._strips / f"{'_'.join(map(str, names))}.png"


def _shown(rows: Sequence[Row]) -> list[Row]:
    """The first row, the prompt itself where it was asked for, and the best of each method."""
    found = [rows[0]]
    for method in METHODS:
        row = best(rows, method)
        if row is not None and row not in found:
            found.append(row)
    return found


def _lines(prompts: Sequence[list[Cell]]) -> list[list[Cell]]:
    together = max(1, _COLUMNS // max(map(len, prompts)))
    return [
        [cell for prompt in prompts[at : at + together] for cell in prompt]
        for at in range(0, len(prompts), together)
    ]
