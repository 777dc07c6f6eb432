"""Which picture of the world a drawn one is nearest to: retrieval by classical features, aligned.

No weight is shared with any model, and none is trained. Renders that are the same but for a few levels count as
one picture, whichever set or subject they belong to.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int, UInt8

from mvader_jax.data.emoji.world import GROUNDS, Pair, World, over
from mvader_jax.paper.emoji.features import (
    COARSE,
    SIDE,
    features,
    grounds_of,
    nearest_distances,
    shrunk,
    squared_distances,
)

#: Renders whose colours differ by less (root mean square, in levels of 255) are the same picture.
SAME = 4.0
#: How many pictures a verdict names, nearest first.
TOP = 5
#: Pictures of one call of a program; fewer are filled up to a power of two.
_CHUNK = 512


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether the nearest picture, or one of the five nearest, is the right one, of its subject, in its style."""

    exact_1: bool
    exact_5: bool
    subject_1: bool
    subject_5: bool
    style_1: bool
    style_5: bool


def _chunks(pictures: np.ndarray) -> list[tuple[np.ndarray, int]]:
    """(pictures filled up, so that few programs are compiled; how many of them are there)."""
    found = []
    for at in range(0, len(pictures), _CHUNK):
        part = pictures[at : at + _CHUNK]
        size = min(_CHUNK, 1 << (len(pictures) - 1).bit_length())
        found.append((np.concatenate([part, np.repeat(part[-1:], size - len(part), 0)]), len(part)))
    return found


@jax.jit
def _features(pictures: jax.Array) -> jax.Array:
    return features(shrunk(pictures))


@jax.jit
def _alike(part: jax.Array, gallery: jax.Array) -> jax.Array:
    # Means of pixels differ by no more than the pixels do.
    coarse = (slice(None), COARSE)
    return squared_distances(part[coarse], gallery[coarse]) < (SAME / 255) ** 2 + 1e-6


@functools.partial(jax.jit, static_argnames="align")
def _nearest(pictures: jax.Array, gallery: jax.Array, align: bool) -> jax.Array:
    near = nearest_distances(shrunk(pictures), gallery, align)
    return jax.lax.top_k(-near, min(4 * TOP, len(gallery)))[1]


class Gallery:
    """All pictures of a world with their alpha."""

    def __init__(self, world: World, side: int = SIDE) -> None:
        """side: before they are enlarged to what is compared; a subject of two has half."""
        self.pairs = tuple(world.pairs)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            self.pictures = np.stack(list(pool.map(lambda pair: world.picture(pair, side), self.pairs)))


class Judge:
    """All pictures of a world on one ground."""

    def __init__(self, gallery: Gallery, ground: str = "white") -> None:
        self.pairs = gallery.pairs
        parts = range(0, len(self.pairs), _CHUNK)  # so that no numbers of all pictures are held
        self.pictures = np.concatenate(
            [enlarged(over(gallery.pictures[at : at + _CHUNK], ground)) for at in parts]
        )
        self._features = jnp.concatenate([_features(part)[:count] for part, count in _chunks(self.pictures)])
        self.classes = self._classes()
        self._codes: dict[int, set[str]] = {}
        self._styles: dict[int, set[str]] = {}
        for pair, number in zip(self.pairs, self.classes.tolist(), strict=True):
            self._codes.setdefault(number, set()).add(pair.code)
            self._styles.setdefault(number, set()).add(pair.style)
        self._class_of = dict(zip(self.pairs, self.classes.tolist(), strict=True))

    def _classes(self) -> Int[np.ndarray, " N"]:
        """For each picture the first that is the same."""
        flat = self.pictures.reshape(len(self.pairs), -1)
        first = np.arange(len(self.pairs))
        for at in range(0, len(flat), _CHUNK):
            # The pixels decide between those that may be the same.
            part = self._features[at : at + _CHUNK]
            for row, column in zip(*np.nonzero(np.asarray(_alike(part, self._features))), strict=True):
                one, other = at + row, int(column)
                if other < one and first[one] == one:
                    error = flat[one].astype(np.float32) - flat[other]
                    if np.sqrt(np.mean(error**2)) < SAME:
                        first[one] = first[other]
        return first

    @property
    def repeated(self) -> int:
        """How many pictures are the same as an earlier one."""
        return int(np.sum(self.classes != np.arange(len(self.classes))))

    def nearest(
        self, pictures: UInt8[np.ndarray, "M 64 64 3"], align: bool = True
    ) -> Int[np.ndarray, "M top"]:
        """The numbers of the nearest pictures. align: over small shifts and scales of each picture."""
        found = [(_nearest(part, self._features, align), count) for part, count in _chunks(pictures)]
        return np.concatenate([np.asarray(numbers)[:count] for numbers, count in found])

    def verdicts(
        self, pictures: UInt8[np.ndarray, "M 64 64 3"], truths: Sequence[Pair], align: bool = True
    ) -> list[Verdict]:
        """What each picture is, against what it should be."""
        return [
            self._verdict(near, truth)
            for near, truth in zip(self.nearest(pictures, align), truths, strict=True)
        ]

    def _verdict(self, near: Int[np.ndarray, " top"], truth: Pair) -> Verdict:
        # Five different pictures: the same one twice is one.
        classes = list(dict.fromkeys(self.classes[near].tolist()))[:TOP]
        right = self._class_of[truth]
        subjects = [truth.code in self._codes[one] for one in classes]
        styles = [truth.style in self._styles[one] for one in classes]
        return Verdict(
            classes[0] == right, right in classes, subjects[0], any(subjects), styles[0], any(styles)
        )


def enlarged(pictures: UInt8[np.ndarray, "N H W 3"]) -> UInt8[np.ndarray, "N 64 64 3"]:
    """Pictures at the size that is compared."""
    import PIL.Image

    if pictures.shape[1:3] == (SIDE, SIDE):
        return pictures
    bilinear = PIL.Image.Resampling.BILINEAR
    return np.stack([np.asarray(PIL.Image.fromarray(one).resize((SIDE, SIDE), bilinear)) for one in pictures])


def halves(picture: UInt8[np.ndarray, "S S 3"]) -> UInt8[np.ndarray, "2 64 64 3"]:
    """The left and the right subject of a picture of two."""
    side = picture.shape[0] // 2
    top = side // 2
    return enlarged(np.stack([picture[top : top + side, :side], picture[top : top + side, side:]]))


def grounds_named(pictures: UInt8[np.ndarray, "N S S 3"]) -> list[str]:
    """The colour behind each subject, by the nearest of the world's."""
    known = {"white": (255, 255, 255), **GROUNDS}
    seen = np.asarray(grounds_of(jnp.asarray(pictures)))
    errors = ((seen[:, None] - np.array(list(known.values()), np.float32)) ** 2).sum(2)
    return [list(known)[number] for number in errors.argmin(1).tolist()]


def pixel_error(picture: UInt8[np.ndarray, "S S 3"], truth: UInt8[np.ndarray, "S S 3"]) -> float:
    """Mean absolute difference, in levels of 255."""
    return float(np.mean(np.abs(picture.astype(np.float32) - truth)))
