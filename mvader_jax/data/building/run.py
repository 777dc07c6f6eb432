"""Building a data set: parts in parallel, a process a part; resumable by part; every rejection counted."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np

from mvader_jax.data.building.admit import Rejected, Sample, admit, rejecting
from mvader_jax.data.building.catalogue import KNOWN
from mvader_jax.data.building.filters import FilterConfig
from mvader_jax.data.building.parts import Part
from mvader_jax.data.building.plan import WORK, begun, check_columns, finished, make_plan, repeated_keys
from mvader_jax.data.building.report import Report
from mvader_jax.data.building.schema import COLUMN_TYPE, COLUMNS, REPORT
from mvader_jax.data.building.shard_writer import ShardWriter, shard_path, write_metadata
from mvader_jax.data.building.tables import first_line
from mvader_jax.data.building.tars import LOST
from mvader_jax.errors import UserError
from mvader_jax.storage.atomic import local, whole_file, write_file


def build(
    parts: Sequence[Part],
    out: str | os.PathLike[str],
    name: str,
    filters: FilterConfig,
    *,
    workers: int = 1,
    on_progress: Callable[[int], None] | None = None,
) -> Report:
    """Writes the TFDS data set `name` into the folder `out`, one ArrayRecord file a part.

    on_progress: called now and then with the number of samples read so far.
    A build that was stopped goes on with the parts it has not finished; a finished one is left as it is
    (`plan.finished` tells). Raises UserError, before any sample is read, where a filter needs a metadata column
    that is missing or `out` holds something else; and at the end where no record was kept.
    """
    check_columns(parts, filters)
    plan = make_plan(parts, name, filters)
    before = finished(out, plan)
    if before is not None:
        return before
    directory = local(out)
    with begun(directory, plan):
        jobs = [
            _Job(part, directory, name, index, len(parts), filters, repeated)
            for index, (part, repeated) in enumerate(zip(parts, repeated_keys(parts), strict=True))
        ]
        _run(jobs, workers, on_progress or (lambda _: None))
        reports = [job.read_report() for job in jobs]
        total = Report()
        for report in reports:
            total.add(report)
        if total.written:
            _write_columns(directory / COLUMNS, np.concatenate([np.load(job.columns) for job in jobs]))
            write_metadata(
                directory, name, [report.written for report in reports], total.bytes, _description(name)
            )
            _write_json(directory / REPORT, {"plan": plan, "report": total.to_json()})
        shutil.rmtree(directory / WORK)
    if not total.written:
        reasons = ", ".join(f"{reason}: {count}" for reason, count in total.rejected.most_common(4))
        raise UserError(f"no record was kept of {total.read} ({reasons or 'the input is empty'})")
    return total


@dataclasses.dataclass(frozen=True)
class _Job:
    """One part on its way to one file."""

    part: Part
    directory: pathlib.Path
    name: str
    index: int
    count: int
    filters: FilterConfig
    repeated: frozenset[str]

    @property
    def report(self) -> pathlib.Path:
        return self.directory / WORK / f"{self.index:05d}.json"

    @property
    def columns(self) -> pathlib.Path:
        return self.directory / WORK / f"{self.index:05d}.npy"

    def read_report(self) -> Report:
        return Report.from_json(json.loads(self.report.read_text()))

    def _samples(self, problems: list[str]) -> Iterator[Sample]:
        """The part's samples; where reading them fails, those it should have had are lost and counted so."""
        samples = self.part.samples(problems)
        had: collections.Counter[str] = collections.Counter()
        while True:
            try:
                sample = next(samples)
            except StopIteration:
                return
            except (
                UserError
            ):  # of the network or the disk, not of the input: the build stops, and goes on later
                raise
            except Exception as error:  # what nobody thought of in a file from outside
                problems.append(f"part {self.part.name!r} cannot be read further: {first_line(error)}")
                break
            had[sample.key] += 1
            yield sample
        lost = rejecting(LOST)
        for key in (collections.Counter(self.part.key_list()) - had).elements():
            yield Sample(key, lost, lost, {})

    def run(self, count: Callable[[], None]) -> Report:
        """Writes the file, then the columns, then the report: its presence means that all is done."""
        report = Report()
        rows: list[tuple[int, int, float]] = []
        seen: set[str] = set()
        with ShardWriter(shard_path(self.directory, self.name, self.index, self.count)) as writer:
            for sample in self._samples(report.problems):
                report.read += 1
                count()
                try:
                    if sample.key in seen or sample.key in self.repeated:
                        raise Rejected("key duplicated")
                    seen.add(sample.key)
                    record = admit(sample, self.filters)
                    data = writer.encode(record)
                except Rejected as reason:
                    report.reject(str(reason), sample.key)
                    continue
                writer.write(record, data)
                rows.append((record["width"], record["height"], record["aesthetic"]))
            report.written, report.bytes = writer.records, writer.bytes
            report.digest = writer.digest()
        _write_columns(self.columns, np.array(rows, COLUMN_TYPE))
        _write_json(self.report, report.to_json())
        return report


