"""A contact sheet of each part: what the first prompts ask, what is right, and what each method made of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mvader_jax.images.png import save_png
from mvader_jax.paper.emoji.methods import KEYS
from mvader_jax.storage.atomic import make_directory

#: Prompts of a sheet.
COUNT = 10


class Strips:
    """The first pictures of each row, side by side in a file: sheets are made of them, in whatever run they were drawn."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, part: str, row: Mapping[str, Any], pictures: UInt8[np.ndarray, "N 64 64 3"]) -> None:
        make_directory(self.folder / "strips")
        save_png(self._file(part, row), np.concatenate(pictures[:COUNT], axis=1), {})

    def _file(self, part: str, row: Mapping[str, Any]) -> Path:
        names = (part, *(row[name] for name in KEYS if name in row))
        return self.folder / "strips" / f"{'_'.join(map(str, names))}.png"
