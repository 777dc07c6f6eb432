"""Which picture of the world a drawn one is nearest to: retrieval by classical features, aligned.

No weight is shared with any model, and none is trained. Renders that are the same but for a few levels count as
one picture, whichever set or subject they belong to.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Int, UInt8

from mvader_jax.data.emoji.world import GROUNDS, Pair, Sight, World
from mvader_jax.paper.emoji.features import SIDE, features, grounds_of, shrunk, variants

#: Renders whose colours differ by less (root mean square, in levels of 255) are the same picture.
SAME = 4.0
#: How many pictures a verdict names, nearest first.
TOP = 5
_CHUNK = 64


@dataclasses.dataclass(frozen=True)
class Verdict:
    """Whether the nearest picture, or one of the five nearest, is the right one, of its subject, in its style."""

    exact_1: bool
    exact_5: bool
    subject_1: bool
    subject_5: bool
    style_1: bool
    style_5: bool


class Judge:
    """All pictures of a world on one ground."""

    def __init__(self, world: World, ground: str = "white", side: int = SIDE) -> None:
        """side: of the picture before it is enlarged to what is compared; a subject of two has half."""
        self.pairs = tuple(world.pairs)
        drawn = np.stack([world.render(Sight((pair,), ground), side) for pair in self.pairs])
        self.pictures = enlarged(drawn)
        self._features = np.concatenate(
            [features(shrunk(self.pictures[at : at + 512])) for at in range(0, len(self.pairs), 512)]
        )
        self._squares = (self._features**2).sum(1)
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
        for at in range(0, len(flat), 512):
            near = self._distances(self._features[at : at + 512])
            # What differs by so little has features that differ by little; the pixels decide.
            for row, column in zip(*np.nonzero(near < 0.01), strict=True):
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

    def _distances(self, queries: Float32[np.ndarray, "Q D"]) -> Float32[np.ndarray, "Q N"]:
        """Squared distances."""
        products = queries @ self._features.T
        return (queries**2).sum(1)[:, None] + self._squares - 2 * products

    def nearest(
        self, pictures: UInt8[np.ndarray, "M 64 64 3"], align: bool = True
    ) -> Int[np.ndarray, "M top"]:
        """The numbers of the nearest pictures. align: over small shifts and scales of each picture."""
        found = []
        for at in range(0, len(pictures), _CHUNK):
            part = pictures[at : at + _CHUNK]
            small = shrunk(part)
            queries = variants(small) if align else small[None]
            near = np.stack([self._distances(features(one)) for one in queries]).min(0)
            top = np.argpartition(near, min(4 * TOP, len(self.pairs) - 1), axis=1)[:, : 4 * TOP]
            order = np.argsort(np.take_along_axis(near, top, 1), axis=1, kind="stable")
            found.append(np.take_along_axis(top, order, 1))
        return np.concatenate(found)

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


def ground_named(picture: UInt8[np.ndarray, "S S 3"]) -> str:
    """The colour behind a subject, by the nearest of the world's."""
    known = {"white": (255, 255, 255), **GROUNDS}
    seen = grounds_of(picture[None])[0]
    return min(known, key=lambda name: float(np.sum((seen - known[name]) ** 2)))


def pixel_error(picture: UInt8[np.ndarray, "S S 3"], truth: UInt8[np.ndarray, "S S 3"]) -> float:
    """Mean absolute difference, in levels of 255."""
    return float(np.mean(np.abs(picture.astype(np.float32) - truth)))
