"""Interleaved prompts made of scenes: what the paper's limitations ask for, with the answer known.

Kinds, of pictures of one object each:

color: a picture and a colour ("in red"): the object in that colour.
style: a picture and another fill, size or background: a change of style.
both: the two halves of a scene of two objects, as pictures: the scene.
pair: any two pictures: both objects, as `compose` puts them together.
pair_place: two pictures whose objects stand in the same place, a fifth of all pairs: one of them moves.
pair_color: any two pictures and a colour: both objects so composed, both in that colour.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from mvader_jax.data.order import Record
from mvader_jax.data.scenes.captions import Language, change_phrase
from mvader_jax.data.scenes.world import (
    BACKGROUNDS,
    COLORS,
    FILLS,
    PAIRS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    Split,
    render,
    scene_at,
)
from mvader_jax.prompt.elements import Image, Prompt, Text

Kind = Literal["color", "style", "both", "pair", "pair_place", "pair_color"]
#: The kinds that are drawn, alike, where none are named.
KINDS: tuple[Kind, ...] = ("color", "style", "both")
_ACROSS = {here: there for pair in PAIRS for here, there in (pair, pair[::-1])}
#: What may change of a picture beside colours, and to what.
STYLES: dict[str, tuple[str, ...]] = {"fill": FILLS, "size": tuple(SIZES), "background": tuple(BACKGROUNDS)}


@dataclasses.dataclass(frozen=True)
class SceneTask:
    """An interleaved prompt in terms of scenes: pictures and words in order, and the scene that answers it."""

    kind: Kind
    elements: tuple[Scene | str, ...]
    target: Scene


def compose(first: Scene, second: Scene) -> Scene:
    """The scene that two pictures of one object each ask for, in this order.

    The first picture gives the background, and its object stays where it is; the second's takes the place
    across. Where the first's stands in the centre, which has no place across, the second's stays and the
    first's goes across; where both do, they stand left and right.
    """
    one, two = first.objects[0], second.objects[0]
    place = one.position if one.position in _ACROSS else _ACROSS.get(two.position, "left")
    moved = {
        place: dataclasses.replace(one, position=place),
        _ACROSS[place]: dataclasses.replace(two, position=_ACROSS[place]),
    }
    pair = next(pair for pair in PAIRS if place in pair)
    return Scene(first.background, tuple(moved[position] for position in pair))


def scene_task(
    seed: int,
    index: int,
    split: Split,
    rng: np.random.Generator,
    languages: tuple[Language, ...] = ("en", "de"),
    kinds: tuple[Kind, ...] = KINDS,
) -> SceneTask:
    """Task `index` of a split: its scene is fixed; the kind, a second picture, the wording and the order of
    elements are drawn."""
    kind = kinds[int(rng.integers(len(kinds)))]
    if kind == "both":
        target = scene_at(seed, index, split, two_objects=1.0)
        parts = tuple(Scene(target.background, (thing,)) for thing in target.objects)
        return SceneTask(kind, parts if rng.random() < 0.5 else parts[::-1], target)
    scene = scene_at(seed, index, split, two_objects=0.0)
    if kind in ("pair", "pair_place", "pair_color"):
        return _pair(kind, scene, split, rng, languages)
    names = ("color",) if kind == "color" else tuple(STYLES)
    # The answer, too, must be of the training split. Where every change of the kind is held out, any will do.
    changes = _changes(scene, names, split) or _changes(scene, ("color", *STYLES), split)
    name = names[0] if kind == "color" else _pick(tuple(dict.fromkeys(n for n, _, _ in changes)), rng)
    name, value, target = _pick([change for change in changes if change[0] == name] or changes, rng)
    words = change_phrase(name, value, languages[int(rng.integers(len(languages)))])
    return SceneTask(kind, (words, scene) if rng.random() < 0.5 else (scene, words), target)


def _pair(
    kind: Kind, scene: Scene, split: Split, rng: np.random.Generator, languages: tuple[Language, ...]
) -> SceneTask:
    """A scene and another one, both of one object and of the split, as is what they ask for (where a thousand draws
    find none, it may be of the other)."""
    held_out = split == "validation"
    others = _singles(held_out, scene.objects[0].position if kind == "pair_place" else None)
    for tries in itertools.count(1):
        other = _pick(others, rng)
        pictures = (scene, other) if rng.random() < 0.5 else (other, scene)
        target = compose(*pictures)
        elements: tuple[Scene | str, ...] = pictures
        if kind == "pair_color":
            color = _pick(tuple(COLORS), rng)
            if all(thing.color == color for thing in target.objects):
                continue
            target = dataclasses.replace(
                target, objects=tuple(dataclasses.replace(thing, color=color) for thing in target.objects)
            )
            words = change_phrase("color", color, languages[int(rng.integers(len(languages)))])
            at = int(rng.integers(len(pictures) + 1))
            elements = (*pictures[:at], words, *pictures[at:])
        if target.held_out == held_out or tries >= 1000:
            return SceneTask(kind, elements, target)
    raise AssertionError


@functools.cache
def _singles(held_out: bool, position: str | None = None) -> tuple[Scene, ...]:
    """Every scene of one object that is held out, or that is not; with its object in that position alone."""
    things = itertools.product(SHAPES, COLORS, SIZES, FILLS, POSITIONS if position is None else (position,))
    scenes = (Scene(ground, (SceneObject(*words),)) for words in things for ground in BACKGROUNDS)
    return tuple(scene for scene in scenes if scene.held_out == held_out)


class SceneInterleaved:
    """{"prompt": Prompt, "image": uint8 [size, size, 3]} of scene tasks."""

    def __init__(
        self,
        count: int,
        languages: tuple[Language, ...],
        split: Split,
        seed: int,
        size: int,
        kinds: tuple[Kind, ...] = KINDS,
    ) -> None:
        self._count, self._languages, self._kinds = count, languages, kinds
        self._split, self._seed, self._size = split, seed, size

    def __len__(self) -> int:
        return self._count

    def record(self, index: int, rng: np.random.Generator) -> Record:
        task = scene_task(self._seed, index, self._split, rng, self._languages, self._kinds)
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
        for value in {"color": tuple(COLORS), **STYLES}[name]:
            if name == "background":
                changed = dataclasses.replace(scene, background=value)
            else:
                changed = dataclasses.replace(scene, objects=(dataclasses.replace(thing, **{name: value}),))
            if value != now and not (split == "train" and changed.held_out):
                found.append((name, value, changed))
    return found


def _pick(words: Sequence[Any], rng: np.random.Generator) -> Any:
    return words[int(rng.integers(len(words)))]
