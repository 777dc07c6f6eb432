"""Tasks whose prompts give one element a weight theta: what is asked for, and what of it a picture has right."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import numpy as np

from mvader_jax.bounds import NonNegativeFloat
from mvader_jax.data.scenes.captions import change_phrase
from mvader_jax.data.scenes.judge import read_scene
from mvader_jax.data.scenes.prompts import STYLES, SceneTask, compose, scene_task
from mvader_jax.data.scenes.world import COLORS, Scene, SceneObject, render, scene_at
from mvader_jax.errors import UserError
from mvader_jax.prompt.elements import SITES, Balance, Element, Image, Prompt, Text, check_balance
from mvader_jax.settings import Checked

THETAS = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02, 0.0)
#: What the text beside the image says; {color} is the new colour's name. Worded as captions are.
PHRASE = "a {color} shape"
Order = Literal["text first", "image first"]


@dataclasses.dataclass(frozen=True)
class Curves(Checked):
    """What the curves compare.

    thetas: of the element that carries them; sites: where they act; balance: thetas as shares (`Prompt`); order: of the text
    and the images; phrase: what the text of `change` says, {color} being the new colour's name. Raises UserError
    for an unknown site, and for a phrase without a colour.
    """

    thetas: tuple[NonNegativeFloat, ...] = THETAS
    sites: tuple[str, ...] = SITES
    order: Order = "text first"
    balance: Balance = False
    phrase: str = PHRASE

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in [name for name in self.sites if name not in SITES]:
            raise UserError(f"unknown site {name!r}; accepted: {', '.join(SITES)}")
        for site in self.sites:
            check_balance(self.balance, site)
        if "{color}" not in self.phrase:
            raise UserError(
                f"the phrase {self.phrase!r} names no colour; expected {{color}} in it, as in {PHRASE!r}"
            )

    @property
    def points(self) -> list[tuple[float, str]]:
        """(theta, site) of a curve's rows. Where theta is 1 the site makes no difference, unless balanced: that prompt
        is the plain one, at the site "any"."""
        plain = [(1.0, "any")] if 1.0 in self.thetas and not self.balance else []
        return plain + [(t, site) for site in self.sites for t in self.thetas if t != 1.0 or self.balance]


@dataclasses.dataclass(frozen=True)
class Asked:
    """elements: of the prompt; weighted: which of them carries theta; right: what a picture, as read, has right."""

    elements: tuple[Element, ...]
    weighted: int
    right: Callable[[Scene], dict[str, bool]]

    def prompt(self, theta: float, site: Any, balance: Balance = False) -> Prompt:
        elements = list(self.elements)
        elements[self.weighted] = dataclasses.replace(elements[self.weighted], weight=theta)
        return Prompt(tuple(elements), site, balance)


@dataclasses.dataclass(frozen=True)
class Task:
    """asks: (how many, curves) -> the prompts, of held-out pictures; options: the fields of `Curves` beside
    thetas, sites and balance that change them."""

    asks: Callable[[int, Curves], list[Asked]]
    options: tuple[str, ...] = ()


def shares(asked: Sequence[Asked], pictures: Iterable[np.ndarray]) -> dict[str, float]:
    """Of pictures, uint8 [H, W, 3], one per prompt: how many in 0..1 have each thing right."""
    rows = [one.right(read_scene(picture)) for one, picture in zip(asked, pictures, strict=True)]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def held_out(count: int, two_objects: float = 0.3) -> list[Scene]:
    """The first `count` scenes of the validation split, which training never shows."""
    return [scene_at(0, index, "validation", two_objects) for index in range(count)]


def change(count: int, curves: Curves) -> list[Asked]:
    """[text naming a new colour, image of theta]: the text's colour, the image's, its shape, and the text's colour
    with the image's shape. No object in the picture counts as nothing right."""

    def asked(index: int, scene: Scene) -> Asked:
        thing = scene.objects[0]
        others = [color for color in COLORS if color != thing.color]
        color = others[index % len(others)]

        def right(read: Scene) -> dict[str, bool]:
            shape, seen = _kind(read.objects[0]) if read.objects else (None, None)
            return {
                "text_color": seen == color,
                "image_color": seen == thing.color,
                "image_shape": shape == thing.shape,
                "both": (shape, seen) == (thing.shape, color),
            }

        return _beside(curves.phrase.replace("{color}", color), scene, curves.order, right)

    return [asked(index, scene) for index, scene in enumerate(held_out(count, two_objects=0.0))]


