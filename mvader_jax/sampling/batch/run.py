"""Batch sampling: reads top to bottom. Host work (reading, laying out, writing) runs beside the device's."""

from __future__ import annotations

import concurrent.futures
import contextlib
import dataclasses
import signal
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np

from mvader_jax.errors import UserError
from mvader_jax.parallel.processes import by_first, first_process, gather_json, gather_rows
from mvader_jax.sampling.batch.prepare import Encoding, Prepared, Preparer
from mvader_jax.sampling.batch.requests import Problem, Request, fingerprint
from mvader_jax.sampling.batch.shapes import Batch, Item, places_of, plan, shapes
from mvader_jax.sampling.batch.store import Store
from mvader_jax.sampling.generate import Draws, Prompted, traced_start
from mvader_jax.sampling.pictures import not_finite
from mvader_jax.sampling.pipeline import Pipeline

#: Batches read ahead, and threads that write pictures.
_AHEAD = 2
_WRITERS = 2


@dataclasses.dataclass
class Report:
    """drawn: pictures made now; present: those that were there; compiled: programs that draw; encoded: images
    that were encoded; stopped: the signal that ended the run early, if one did."""

    drawn: int = 0
    present: int = 0
    problems: list[Problem] = dataclasses.field(default_factory=list)
    compiled: int = 0
    encoded: int = 0
    stopped: int | None = None


class Progress:
    """What a caller may watch; this one is silent."""

    def start(self, total: int, present: int) -> None:
        """Called once: pictures asked for, and those that are there."""

    def advance(self, count: int) -> None:
        """`count` more pictures are in place."""

    def problem(self, problem: Problem) -> None:
        """A line cannot be drawn."""

    def say(self, message: str) -> None:
        """Something worth telling."""


def sample_all(
    pipe: Pipeline,
    requests: list[Request],
    problems: Iterable[Problem],
    out: Path,
    *,
    size: int = 8,
    bundle: str = "",
    progress: Progress | None = None,
) -> Report:
    """Draws what is missing of the requests' pictures into `out`.

    size: pictures per batch, rounded up to what divides over the mesh. bundle: its name, for the manifest.
    Every process of a mesh calls this with the same requests; each writes the pictures of its own devices
    (into `out`, which all of them must see), process 0 the manifest. SIGTERM and Ctrl-C end the run after the
    batches in hand; the same call goes on from there. Raises UserError where `out` cannot be written.
    """
    made_by = {"bundle": bundle, "weights": _digest(pipe), "dtype": pipe.dtype, **pipe.recorded_lora}
    store = Store(out, made_by, {**pipe.loaded, **({"bundle": bundle} if bundle else {})})
    job = _Job(store, progress or Progress())
    preparer = Preparer(pipe, size + -size % pipe.shards)
    before = pipe.compiled
    job.note(problems)
    shape_of, unfit = shapes(pipe.bundle, requests, job.logger.say)
    job.note(unfit)
    fitting = [request for request in requests if request.line in shape_of]

    def planned(items: Iterable[Item]) -> list[Batch]:
        return plan([(item, shape_of[item.request.line]) for item in items], preparer.size, preparer.places)

    # Of all pictures, those that are there too: a run that goes on draws with the programs of before.
    everything = planned(Item(one, index) for one in fitting for index in range(one.count))
    preparer.places = places_of(everything, preparer.size)
    batches = planned(job.begin(fitting))
    with job, contextlib.closing(drawing(pipe, preparer, batches, job.note)) as under_way:
        drawn: Drawn | None = None
        for ready in under_way:
            # One is computed while the one before it is written.
            stop = drawn is not None and job.finish(drawn)
            drawn = ready
            if stop:
                break
        if drawn is not None:
            job.finish(drawn)
    job.report.compiled, job.report.encoded = pipe.compiled - before, preparer.encoded
    return job.report


@dataclasses.dataclass
class Drawn:
    """A batch on the device: pixels uint8 [size, H, W, 3]; finite: which of them mean anything, bool [size]."""

    prepared: Prepared
    pixels: jax.Array
    finite: jax.Array


def drawing(
    pipe: Pipeline, preparer: Preparer, batches: list[Batch], note: Callable[[Iterable[Problem]], None]
) -> Generator[Drawn, None, None]:
    """The batches in order, each as soon as the device has been told to draw it. note: told what is left out."""
    with _reading(preparer, batches) as read:
        started: Encoding = []
        prepared = next(read, None)
        if prepared is not None:
            started = preparer.encode(prepared)
        while prepared is not None:
            # The next batch's images go to the device before this batch, so that nothing waits for them.
            upcoming = next(read, None)
            upcoming_started = [] if upcoming is None else preparer.encode(upcoming)
            preparer.settle(started)
            note(prepared.problems)
            if prepared.items:
                yield Drawn(prepared, *draw(pipe, preparer, prepared))
            prepared, started = upcoming, upcoming_started


