"""What people would say of a scene, in English and German; any attribute may be left out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

import numpy as np

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
)

Language = Literal["en", "de"]
ATTRIBUTES = ("shape", "color", "size", "fill", "position", "background")

_PLACE_EN = {
    "left": "on the left",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "centre": "in the centre",
}
_PLACE_DE = {"left": "links", "right": "rechts", "top": "oben", "bottom": "unten", "centre": "in der mitte"}
#: Noun and the ending of its adjectives after "ein(e)".
_NOUN_DE = {
    "circle": ("kreis", "er"),
    "square": ("quadrat", "es"),
    "triangle": ("dreieck", "es"),
    "cross": ("kreuz", "es"),
    None: ("form", "e"),
}
_ADJECTIVE_DE = {
    "red": "rot",
    "green": "grün",
    "blue": "blau",
    "yellow": "gelb",
    "purple": "violett",
    "cyan": "türkis",
    "small": "klein",
    "large": "groß",
    "solid": "gefüllt",
    "hollow": "hohl",
    "black": "schwarz",
    "grey": "grau",
    "white": "weiß",
}
#: How often a caption with omissions is only a colour: "in red".
_STYLE_ONLY = 0.08


def caption(scene: Scene, rng: np.random.Generator, language: Language = "en", omit: float = 0.0) -> str:
    """A caption in lower case. omit: the probability that each attribute is left out (0: all are named)."""
    if omit and rng.random() < _STYLE_ONLY:
        color = scene.objects[int(rng.integers(len(scene.objects)))].color
        return f"in {color}" if language == "en" else f"in {_ADJECTIVE_DE[color]}"
    told = [{name for name in ATTRIBUTES[:-1] if rng.random() >= omit} for _ in scene.objects]
    with_background = rng.random() >= omit
    variant = int(rng.integers(2))
    phrases = [_phrase(thing, names, language) for thing, names in zip(scene.objects, told, strict=True)]
    joint = " and " if language == "en" else " und "
    text = joint.join(phrases)
    if not with_background:
        return text
    if language == "en":
        ground = f"a {scene.background} background"
        return f"{text} on {ground}" if variant == 0 else f"{ground} with {text}"
    word = _ADJECTIVE_DE[scene.background]
    if variant == 0:
        return f"{text} auf {word}em hintergrund"
    return f"{word}er hintergrund, darauf {text}"


def _phrase(thing: SceneObject, told: set[str], language: Language) -> str:
    words = [getattr(thing, name) for name in ("size", "fill", "color") if name in told]
    shape = thing.shape if "shape" in told else None
    if language == "en":
        place = [_PLACE_EN[thing.position]] if "position" in told else []
        return " ".join(["a", *words, shape or "shape", *place])
    noun, ending = _NOUN_DE[shape]
    place = [_PLACE_DE[thing.position]] if "position" in told else []
    return " ".join(
        ["eine" if shape is None else "ein", *(_ADJECTIVE_DE[w] + ending for w in words), noun, *place]
    )


def change_phrase(attribute: str, value: str, language: Language = "en") -> str:
    """What a person says who wants another colour, fill, size or background: "in red", "a hollow shape"."""
    if attribute == "color":
        return f"in {value}" if language == "en" else f"in {_ADJECTIVE_DE[value]}"
    if attribute == "background":
        english, german = (
            f"a shape on a {value} background",
            f"eine form auf {_ADJECTIVE_DE[value]}em hintergrund",
        )
    else:
        english, german = f"a {value} shape", f"eine {_ADJECTIVE_DE[value]}e form"
    return english if language == "en" else german


def contrastive_triplet(
    scene: Scene, rng: np.random.Generator, languages: Sequence[Language] = ("en", "de"), omit: float = 0.0
) -> tuple[str, str, str]:
    """(query, positive, hard negative): two full captions of the scene, in languages drawn anew, and
    one of a scene that differs in a single attribute."""

    def tell(which: Scene) -> str:
        return caption(which, rng, languages[int(rng.integers(len(languages)))], omit)

    return tell(scene), tell(scene), tell(differing(scene, rng))


def differing(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with one attribute of one object, or the background, changed to another value."""
    words = {
        "shape": SHAPES,
        "color": tuple(COLORS),
        "size": tuple(SIZES),
        "fill": FILLS,
        "position": tuple(POSITIONS),
        "background": tuple(BACKGROUNDS),
    }

    def other(name: str, now: str) -> str:
        rest = [word for word in words[name] if word != now]
        return rest[int(rng.integers(len(rest)))]

    name = ATTRIBUTES[int(rng.integers(len(ATTRIBUTES)))]
    if name == "background":
        return dataclasses.replace(scene, background=other(name, scene.background))
    which = int(rng.integers(len(scene.objects)))
    things = list(scene.objects)
    if name == "position" and len(things) == 2:
        # Two objects stand in a pair of places: the other pair is the change.
        now = tuple(thing.position for thing in things)
        places = next(pair for pair in PAIRS if pair != now)
        things = [dataclasses.replace(t, position=p) for t, p in zip(things, places, strict=True)]
    else:
        things[which] = dataclasses.replace(
            things[which], **{name: other(name, getattr(things[which], name))}
        )
    return dataclasses.replace(scene, objects=tuple(things))