def _run(jobs: Sequence[_Job], workers: int, on_progress: Callable[[int], None]) -> None:
    done = sum(job.read_report().read for job in jobs if job.report.is_file())
    todo = [job for job in jobs if not job.report.is_file()]
    on_progress(done)
    try:
        if workers <= 1 or len(todo) <= 1:
            _run_here(todo, done, on_progress)
        else:
            _run_pool(todo, min(workers, len(todo)), done, on_progress)
    except OSError as error:
        raise UserError(f"the build stopped: {error.strerror or error}; run it again to go on") from None
    except BrokenProcessPool:
        raise UserError("a worker process died (out of memory?); run the build again to go on") from None


def _run_here(jobs: Sequence[_Job], done: int, on_progress: Callable[[int], None]) -> None:
    read = done

    def count() -> None:
        nonlocal read
        read += 1
        if read % 64 == 0:
            on_progress(read)

    with _no_bomb_warnings():
        for job in jobs:
            job.run(count)
            on_progress(read)


def _run_pool(jobs: Sequence[_Job], workers: int, done: int, on_progress: Callable[[int], None]) -> None:
    # Forked children of a process with threads can hang: start fresh ones.
    context = multiprocessing.get_context("spawn")
    counter, stop = context.Value("q", done), context.Event()
    with ProcessPoolExecutor(workers, context, _start_worker, (counter, stop)) as pool:
        pending: set[Future[None]] = {pool.submit(_work, job) for job in jobs}
        try:
            while pending:
                finished, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
                on_progress(counter.value)
                for future in finished:
                    future.result()
        except BaseException:
            stop.set()
            for future in pending:
                future.cancel()
            raise


class _Stopped(Exception):
    """The parent wants no more."""


#: Shared with the parent: samples read by all workers, and whether to stop.
_shared: tuple[Any, Any]


def _start_worker(counter: Any, stop: Any) -> None:
    global _shared
    _shared = counter, stop
    # Ctrl-C reaches every process of the terminal; the parent alone decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _work(job: _Job) -> None:
    counter, stop = _shared
    last, fresh = time.monotonic(), 0

    def count() -> None:
        nonlocal last, fresh
        fresh += 1
        if time.monotonic() - last > 0.2:
            flush()

    def flush() -> None:
        nonlocal last, fresh
        if stop.is_set():
            raise _Stopped
        with counter.get_lock():
            counter.value += fresh
        last, fresh = time.monotonic(), 0

    with _no_bomb_warnings():
        job.run(count)
    flush()


@contextlib.contextmanager
def _no_bomb_warnings() -> Iterator[None]:
    import PIL.Image

    with warnings.catch_warnings():
        # Large pictures below the limit are no news.
        warnings.simplefilter("ignore", PIL.Image.DecompressionBombWarning)
        yield


def _description(name: str) -> str:
    return KNOWN[name].description if name in KNOWN else ""


def _write_json(path: pathlib.Path, value: Any) -> None:
    write_file(path, json.dumps(value, indent=1))


def _write_columns(path: pathlib.Path, rows: np.ndarray) -> None:
    with whole_file(path) as partial, partial.open("wb") as file:
        np.save(file, rows)