class _Job:
    """What a run does with what is drawn: files, rows, problems, the report. Its processes call it together."""

    def __init__(self, store: Store, logger: Progress) -> None:
        self.store, self.logger, self.report = store, logger, Report()
        self._told: set[Problem] = set()

    def __enter__(self) -> _Job:
        self._writer = Writer(self.store)
        self._stop = Stop()
        self._stop.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.__exit__()
        self._writer.close()
        if self.report.drawn and first_process():
            self.store.close()

    def note(self, found: Iterable[Problem]) -> None:
        """Tells each problem once."""
        for problem in found:
            if problem not in self._told:
                self._told.add(problem)
                self.report.problems.append(problem)
                self.logger.problem(problem)

    def begin(self, requests: list[Request]) -> list[Item]:
        """Opens the store; returns the pictures that are not there."""

        names, replaced = by_first(lambda: self.store.open(requests))
        self.store.adopt(replaced)
        done = set(names)
        missing = [
            Item(request, index)
            for request in requests
            for index in range(request.count)
            if request.file(index) not in done
        ]
        self.report.present = len(done)
        self.logger.start(len(done) + len(missing), len(done))
        return missing

    def finish(self, drawn: Drawn) -> bool:
        """Writes a batch; returns whether to stop."""
        items = drawn.prepared.items
        finite = gather_rows(drawn.finite)[: len(items)]
        rows, failure = self._writer.write(items, drawn.pixels, finite)
        said = gather_json({"rows": rows, "failure": failure, "stop": self._stop.number})
        everything = [row for other in said for row in other["rows"]]
        if first_process():
            self.store.record(everything)
        for other in said:
            if other["failure"]:
                raise UserError(other["failure"])
        self.note(_meaningless(items, finite))
        self.report.drawn += len(everything)
        self.logger.advance(len(everything))
        self.report.stopped = max((other["stop"] or 0 for other in said), default=0) or None
        return self.report.stopped is not None


def _meaningless(items: Sequence[Item], finite: np.ndarray) -> list[Problem]:
    """A problem per line that has pictures which are not finite."""
    bad: dict[int, list[str]] = {}
    for item, good in zip(items, finite, strict=True):
        if not good:
            bad.setdefault(item.request.line, []).append(item.request.file(item.index))
    return [Problem(line, not_finite(", ".join(files))) for line, files in bad.items()]


def draw(pipe: Pipeline, preparer: Preparer, prepared: Prepared) -> tuple[jax.Array, jax.Array]:
    """Starts drawing a batch: `Pipeline.generate`'s results, of which rows past the last item are filling."""
    prompt, negatives = preparer.inputs(prepared)
    items = prepared.items + prepared.items[-1:] * (preparer.size - len(prepared.items))
    settings = [item.request.settings for item in items]
    numbered = [item.request.numbered[item.index] for item in items]
    base, negative, strength = Prompted(negatives), None, None
    if prepared.shape.both:
        negative, base = base, Prompted(preparer.nulls(prepared.shape.length))
        strength = np.array([one.negative_strength for one in settings], np.float32)
    draws = Draws(
        prompt,
        base,
        seeds=np.array([seed for seed, _ in numbered], np.uint32),
        indices=np.array([index for _, index in numbered], np.int32),
        guidance_scale=np.array([one.guidance_scale for one in settings], np.float32),
        negative=negative,
        negative_strength=strength,
        init=preparer.init_images(prepared),
        start=traced_start(settings[0], prepared.shape.start >= 0),
    )
    return pipe.generate(draws, prepared.shape.static)


class Writer:
    """Writes the pictures that this process's devices hold, several at a time."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self._pool = concurrent.futures.ThreadPoolExecutor(_WRITERS, "write")

    def close(self) -> None:
        self._pool.shutdown()

    def write(
        self, items: Sequence[Item], pixels: jax.Array, wanted: np.ndarray
    ) -> tuple[list[dict[str, Any]], str | None]:
        """(rows of the pictures that are in place now, why one could not be written).

        wanted: bool, which of the items' pictures to write; pixels: uint8 [B, H, W, 3], the items first.
        """
        waiting = []
        for shard in pixels.addressable_shards:
            if shard.replica_id:
                continue
            first = shard.index[0].start or 0
            for offset, picture in enumerate(np.asarray(shard.data)):
                if first + offset < len(items) and wanted[first + offset]:
                    item = items[first + offset]
                    row = self.store.row(item.request, item.index)
                    info = item.request.note(item.index, self.store.loaded)
                    waiting.append((row, self._pool.submit(self.store.save, picture, row, info)))
        rows, failure = [], None
        for row, future in waiting:
            try:
                if future.result():
                    rows.append(row)
            except UserError as error:
                failure = str(error)
        return rows, failure


class Stop:
    """SIGTERM or Ctrl-C inside the block asks for an end after the batch in hand; a second one ends at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is not threading.main_thread():
            return self  # only the main thread may watch signals
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self.number is not None:
            raise KeyboardInterrupt
        self.number = number


class _reading:
    """Prepares batches in a thread, a few ahead of the one that is asked for."""

    def __init__(self, preparer: Preparer, batches: list[Batch]) -> None:
        self.preparer, self.batches = preparer, batches

    def __enter__(self) -> Iterator[Prepared]:
        self._pool = concurrent.futures.ThreadPoolExecutor(1, "read")
        return self._iterate()

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def _iterate(self) -> Iterator[Prepared]:
        waiting = [self._pool.submit(self.preparer.read, batch) for batch in self.batches[:_AHEAD]]
        for batch in self.batches[_AHEAD:]:
            yield waiting.pop(0).result()
            waiting.append(self._pool.submit(self.preparer.read, batch))
        for future in waiting:
            yield future.result()


def _digest(pipe: Pipeline) -> str:
    """A short hash of what the bundle's components are, and of what they are kept in where they are not computed so."""
    about = {name: record.get("sha256", "") for name, record in pipe.bundle.records.items()}
    if pipe.lora:
        about["lora"] = " ".join(one.digest() for one in pipe.lora)
    kept = sorted({str(leaf.dtype) for leaf in jax.tree.leaves(pipe.bundle.components)})
    return fingerprint(about if kept == [pipe.dtype] else {**about, "kept in": " ".join(kept)})
