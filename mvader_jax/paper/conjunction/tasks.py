"""What is asked: pairs of coloured objects, in the manner of MCC-250 (Bellagente et al. 2023, MultiFusion).

The objects are those of scenes, whose pictures are drawn and read here, or a folder of pictures of real things.
"""

from __future__ import annotations

import dataclasses
import io
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import PIL.Image
from jaxtyping import UInt8

from mvader_jax.data.scenes.judge import read_scene
from mvader_jax.data.scenes.world import COLORS, SHAPES, Scene, SceneObject, render
from mvader_jax.errors import UserError
from mvader_jax.images.names import READABLE
from mvader_jax.storage.atomic import local

PARTS = ("text", "images", "mixed")
COUNT = 250
#: What is counted, in shares of the pictures: none of the two is there; one at least, and one at least in its colour;
#: both, and both in their colours.
COUNTS = ("none", "one", "one_right", "two", "two_right")


@dataclasses.dataclass(frozen=True)
class Thing:
    """A coloured object. picture: its file; None for one of the scenes' world."""

    color: str
    noun: str
    picture: Path | None = None

    def __str__(self) -> str:
        return f"{self.color} {self.noun}"

    @property
    def words(self) -> str:
        """As in a prompt: "a red circle", "an orange cup"."""
        return f"a{'n' if self.color[0] in 'aeiou' else ''} {self}"

    def pixels(self) -> UInt8[np.ndarray, "64 64 3"]:
        """The picture of a scene's thing: it alone, large and solid on black."""
        return render(Scene("black", (SceneObject(self.noun, self.color, "large", "solid", "centre"),)))

    def file(self) -> bytes:
        """Its picture as a file."""
        if self.picture is not None:
            return self.picture.read_bytes()
        held = io.BytesIO()
        PIL.Image.fromarray(self.pixels()).save(held, "PNG")
        return held.getvalue()


@dataclasses.dataclass(frozen=True)
class Conjunction:
    """One prompt. elements: words, or a thing whose picture stands there."""

    part: str
    number: int
    things: tuple[Thing, Thing]
    elements: tuple[str | Thing, ...]

    @property
    def id(self) -> str:
        return f"{self.part}-{self.number:03d}"


@dataclasses.dataclass(frozen=True)
class Seen:
    """What a picture holds of two things: is each there, and in its colour? Of the colour alone nothing follows."""

    there: tuple[bool, bool]
    right: tuple[bool, bool]

    def counts(self) -> dict[str, bool]:
        right = [there and color for there, color in zip(self.there, self.right, strict=True)]
        found = (not any(self.there), any(self.there), any(right), all(self.there), all(right))
        return dict(zip(COUNTS, found, strict=True))


def scene_things() -> list[Thing]:
    """Every shape in every colour."""
    return [Thing(color, shape) for shape in SHAPES for color in COLORS]


def read_things(folder: Path) -> list[Thing]:
    """Things by the names of their pictures: `green vase.png`, the colour first. Raises UserError for other names."""
    place = local(folder)
    if not place.is_dir():
        raise UserError(f"{str(folder)!r} is no folder of pictures, named as 'green vase.png'")
    found = []
    for path in sorted(path for path in place.iterdir() if path.suffix.lower() in READABLE):
        color, blank, noun = re.sub(r"[ _-]+", " ", path.stem).strip().partition(" ")
        if not blank:
            raise UserError(f"{str(path)!r} is not named as 'green vase.png', the colour first")
        found.append(Thing(color.lower(), noun.lower(), path))
    if len({thing.noun for thing in found}) < 2 or len({thing.color for thing in found}) < 2:
        raise UserError(
            f"{str(folder)!r} has {len(found)} pictures; a pair needs two nouns and two colours, as 'green vase.png'"
        )
    return found


def conjunctions(things: Sequence[Thing], part: str, count: int = COUNT, seed: int = 0) -> list[Conjunction]:
    """Pairs of different nouns and colours, the same of every part. Raises UserError for an unknown part.

    text: "a red circle and a blue square"; images: both pictures; mixed: by turns the first or the second in words.
    """
    if part not in PARTS:
        raise UserError(f"unknown part {part!r}; accepted: {', '.join(PARTS)}")
    pairs = [(a, b) for a in things for b in things if a.noun != b.noun and a.color != b.color]
    order = np.random.default_rng([seed, len(pairs)]).permutation(len(pairs))[:count]
    found = []
    for number, which in enumerate(order):
        a, b = pairs[which]
        elements: tuple[str | Thing, ...] = (a, b)
        if part == "text":
            elements = (f"{a.words} and {b.words}",)
        elif part == "mixed":
            elements = (a.words, b) if number % 2 == 0 else (a, b.words)
        found.append(Conjunction(part, number, (a, b), elements))
    return found


def read(task: Conjunction, picture: np.ndarray) -> Seen:
    """By the scenes' reader: an object of the shape, and one of shape and colour."""
    objects = read_scene(picture).objects

    def there(thing: Thing) -> bool:
        return any(seen.shape == thing.noun for seen in objects)

    def right(thing: Thing) -> bool:
        return any((seen.shape, seen.color) == (thing.noun, thing.color) for seen in objects)

    a, b = task.things
    return Seen((there(a), there(b)), (right(a), right(b)))


def shares(seen: Sequence[Seen]) -> dict[str, float]:
    """Of the pictures, in 0..1."""
    rows = [one.counts() for one in seen]
    return {name: float(np.mean([row[name] for row in rows])) for name in COUNTS}
