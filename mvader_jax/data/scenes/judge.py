"""Recovers a scene from a picture by analysis: no learned judge stands between a model and its score.

Every object that can be drawn is compared with what stands out from the background; the best
explanation of the whole picture wins.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import UInt8

from mvader_jax.data.scenes.world import (
    BACKGROUNDS,
    CANVAS,
    COLORS,
    FILLS,
    PAIRS,
    POSITIONS,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    coverage,
)

#: Colours nearer to the background than this (Euclidean, in levels) are taken for noise.
_FAINT = 45.0
SCORES = ("background", "count", "shape", "color", "size", "fill", "position")


@functools.lru_cache(maxsize=1)
def _templates() -> dict[str, tuple[list[tuple[str, str, str]], np.ndarray]]:
    """Per position: (shape, size, fill) of every object, and their coverages [N, CANVAS * CANVAS]."""
    kinds = [(shape, size, fill) for shape in SHAPES for size in SIZES for fill in FILLS]
    return {
        position: (kinds, np.stack([coverage(*kind, position).ravel() for kind in kinds]))
        for position in POSITIONS
    }


def read_scene(image: UInt8[np.ndarray, "H W 3"]) -> Scene:
    """The scene that a picture shows, or the nearest to it; it may have no object. Never raises.

    image: uint8 [64, 64, 3] (other sizes are sampled down or up to it).
    """
    picture = _to_canvas(image)
    ground = _background(picture)
    offset = picture - np.asarray(BACKGROUNDS[ground], np.float32)
    distance = np.sqrt((offset**2).sum(-1))
    if np.percentile(distance, 99) < _FAINT:
        return Scene(ground, ())
    rows, columns = np.mgrid[0:CANVAS, 0:CANVAS]
    half = CANVAS // 2
    regions = {"left": columns < half, "right": columns >= half, "top": rows < half, "bottom": rows >= half}
    everywhere = np.ones((CANVAS, CANVAS), bool)
    layouts: list[list[tuple[str, np.ndarray]]] = [[(position, everywhere)] for position in POSITIONS]
    layouts += [[(position, regions[position]) for position in pair] for pair in PAIRS]
    best = min((_explain(picture, distance, layout) for layout in layouts), key=lambda found: found[0])
    return Scene(ground, tuple(best[1]))


def compare(truth: Scene, read: Scene) -> dict[str, float]:
    """Scores in 0..1 for each of SCORES: the share of the true objects that have the attribute right.

    Objects are matched by position first, then in order.
    """
    left = list(read.objects)
    pairs: list[tuple[SceneObject, SceneObject | None]] = []
    for thing in truth.objects:
        match = next((other for other in left if other.position == thing.position), None)
        if match is not None:
            left.remove(match)
        pairs.append((thing, match))
    pairs = [
        (thing, match if match is not None else (left.pop(0) if left else None)) for thing, match in pairs
    ]
    scores = {
        "background": float(truth.background == read.background),
        "count": float(len(truth.objects) == len(read.objects)),
    }
    for name in SCORES[2:]:
        right = [other is not None and getattr(thing, name) == getattr(other, name) for thing, other in pairs]
        scores[name] = float(np.mean(right)) if right else 1.0
    return scores


def _to_canvas(image: np.ndarray) -> np.ndarray:
    array = np.asarray(image, np.float32)
    rows = np.arange(CANVAS) * array.shape[0] // CANVAS
    columns = np.arange(CANVAS) * array.shape[1] // CANVAS
    return array[rows][:, columns]


def _background(picture: np.ndarray) -> str:
    """The background nearest to the median of the picture's corners, where no object ever stands."""
    corners = np.concatenate(
        [
            picture[r, c].reshape(-1, 3)
            for r in (slice(0, 8), slice(-8, None))
            for c in (slice(0, 8), slice(-8, None))
        ]
    )
    median = np.median(corners, axis=0)
    return min(BACKGROUNDS, key=lambda name: float(np.sum((median - BACKGROUNDS[name]) ** 2)))


def _explain(
    picture: np.ndarray, distance: np.ndarray, layout: list[tuple[str, np.ndarray]]
) -> tuple[float, list[SceneObject]]:
    """(what a layout leaves unexplained, its objects)."""
    total, objects = 0.0, []
    for position, region in layout:
        inside = region.ravel()
        seen = distance.ravel()[inside]
        seen = np.clip(seen / max(float(np.percentile(seen, 98)), 1.5 * _FAINT), 0.0, 1.0)
        kinds, covers = _templates()[position]
        errors = ((covers[:, inside] - seen) ** 2).sum(-1)
        best = int(np.argmin(errors))
        shape, size, fill = kinds[best]
        objects.append(SceneObject(shape, _color(picture, covers[best]), size, fill, position))
        total += float(errors[best])
    return total, objects


def _color(picture: np.ndarray, cover: np.ndarray) -> str:
    """The colour nearest to the mean of the pixels that an object covers most."""
    weight = np.where(cover >= 0.9, cover, 0.0)
    mean = (picture.reshape(-1, 3) * weight[:, None]).sum(0) / max(float(weight.sum()), 1e-6)
    return min(COLORS, key=lambda name: float(np.sum((mean - COLORS[name]) ** 2)))
