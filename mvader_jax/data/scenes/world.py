"""Scenes: a synthetic captioned world. One or two objects over a background, drawn at any size.

Every scene carries its ground truth; `scene_reader` recovers it from a picture. The attributes are few
and far apart on purpose: a small model must be able to get every one of them right.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from typing import Literal

import numpy as np
from jaxtyping import Float, UInt8

SHAPES = ("circle", "square", "triangle", "cross")
COLORS = {
    "red": (215, 40, 40),
    "green": (40, 165, 60),
    "blue": (45, 75, 225),
    "yellow": (240, 210, 40),
    "purple": (160, 40, 190),
    "cyan": (60, 205, 215),
}
SIZES = {"small": 9.0, "large": 14.0}
FILLS = ("solid", "hollow")
#: Centres on a canvas of 64 x 64: (x, y).
POSITIONS = {
    "left": (17.0, 32.0),
    "right": (47.0, 32.0),
    "top": (32.0, 17.0),
    "bottom": (32.0, 47.0),
    "centre": (32.0, 32.0),
}
#: Where two objects stand, so that they never touch.
PAIRS = (("left", "right"), ("top", "bottom"))
BACKGROUNDS = {"black": (20, 20, 20), "grey": (128, 128, 128), "white": (240, 240, 240)}
CANVAS = 64

Split = Literal["train", "validation"]
#: Share of all attribute combinations that no training scene ever shows.
_HELD_OUT = 20


@dataclasses.dataclass(frozen=True)
class SceneObject:
    """One object; every field is a word of the vocabularies above."""

    shape: str
    color: str
    size: str
    fill: str
    position: str


@dataclasses.dataclass(frozen=True)
class Scene:
    """background: its colour; objects: one, or two standing left and right or top and bottom."""

    background: str
    objects: tuple[SceneObject, ...]

    @property
    def held_out(self) -> bool:
        """Whether this combination of attributes belongs to the validation split (about 5 % do)."""
        digest = hashlib.blake2b(repr(dataclasses.astuple(self)).encode(), digest_size=4).digest()
        return int.from_bytes(digest, "big") % _HELD_OUT == 0


def sample_scene(rng: np.random.Generator, two_objects: float = 0.3) -> Scene:
    """A scene with uniformly drawn attributes; `two_objects` is the probability of a second object."""

    def pick(words: tuple[str, ...]) -> str:
        return words[int(rng.integers(len(words)))]

    def thing(position: str) -> SceneObject:
        return SceneObject(pick(SHAPES), pick(tuple(COLORS)), pick(tuple(SIZES)), pick(FILLS), position)

    background = pick(tuple(BACKGROUNDS))
    if rng.random() < two_objects:
        return Scene(background, tuple(thing(position) for position in PAIRS[int(rng.integers(len(PAIRS)))]))
    return Scene(background, (thing(pick(tuple(POSITIONS))),))


def scene_at(seed: int, index: int, split: Split = "train", two_objects: float = 0.3) -> Scene:
    """Scene number `index` of a split: random access, the same for ever. The splits share no scene."""
    rng = np.random.default_rng([seed, index, split == "validation"])
    while True:
        scene = sample_scene(rng, two_objects)
        if scene.held_out == (split == "validation"):
            return scene


def render(scene: Scene, size: int = CANVAS) -> UInt8[np.ndarray, "{size} {size} 3"]:
    """The picture, anti-aliased: uint8 [size, size, 3]."""
    picture = np.empty((size, size, 3), np.float32)
    picture[:] = BACKGROUNDS[scene.background]
    for thing in scene.objects:
        cover = coverage(thing.shape, thing.size, thing.fill, thing.position, size)[:, :, None]
        picture += cover * (np.asarray(COLORS[thing.color], np.float32) - picture)
    return np.rint(picture).astype(np.uint8)


@functools.lru_cache(maxsize=512)
def coverage(
    shape: str, size: str, fill: str, position: str, pixels: int = CANVAS
) -> Float[np.ndarray, "{pixels} {pixels}"]:
    """How much of each pixel an object covers: float32 [pixels, pixels] in 0..1."""
    scale = CANVAS / pixels
    grid = (np.arange(pixels, dtype=np.float32) + 0.5) * scale
    x = grid[None, :] - POSITIONS[position][0]
    y = grid[:, None] - POSITIONS[position][1]
    radius = SIZES[size]
    distance = _distance(shape, x, y, radius)
    if fill == "hollow":
        # A ring as thick as the autoencoder can carry, inside the outline.
        thickness = 2.8 if size == "small" else 4.0
        distance = np.maximum(distance, -distance - thickness)
    cover = np.clip(0.5 - distance / scale, 0.0, 1.0).astype(np.float32)
    cover.setflags(write=False)
    return cover


def _distance(shape: str, x: np.ndarray, y: np.ndarray, radius: float) -> np.ndarray:
    """Signed distance (or a bound that is exact at the edges) to a shape's outline, negative inside."""
    if shape == "circle":
        return np.hypot(x, y) - radius
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.9 * radius
    if shape == "triangle":
        # Apex up: the base, and two slopes that meet at (0, -radius).
        slope = np.hypot(2.0, 1.0)
        sides = (2.0 * np.abs(x) - (y + radius)) / slope
        return np.maximum(sides, y - 0.85 * radius)
    if shape == "cross":
        arm, reach = 0.5 * radius, radius
        a = np.maximum(np.abs(x) - arm, np.abs(y) - reach)
        b = np.maximum(np.abs(x) - reach, np.abs(y) - arm)
        return np.minimum(a, b)
    raise ValueError(f"unknown shape {shape!r}; known: {', '.join(SHAPES)}")
