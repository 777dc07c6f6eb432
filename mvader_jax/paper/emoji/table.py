"""The benchmark's numbers: a table that grows a row at a time, and as Markdown."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mvader_jax.data.emoji.world import World
from mvader_jax.errors import UserError
from mvader_jax.paper.emoji.methods import KEYS, named
from mvader_jax.paper.emoji.sheets import Strips
from mvader_jax.paper.emoji.tasks import BenchTask


class Table:
    """The rows that are there, kept after each.

    result: as `evaluate` returns it, of an earlier call that is to be gone on with. save: called with it after each row.
    strips: where the first pictures of rows go.
    """

    def __init__(
        self,
        result: Mapping[str, Any] | None = None,
        save: Callable[[dict[str, Any]], None] = lambda result: None,
        strips: Strips | None = None,
    ) -> None:
        self.result, self._save, self._strips = copy.deepcopy(dict(result or {})), save, strips

    def begin(self, settings: dict[str, Any]) -> None:
        """Raises UserError where the rows that are there are of other settings."""
        known = self.result.setdefault("settings", settings)
        for name in [name for name in {**known, **settings} if known.get(name) != settings.get(name)]:
            raise UserError(
                f"the numbers that are there are of other settings: {name} is {known.get(name)} there and "
                f"{settings.get(name)} here; choose another file"
            )
        if self._strips is not None:
            self._strips.begin(settings.get("weights", "given"))

    def end(self, world: World, tasks: Mapping[str, Sequence[BenchTask]]) -> None:
        """Writes the contact sheets."""
        if self._strips is not None:
            for part in [part for part in tasks if self.result.get(part)]:
                self._strips.save_sheet(world, part, tasks[part], self.result[part])

    def has(self, part: str, row: Mapping[str, Any]) -> bool:
        return any(_key(row) == _key(other) for other in self.result.get(part, ()))

    def add(
        self,
        part: str,
        row: Mapping[str, Any],
        pictures: UInt8[np.ndarray, "N 64 64 3"],
        scores: Mapping[str, float],
    ) -> None:
        self.result.setdefault(part, []).append({**row, "prompts": len(pictures), **scores})
        if self._strips is not None:
            self._strips.add(part, row, pictures)
        self._save(self.result)


def _key(row: Mapping[str, Any]) -> list[Any]:
    return [row.get(name) for name in KEYS]


def as_markdown(result: dict[str, Any]) -> str:
    """A table for each kind of score, in percent; pixels in levels of 255."""
    tables: dict[tuple[str, ...], list[str]] = {}
    for part in [name for name in result if name != "settings"]:
        for row in result[part]:
            names = tuple(n for n in row if n not in (*KEYS, "prompts", "pixels"))
            cells = [part, named(row), str(row["prompts"]), *(f"{100 * row[name]:.1f}" for name in names)]
            cells.append(f"{row['pixels']:.1f}" if "pixels" in row else "")
            tables.setdefault(names, []).append(f"| {' | '.join(cells)} |")
    blocks = []
    for names, lines in tables.items():
        head = ["part", "method", "prompts", *(name.replace("_", " at ") for name in names), "pixels"]
        blocks.append("\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *lines]))
    return "\n\n".join(blocks)
