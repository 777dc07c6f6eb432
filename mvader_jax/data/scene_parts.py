"""Scenes as files, like any data set."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator

import numpy as np

from mvader_jax.data.admit import Sample
from mvader_jax.data.captions import Language, caption
from mvader_jax.data.parts import Held, Part
from mvader_jax.data.scenes import CANVAS, Split, render, scene_at

PART_SIZE = 2000


@dataclasses.dataclass(frozen=True)
class ScenePart:
    """Scenes [start, stop) of a split, as PNG with a full caption in each language."""

    seed: int
    start: int
    stop: int
    split: Split = "train"
    size: int = CANVAS
    languages: tuple[Language, ...] = ("en", "de")

    @property
    def name(self) -> str:
        return f"{self.split}-{self.seed}-{self.start:08d}"

    def samples(self, problems: list[str]) -> Iterator[Sample]:
        del problems
        for index, key in zip(range(self.start, self.stop), self.key_list(), strict=True):
            scene = scene_at(self.seed, index, self.split)
            rng = np.random.default_rng([self.seed, index])
            told = [caption(scene, rng, language) for language in self.languages]
            yield Sample(key, Held(_png(render(scene, self.size))), None, {"caption": told})

    def key_list(self) -> list[str]:
        return [f"{self.split}-{self.seed}-{index:08d}" for index in range(self.start, self.stop)]

    def columns(self) -> set[str] | None:
        return {"caption"}


def find_scenes(count: int, seed: int = 0) -> list[Part]:
    """The parts of the first `count` training scenes of a seed."""
    return [ScenePart(seed, at, min(at + PART_SIZE, count)) for at in range(0, count, PART_SIZE)]


def _png(pixels: np.ndarray) -> bytes:
    import PIL.Image

    file = io.BytesIO()
    PIL.Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