def style(count: int, curves: Curves) -> list[Asked]:
    """[text naming another fill, size or background, image of theta]: the text's style, the image's object (its
    shape and colour), and both."""

    def asked(index: int, scene: Scene) -> Asked:
        thing = scene.objects[0]
        name = list(STYLES)[index % len(STYLES)]
        before = scene.background if name == "background" else getattr(thing, name)
        others = [value for value in STYLES[name] if value != before]
        value = others[index // len(STYLES) % len(others)]

        def right(read: Scene) -> dict[str, bool]:
            seen = read.objects[0] if read.objects else None
            told = value == (read.background if name == "background" else getattr(seen, name, None))
            kept = seen is not None and _kind(seen) == _kind(thing)
            return {"text_style": told, "image_object": kept, "both": told and kept}

        return _beside(change_phrase(name, value), scene, curves.order, right)

    return [asked(index, scene) for index, scene in enumerate(held_out(count, two_objects=0.0))]


def pairs(count: int, curves: Curves) -> list[Asked]:
    """[image, image of theta]: both objects, each with its own shape and colour, the first's alone, the second's
    alone, or neither."""

    def asked(task: SceneTask) -> Asked:
        first, second = pictured(task)

        def right(read: Scene) -> dict[str, bool]:
            seen = collections.Counter(map(_kind, read.objects))
            both = seen >= collections.Counter((_kind(first.objects[0]), _kind(second.objects[0])))
            one, two = (seen[_kind(scene.objects[0])] > 0 for scene in (first, second))
            return {
                "both": both,
                "first": one and not both,
                "second": two and not one,
                "neither": not (one or two),
            }

        return Asked((Image(render(first)), Image(render(second))), 1, right)

    return [asked(scene_task(0, i, "validation", _rng(i), kinds=("pair",))) for i in range(count)]


def order(count: int, curves: Curves) -> list[Asked]:
    """[image, image of theta] and the other way round, where that asks for another picture (`compose`): the first
    image's background, both objects in their places, and all of it."""

    def asked(first: Scene, second: Scene) -> Asked:
        target = compose(first, second)

        def right(read: Scene) -> dict[str, bool]:
            ground = read.background == target.background
            placed = set(map(_placed, read.objects)) == set(map(_placed, target.objects))
            return {"background": ground, "places": placed, "both": ground and placed}

        return Asked((Image(render(first)), Image(render(second))), 1, right)

    found: list[Asked] = []
    index = 0
    while len(found) < count:
        first, second = pictured(scene_task(0, index, "validation", _rng(index), kinds=("pair",)))
        if compose(first, second) != compose(second, first):
            found += [asked(first, second), asked(second, first)]
        index += 1
    return found[:count]


def three(count: int, curves: Curves) -> list[Asked]:
    """[text of theta naming a colour, image, image]: that colour alone, the images' shapes, and both."""

    def asked(task: SceneTask) -> Asked:
        words = next(element for element in task.elements if isinstance(element, str))
        color = task.target.objects[0].color
        shapes = sorted(thing.shape for thing in task.target.objects)

        def right(read: Scene) -> dict[str, bool]:
            told = bool(read.objects) and all(thing.color == color for thing in read.objects)
            shaped = sorted(thing.shape for thing in read.objects) == shapes
            return {"text_color": told, "image_shapes": shaped, "both": told and shaped}

        images = tuple(Image(render(scene)) for scene in pictured(task))
        if curves.order == "text first":
            return Asked((Text(words), *images), 0, right)
        return Asked((*images, Text(words)), len(images), right)

    tasks = [scene_task(0, i, "validation", _rng(i), ("en",), ("pair_color",)) for i in range(count)]
    return [asked(task) for task in tasks]


#: By the name of the part.
TASKS = {
    "change": Task(change, ("order", "phrase")),
    "style": Task(style, ("order",)),
    "pairs": Task(pairs),
    "order": Task(order),
    "three": Task(three, ("order",)),
}


def check_options(options: Iterable[str], parts: Sequence[str]) -> None:
    """Raises UserError for a field of `Curves` that changes none of these parts."""
    own = {option for task in TASKS.values() for option in task.options}
    for option in options:
        takers = [name for name, task in TASKS.items() if option not in own or option in task.options]
        if not set(takers) & set(parts):
            raise UserError(f"{option} belongs to {', '.join(takers)}, which --parts leaves out")


def pictured(task: SceneTask) -> list[Scene]:
    """The scenes among its elements."""
    return [element for element in task.elements if isinstance(element, Scene)]


def _beside(words: str, scene: Scene, order: Order, right: Callable[[Scene], dict[str, bool]]) -> Asked:
    """A text beside an image that carries theta."""
    text, image = Text(words), Image(render(scene))
    return Asked((text, image), 1, right) if order == "text first" else Asked((image, text), 0, right)


def _rng(index: int) -> np.random.Generator:
    return np.random.default_rng([0, index])


def _kind(thing: SceneObject) -> tuple[str, str]:
    return thing.shape, thing.color


def _placed(thing: SceneObject) -> tuple[str, str, str]:
    return thing.shape, thing.color, thing.position
