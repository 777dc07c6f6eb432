"""Where records come from: the synthetic scenes, built data sets, JSONL of pairs or interleaved prompts."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np

from mvader_jax.data import scenes
from mvader_jax.data.config import DataConfig
from mvader_jax.data.reader import Record, Source
from mvader_jax.errors import UserError


def open_sources(config: DataConfig, objective: str, split: str) -> Sequence[Source]:
    """The sources of a config. Raises UserError where they do not exist or do not suit the objective."""
    if config.source == "scenes":
        if objective == "contrastive":
            return [ScenePairs(config, split)]
        return [SceneImages(config, split)]
    raise UserError(f"data source {config.source!r} is unknown; accepted: scenes, records, pairs")


class SceneImages:
    """Scenes drawn as they are read: {"image": uint8 [H, W, 3], "caption": str, "scene": Scene}.

    The caption is worded anew at every reading. Pictures already drawn are kept in memory, up to
    `cache_bytes`, since drawing one costs more than all the rest of its way into a batch.
    """

    def __init__(self, config: DataConfig, split: str) -> None:
        self.config = config
        self.split = split
        side = config.image_size
        kept = min(config.num_records, config.cache_bytes // (side * side * 3))
        # Untouched pages of an empty array take no memory.
        self._cache = np.empty((kept, side, side, 3), np.uint8)
        self._drawn = np.zeros(kept, bool)

    def __len__(self) -> int:
        return self.config.num_records

    def record(self, index: int, rng: np.random.Generator) -> Record:
        scene = scenes.scene_at(self.config.seed, self.split, index)
        return {"image": self._image(index, scene), "caption": _caption(scene, self.config, rng), "scene": scene}

    def _image(self, index: int, scene: scenes.Scene) -> np.ndarray:
        if index >= len(self._cache):
            return scenes.render(scene, self.config.image_size)
        if not self._drawn[index]:
            self._cache[index] = scenes.render(scene, self.config.image_size)
            self._drawn[index] = True
        return self._cache[index]

    def __getstate__(self) -> dict[str, object]:
        # A worker process starts with an empty cache of its own.
        return {"config": self.config, "split": self.split}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__(**state)  # type: ignore[misc]
