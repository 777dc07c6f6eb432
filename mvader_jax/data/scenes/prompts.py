"""Interleaved prompts made of scenes: what the paper's limitations ask for, with the answer known.

Three kinds, drawn alike: a picture and a colour ("in red": the object in that colour), a picture and
another attribute (fill, size or background: a change of style), and two pictures of one object each
(the target shows both).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from mvader_jax.data.order import Record
from mvader_jax.data.scenes.captions import Language, change_phrase
from mvader_jax.data.scenes.world import BACKGROUNDS, COLORS, FILLS, SIZES, Scene, Split, render, scene_at
from mvader_jax.prompt.elements import Image, Prompt, Text

#: Kinds of interleaved prompt.
KINDS = ("color", "style", "both")
_STYLES: dict[str, tuple[str, ...]] = {"fill": FILLS, "size": tuple(SIZES), "background": tuple(BACKGROUNDS)}


@dataclasses.dataclass(frozen=True)
class SceneTask:
    """An interleaved prompt in terms of scenes: pictures and words in order, and the scene that answers it."""

    kind: str
    elements: tuple[Scene | str, ...]
    target: Scene


def scene_task(
    seed: int,
    index: int,
    split: Split,
    rng: np.random.Generator,
    languages: tuple[Language, ...] = ("en", "de"),
) -> SceneTask:
    """Task `index` of a split: its scene is fixed, the kind, the wording and the order of elements are drawn."""
    kind = KINDS[int(rng.integers(len(KINDS)))]
    if kind == "both":
        target = scene_at(seed, index, split, two_objects=1.0)
        parts = tuple(Scene(target.background, (thing,)) for thing in target.objects)
        return SceneTask(kind, parts if rng.random() < 0.5 else parts[::-1], target)
    scene = scene_at(seed, index, split, two_objects=0.0)
    names = ("color",) if kind == "color" else tuple(_STYLES)
    # The answer, too, must be of the training split. Where every change of the kind is held out, any will do.
    changes = _changes(scene, names, split) or _changes(scene, ("color", *_STYLES), split)
    name = names[0] if kind == "color" else _pick(tuple(dict.fromkeys(n for n, _, _ in changes)), rng)
    name, value, target = _pick([change for change in changes if change[0] == name] or changes, rng)
    words = change_phrase(name, value, languages[int(rng.integers(len(languages)))])
    return SceneTask(kind, (words, scene) if rng.random() < 0.5 else (scene, words), target)


class SceneInterleaved:
    """{"prompt": Prompt, "image": uint8 [size, size, 3]} of scene tasks."""

    def __init__(
        self, count: int, languages: tuple[Language, ...], split: Split, seed: int, size: int
    ) -> None:
        self._count, self._languages = count, languages
        self._split, self._seed, self._size = split, seed, size

    def __len__(self) -> int:
        return self._count

    def record(self, index: int, rng: np.random.Generator) -> Record:
        task = scene_task(self._seed, index, self._split, rng, self._languages)
        elements: list[Any] = [
            Text(element) if isinstance(element, str) else Image(render(element, self._size))
            for element in task.elements
        ]
        return {"prompt": Prompt(tuple(elements)), "image": render(task.target, self._size)}

    def where(self, index: int) -> str:
        return f"scene task {index} of the {self._split} split"


def _changes(scene: Scene, names: Sequence[str], split: Split) -> list[tuple[str, str, Scene]]:
    """Every (attribute, new value, scene with it) that the split may show."""
    found = []
    for name in names:
        thing = scene.objects[0]
        now = scene.background if name == "background" else getattr(thing, name)
        for value in {"color": tuple(COLORS), **_STYLES}[name]:
            if name == "background":
                changed = dataclasses.replace(scene, background=value)
            else:
                changed = dataclasses.replace(scene, objects=(dataclasses.replace(thing, **{name: value}),))
            if value != now and not (split == "train" and changed.held_out):
                found.append((name, value, changed))
    return found


def _pick(words: Sequence[Any], rng: np.random.Generator) -> Any:
    return words[int(rng.integers(len(words)))]
