"""What pictures score at tasks, whoever drew them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import UInt8

from mvader_jax.data.emoji.sets import ALIGNED
from mvader_jax.data.emoji.world import Sight, World
from mvader_jax.paper.emoji.features import SIDE
from mvader_jax.paper.emoji.judge import Gallery, Judge, Verdict, grounds_named, halves, pixel_error
from mvader_jax.paper.emoji.tasks import BenchTask

Pictures = UInt8[np.ndarray, "N 64 64 3"]
Scores = dict[str, float]


def renders(world: World) -> Callable[[Sight], UInt8[np.ndarray, "64 64 3"]]:
    """The world's pictures at the size that is judged, those of late kept."""
    return functools.lru_cache(maxsize=8192)(lambda sight: world.render(sight, SIDE))


class Scorer:
    """Judges of a world, made when they are asked."""

    def __init__(self, world: World) -> None:
        self._render = renders(world)
        gallery = functools.cache(functools.partial(Gallery, world))
        self._judge = functools.cache(lambda ground, side: Judge(gallery(side), ground))

    def score(self, tasks: Sequence[BenchTask], pictures: Pictures) -> Scores:
        """Shares in 0..1 over the pictures of one part; `pixels` in levels of 255.

        One subject: exact, subject and style at 1 and 5; where styles are aligned, the pixel error. On a colour also
        whether it is the right one. Two subjects: each half is judged alone; `both` subjects wherever they stand,
        `order` each in its place, `exact` also in its style, `one` of them at least.
        """
        if len(tasks[0].target.pairs) == 2:
            return self._couples(tasks, pictures)
        grounds = np.array([task.target.ground for task in tasks])
        rows: list[dict[str, float]] = [{} for _ in tasks]
        for ground in dict.fromkeys(grounds.tolist()):
            which = np.flatnonzero(grounds == ground).tolist()
            truths = [tasks[i].target.pairs[0] for i in which]
            for i, verdict in zip(
                which, self._judge(ground, SIDE).verdicts(pictures[which], truths), strict=True
            ):
                rows[i] = {name: float(value) for name, value in dataclasses.asdict(verdict).items()}
        scores = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        if set(grounds) != {"white"}:
            scores["ground"] = float(
                np.mean([a == b for a, b in zip(grounds_named(pictures), grounds, strict=True)])
            )
        aligned = [i for i, task in enumerate(tasks) if task.target.pairs[0].style in ALIGNED]
        if aligned:
            errors = [pixel_error(pictures[i], self._render(tasks[i].target)) for i in aligned]
            scores["pixels"] = float(np.mean(errors))
        return scores

    def _couples(self, tasks: Sequence[BenchTask], pictures: Pictures) -> Scores:
        judge = self._judge("white", SIDE // 2)
        sides = [np.stack([halves(picture)[side] for picture in pictures]) for side in (0, 1)]
        # found[a][b]: what stands at a, against the subject that should stand at b.
        found: list[list[list[Verdict]]] = [
            [judge.verdicts(seen, [task.target.pairs[side] for task in tasks]) for side in (0, 1)]
            for seen in sides
        ]

        def each(name: str, at: int, of: int) -> np.ndarray:
            return np.array([getattr(verdict, name) for verdict in found[at][of]])

        placed = each("subject_1", 0, 0) & each("subject_1", 1, 1)
        turned = each("subject_1", 0, 1) & each("subject_1", 1, 0)
        seen_any = np.any([each("subject_1", at, of) for at in (0, 1) for of in (0, 1)], axis=0)
        exact = each("exact_1", 0, 0) & each("exact_1", 1, 1)
        rows = {"both": placed | turned, "order": placed, "exact": exact, "one": seen_any}
        return {name: float(np.mean(value)) for name, value in rows.items()}
