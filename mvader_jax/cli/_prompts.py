"""`mvader sample --prompts`: a file of prompts, with a bar."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvader_jax.cli._progress import bar, status, tell
from mvader_jax.sampling.settings import SamplingSettings

if TYPE_CHECKING:
    from mvader_jax.cli._loading import Place
    from mvader_jax.sampling.batch.run import Progress


def sample_file(prompts: Path, settings: SamplingSettings, num_images: int, batch: int, place: Place) -> int:
    """Exit codes: 0, all are there; 1, some lines are bad; 75 after SIGTERM and 130 after Ctrl-C."""
    import signal

    from mvader_jax.parallel.processes import first_process
    from mvader_jax.sampling.batch.requests import read_requests
    from mvader_jax.sampling.batch.run import sample_all
    from mvader_jax.sampling.output import check_results

    requests, problems = read_requests(prompts, settings, num_images=num_images)
    check_results(place.out)
    with status(f"loading {place.bundle}", place.quiet):
        pipe = place.load()
    with _bar(place.quiet or not first_process()) as progress:
        report = sample_all(
            pipe, requests, problems, place.out, size=batch, bundle=place.bundle, progress=progress
        )
    total = sum(request.count for request in requests)
    if first_process():
        tell(f"{report.drawn} drawn, {report.present} were there, in {place.out}")
    if report.stopped is not None and report.drawn + report.present < total:
        if first_process():
            tell("stopped; the same command goes on from here")
        return 130 if report.stopped == signal.SIGINT else 75
    return 1 if report.problems else 0


@contextmanager
def _bar(quiet: bool) -> Iterator[Progress]:
    """Shows a batch's progress; problems are told even where nothing else is."""
    from mvader_jax.parallel.processes import first_process
    from mvader_jax.sampling.batch.run import Progress

    with bar("drawing", "images", quiet=quiet) as shown:

        class Shown(Progress):
            def start(self, total: int, present: int) -> None:
                shown.begin(total, present)
                if present:
                    self.say(f"{present} of {total} are there already")

            def advance(self, count: int) -> None:
                shown.advance(count)

            def problem(self, problem: Any) -> None:
                if not quiet:
                    shown.say(f"mvader: {problem}")
                elif first_process():
                    tell(f"mvader: {problem}")

            def say(self, message: str) -> None:
                shown.say(message)

        yield Shown()
