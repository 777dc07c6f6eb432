"""Batch sampling: reads top to bottom. Host work (reading, laying out, writing) runs beside the device's."""

from __future__ import annotations

import concurrent.futures
import dataclasses
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import jax
import numpy as np

from mvader_jax.errors import UserError
from mvader_jax.images.png import save_png
from mvader_jax.parallel.processes import by_first, first_process, gather_json
from mvader_jax.sampling.batch.prepare import Prepared, Preparer
from mvader_jax.sampling.batch.requests import Problem, Request, fingerprint
from mvader_jax.sampling.batch.shapes import Batch, Item, plan, shapes
from mvader_jax.sampling.batch.store import Store
from mvader_jax.sampling.generate import Against
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

    size: pictures a batch, rounded up to what divides over the mesh. bundle: its name, for the manifest.
    Every process of a mesh calls this with the same requests; each writes the pictures of its own devices
    (into `out`, which all of them must see), process 0 the manifest. SIGTERM and Ctrl-C end the run after the
    batches in hand; the same call goes on from there. Raises UserError where `out` cannot be written.
    """
    watch = progress or Progress()
    report = Report()
    store = Store(out, {"bundle": bundle, "weights": _digest(pipe), "dtype": pipe.dtype})
    size += -size % pipe.shards

    told: set[Problem] = set()

    def note(found: Iterable[Problem]) -> None:
        for problem in found:
            if problem in told:
                continue
            told.add(problem)
            report.problems.append(problem)
            watch.problem(problem)

    note(problems)
    shape_of, unfit = shapes(pipe.bundle, requests)
    note(unfit)
    requests = [request for request in requests if request.line in shape_of]

    def begin() -> list[str]:
        done, kept = store.present(requests)
        store.open(kept)
        return sorted(done)

    done = set(by_first(begin))
    missing = [
        (Item(request, index), shape_of[request.line])
        for request in requests
        for index in range(request.num_images)
        if request.file(index) not in done
    ]
    report.present = len(done)
    watch.start(len(done) + len(missing), len(done))
    preparer = Preparer(pipe, size)
    before = pipe.compiled
    with Stop() as stop, Writer(store, out) as writer, _reading(preparer, plan(missing, size)) as read:

        def finish(drawn: tuple[Prepared, Any]) -> bool:
            """Writes a batch; returns whether to stop."""
            rows, failure = writer.write(*drawn)
            said = gather_json({"rows": rows, "failure": failure, "stop": stop.number})
            everything = [row for other in said for row in other["rows"]]
            if first_process():
                store.record(everything)
            for other in said:
                if other["failure"]:
                    raise UserError(other["failure"])
            report.drawn += len(everything)
            watch.advance(len(everything))
            report.stopped = max((other["stop"] or 0 for other in said), default=0) or None
            return report.stopped is not None

        drawn: tuple[Prepared, Any] | None = None
        started: Any = None
        prepared = next(read, None)
        if prepared is not None:
            started = preparer.encode(prepared)
        while prepared is not None:
            # The next batch's images go to the device before this batch, so that nothing waits for them.
            upcoming = next(read, None)
            upcoming_started = None if upcoming is None else preparer.encode(upcoming)
            preparer.settle(started)
            note(prepared.problems)
            ready = None
            if prepared.items:
                ready = (prepared, draw(pipe, preparer, prepared))
            if drawn is not None and finish(drawn):
                drawn = ready
                break
            drawn, prepared, started = ready, upcoming, upcoming_started
        if drawn is not None:
            finish(drawn)
    store.close()
    report.compiled, report.encoded = pipe.compiled - before, preparer.encoded
    return report


def draw(pipe: Pipeline, preparer: Preparer, prepared: Prepared) -> jax.Array:
    """Starts drawing a batch: uint8 [size, H, W, 3], rows past the last item being filling."""
    prompts, negatives = preparer.inputs(prepared)
    items = prepared.items + prepared.items[-1:] * (preparer.size - len(prepared.items))
    own = np.arange(preparer.size, dtype=np.int32)
    against = None
    if prepared.shape.both:
        strengths = np.array([item.request.negative_strength for item in items], np.float32)
        against, negatives = Against(negatives, own, strengths), preparer.nulls(prepared.shape.length)
    return pipe.generate(
        prompts,
        negatives,
        rows=own,
        negative_rows=own,
        seeds=np.array([item.request.seed for item in items], np.uint32),
        indices=np.array([item.index for item in items], np.int32),
        guidance_scale=np.array([item.request.guidance_scale for item in items], np.float32),
        against=against,
        steps=prepared.shape.steps,
        sampler=prepared.shape.sampler,
    )


class Writer:
    """Writes the pictures that this process's devices hold, several at a time."""

    def __init__(self, store: Store, out: Path) -> None:
        self.store, self.out = store, out
        self._pool = concurrent.futures.ThreadPoolExecutor(_WRITERS, "write")

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown()

    def write(self, prepared: Prepared, pixels: jax.Array) -> tuple[list[dict[str, Any]], str | None]:
        """(rows of the pictures that are in place now, why one could not be written)."""
        waiting = []
        for shard in pixels.addressable_shards:
            if shard.replica_id:
                continue
            first = shard.index[0].start or 0
            for offset, picture in enumerate(np.asarray(shard.data)):
                if first + offset < len(prepared.items):
                    item = prepared.items[first + offset]
                    row = self.store.row(item.request, item.index)
                    waiting.append((row, self._pool.submit(save_png, self.out / row["file"], picture, row)))
        rows, failure = [], None
        for row, future in waiting:
            try:
                future.result()
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
    """A short hash of what the bundle's components are."""
    return fingerprint({name: record.get("sha256", "") for name, record in pipe.bundle.records.items()})


def rate(clock: Callable[[], float] = time.monotonic) -> Callable[[int], float]:
    """A function of how many more pictures are in place that returns pictures a second, over the last minute."""
    marks: list[tuple[float, int]] = [(clock(), 0)]

    def speed(count: int) -> float:
        now = clock()
        marks.append((now, marks[-1][1] + count))
        while len(marks) > 2 and marks[0][0] < now - 60:
            marks.pop(0)
        seconds = marks[-1][0] - marks[0][0]
        return (marks[-1][1] - marks[0][1]) / seconds if seconds > 0 else 0.0

    return speed
