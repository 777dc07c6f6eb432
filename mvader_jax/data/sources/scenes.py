"""The synthetic world as a source of records: drawn as it is read, the same for ever at an index."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from mvader_jax.bounds import PositiveInt, Share
from mvader_jax.data.order import Dataset, Record
from mvader_jax.data.scenes.captions import Language, caption, contrastive_triplet
from mvader_jax.data.scenes.prompts import KINDS, Kind, SceneInterleaved
from mvader_jax.data.scenes.world import Split, render, scene_at
from mvader_jax.data.sources.base import Source
from mvader_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Scenes(Source):
    """The synthetic captioned world, which needs no files.

    Raises UserError without a kind of prompt.
    """

    #: Scenes in an epoch.
    num_records: PositiveInt = 100_000
    #: Of the captions.
    languages: tuple[Language, ...] = ("en", "de")
    #: Probability that a caption leaves an attribute out.
    omit: Share = 0.0
    #: Probability that a second caption of the same scene follows, as in parallel corpora.
    parallel: Share = 0.0
    #: Kinds of the interleaved prompts (data/scenes/prompts.py), drawn alike; one that is named twice comes twice as
    #: often.
    prompts: tuple[Kind, ...] = KINDS

    drawn: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.prompts:
            raise UserError(
                "source.prompts names no kind of interleaved prompt; leave it out for the default"
            )

    def pictures(self, split: Split, seed: int, size: int) -> Sequence[SceneImages]:
        return [SceneImages(self, split, seed, size)]

    def pairs(self, split: Split, seed: int, size: int, pictures: bool = False) -> Sequence[Dataset]:
        return [ScenePairs(self, split, seed, size)]

    def interleaved(self, split: Split, seed: int, size: int) -> Sequence[Dataset]:
        return [SceneInterleaved(self.num_records, self.languages, split, seed, size, self.prompts)]

    def captions(self, pictures: SceneImages, index: int) -> list[str]:
        return []

    def wording(self, split: Split, seed: int, size: int) -> Callable[[int, np.random.Generator], str] | None:
        return SceneImages(self, split, seed, size).caption

    def origin(self, seed: int, size: int) -> dict[str, Any]:
        scenes = SceneImages(self, "train", seed, size)
        # The drawing itself may change from one version to the next.
        drawn = hashlib.sha256(b"".join(scenes.picture(i).tobytes() for i in range(min(len(scenes), 8))))
        return {
            "source": self.kind,
            "seed": seed,
            "num_records": self.num_records,
            "image_size": size,
            "pictures": drawn.hexdigest()[:16],
        }


class SceneImages:
    """{"image": uint8 [size, size, 3], "caption": str}; the wording is drawn anew each time."""

    def __init__(self, scenes: Scenes, split: Split, seed: int, size: int) -> None:
        self._scenes, self._split, self._seed, self._size = scenes, split, seed, size

    def __len__(self) -> int:
        return self._scenes.num_records

    def record(self, index: int, rng: np.random.Generator) -> Record:
        return {"image": self.picture(index), "caption": self.caption(index, rng)}

    def picture(self, index: int) -> UInt8[np.ndarray, "{self._size} {self._size} 3"]:
        """uint8 [size, size, 3]."""
        return render(scene_at(self._seed, index, self._split), self._size)

    def caption(self, index: int, rng: np.random.Generator) -> str:
        """A caption of scene `index`, worded by `rng`; two in a row where `parallel` says so."""
        settings = self._scenes
        scene = scene_at(self._seed, index, self._split)

        def told() -> str:
            language = settings.languages[int(rng.integers(len(settings.languages)))]
            omit = settings.omit if rng.random() < 0.5 else 0.0
            return caption(scene, rng, language, omit)

        first = told()
        return f"{first}; {told()}" if settings.parallel and rng.random() < settings.parallel else first

    def where(self, index: int) -> str:
        return f"scene {index} of the {self._split} split"


class ScenePairs(SceneImages):
    """{"image", "query", "positive", "negative"}: two captions of a scene, and one of a scene that differs."""

    def record(self, index: int, rng: np.random.Generator) -> Record:
        scene = scene_at(self._seed, index, self._split)
        query, positive, negative = contrastive_triplet(scene, rng, self._scenes.languages)
        return {"image": self.picture(index), "query": query, "positive": positive, "negative": negative}
