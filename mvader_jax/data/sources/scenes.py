"""The synthetic world as a source of records: drawn as it is read, the same for ever at an index."""

from __future__ import annotations

import numpy as np

from mvader_jax.data.config import DataConfig
from mvader_jax.data.order import Record
from mvader_jax.data.scenes.captions import caption, contrastive_triplet
from mvader_jax.data.scenes.world import Split, render, scene_at


class SceneImages:
    """{"image": uint8 [size, size, 3], "caption": str}; the wording is drawn anew each time."""

    def __init__(self, config: DataConfig, split: Split) -> None:
        self._config, self._split = config, split

    def __len__(self) -> int:
        return self._config.num_records

    def record(self, index: int, rng: np.random.Generator) -> Record:
        return {"image": self.picture(index), "caption": self.caption(index, rng)}

    def picture(self, index: int) -> np.ndarray:
        """uint8 [size, size, 3]."""
        return render(scene_at(self._config.seed, index, self._split), self._config.image_size)

    def caption(self, index: int, rng: np.random.Generator) -> str:
        """A caption of scene `index`, worded by `rng`; two in a row where `parallel` says so."""
        config = self._config
        scene = scene_at(config.seed, index, self._split)

        def told() -> str:
            language = config.languages[int(rng.integers(len(config.languages)))]
            omit = config.omit if rng.random() < 0.5 else 0.0
            return caption(scene, rng, language, omit)

        first = told()
        return f"{first}; {told()}" if config.parallel and rng.random() < config.parallel else first

    def where(self, index: int) -> str:
        return f"scene {index} of the {self._split} split"


class ScenePairs(SceneImages):
    """{"image", "query", "positive", "negative"}: two captions of a scene, and one of a scene that differs."""

    def record(self, index: int, rng: np.random.Generator) -> Record:
        scene = scene_at(self._config.seed, index, self._split)
        query, positive, negative = contrastive_triplet(scene, rng, self._config.languages)
        return {"image": self.picture(index), "query": query, "positive": positive, "negative": negative}
