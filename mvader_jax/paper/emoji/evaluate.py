"""The benchmark of the picture world run on a bundle."""

from __future__ import annotations

import concurrent.futures
import hashlib
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8

from mvader_jax.data.emoji.world import World
from mvader_jax.images.pixels import to_uint8, unit_to_uint8
from mvader_jax.images.preprocess import to_vae_pixels
from mvader_jax.paper.emoji.features import SIDE
from mvader_jax.paper.emoji.methods import Methods, Painter, Run, runs
from mvader_jax.paper.emoji.scores import Scorer
from mvader_jax.paper.emoji.table import Table
from mvader_jax.paper.emoji.tasks import RECONSTRUCTION, Benchmark, BenchTask
from mvader_jax.paper.evaluate import Evaluation, Progress, drawn
from mvader_jax.sampling.pipeline import Pipeline
from mvader_jax.storage.bundle import Bundle, summary

Pictures = UInt8[np.ndarray, "N 64 64 3"]


def evaluate(
    pipe: Pipeline,
    world: World,
    parts: Sequence[str],
    methods: Methods,
    settings: Evaluation,
    *,
    table: Table | None = None,
    minutes: float | None = None,
    progress: Progress = lambda what, done, total: None,
) -> dict[str, Any]:
    """{"settings", part: [a row for each method, with its scores]}. settings: their count is the prompts of a part.

    table: where the rows go, and which are there already. minutes: after so many no further row is begun.
    The parts' prompts themselves come first, then what they are compared with. While a row is drawn the one before
    it is judged and the one after it laid out.
    Raises UserError for an unknown part, where none has prompts, for a table of other settings, and where NaN or
    infinity arose in a picture.
    """
    end = None if minutes is None else time.monotonic() + 60 * minutes
    bench, table = Benchmark(world, settings.count), table or Table()
    tasks, scorer = bench.of(parts), Scorer(world)
    table.begin({**bench.about(), "weights": _weights(pipe.bundle), **settings.sampling.recorded()})
    if RECONSTRUCTION in tasks and not table.has(RECONSTRUCTION, _AUTOENCODER):
        pictures = _reconstructed(pipe, world, tasks[RECONSTRUCTION], settings.batch)
        scores = scorer.score(tasks[RECONSTRUCTION], pictures)
        table.add(RECONSTRUCTION, _AUTOENCODER, pictures, scores)
    rows = [
        (part, run)
        for part in tasks
        if part != RECONSTRUCTION
        for run in runs(tasks[part], methods)
        if not table.has(part, run.row)
    ]
    rows.sort(key=lambda row: not row[1].first)
    painter = Painter(pipe, world, settings, [run for _, run in rows])

    def judge(part: str, run: Run, pictures: Pictures) -> None:
        table.add(part, run.row, pictures, scorer.score(tasks[part], pictures))

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        judged: concurrent.futures.Future[None] | None = None
        ahead = [pool.submit(painter.prepare, run) for _, run in rows[:1]]
        for number, (part, run) in enumerate(rows):
            if end is not None and time.monotonic() > end:
                break
            ready = ahead.pop().result()
            ahead = [pool.submit(painter.prepare, later) for _, later in rows[number + 1 : number + 2]]
            what = " ".join(str(value) for value in (part, *run.row.values()))
            pictures = _of_side(drawn(pipe, ready, _counted(progress, what, ready.count)))
            if judged is not None:
                judged.result()
            judged = pool.submit(judge, part, run, pictures)
        if judged is not None:
            judged.result()
    table.end(world, tasks)
    return table.result


_AUTOENCODER = {"method": "autoencoder"}


def _counted(progress: Progress, what: str, total: int) -> Callable[[int], None]:
    count = 0

    def done(more: int) -> None:
        nonlocal count
        count += more
        progress(what, count, total)

    return done


def _of_side(pictures: UInt8[np.ndarray, "N H W 3"]) -> Pictures:
    """At the size that is judged, whatever the model's own."""
    if pictures.shape[1:3] == (SIDE, SIDE):
        return pictures
    return np.stack([to_uint8(to_vae_pixels(picture, SIDE, SIDE)) for picture in pictures])


def _reconstructed(pipe: Pipeline, world: World, tasks: Sequence[BenchTask], batch: int) -> Pictures:
    """What the autoencoder makes of pictures of the world."""
    pictures = [world.render(task.target, SIDE) for task in tasks]
    found = []
    for at in range(0, len(pictures), batch):
        part = pictures[at : at + batch]
        filled = part + part[-1:] * (min(batch, len(pictures)) - len(part))
        decoded = np.asarray(pipe.decode(pipe.encode(filled)))[: len(part)]
        found.append(_of_side(unit_to_uint8(decoded)))
    return np.concatenate(found)


def _weights(bundle: Bundle) -> str:
    """What tells a bundle's parameters from others."""
    digests = {name: summary(tree).get("sha256", "") for name, tree in sorted(bundle.components.items())}
    return hashlib.sha256(repr(digests).encode()).hexdigest()[:16]
