"""Logging a run: what a person sees, metrics.jsonl and TensorBoard. Process 0 writes; the others only count."""

from __future__ import annotations

import dataclasses
import json
import math
import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
import rich.console
import rich.progress

from mvader_jax.parallel.processes import first_process
from mvader_jax.storage.atomic import explained, write_file
from mvader_jax.train.config import Stage
from mvader_jax.train.flops import peak_flops
from mvader_jax.train.tensorboard import TensorBoard

Rates = Mapping[str, Callable[[int], Any]]
Metrics = Mapping[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class BadUpdate:
    """An update that changed nothing: its step, its loss, and the running mean it was compared with."""

    step: int
    loss: float
    loss_mean: float | None

    def __str__(self) -> str:
        if self.loss_mean is not None and math.isfinite(self.loss):
            return (
                f"at step {self.step} the loss is {self.loss:.4g}, far from its mean of {self.loss_mean:.4g}"
            )
        what = "its gradient is not finite" if math.isfinite(self.loss) else "which is not finite"
        return f"at step {self.step} the loss is {self.loss:.4g}, {what}"


class Shown:
    """What a person sees on stderr: messages, and the progress as a bar on a terminal, else as plain lines."""

    def __init__(self, total: int, first: int, *, quiet: bool) -> None:
        """quiet: no progress. Processes other than the first show nothing at all."""
        self._console = rich.console.Console(file=sys.stderr, quiet=not first_process())
        self._total, self._done = total, first
        self._plain = not quiet and not self._console.is_terminal
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[status]}"),
            rich.progress.TimeRemainingColumn(),
        )
        # Log points may lie minutes apart; what is left is told from those of the last ten.
        self.bar = rich.progress.Progress(
            *columns,
            console=self._console,
            refresh_per_second=2,
            speed_estimate_period=600,
            disable=quiet or self._plain,
        )

    def say(self, *messages: str) -> None:
        """A line each, as it is: no markup in it, and none broken at 80 characters in a file."""
        for message in messages:
            self._console.print(message, highlight=False, markup=False, soft_wrap=True)
            self._console.file.flush()

    @contextmanager
    def progress(self, what: str) -> Iterator[None]:
        """The block is the loop."""
        if self._plain:
            self.say(f"{what}: step {self._done} of {self._total}, compiling")
        with self.bar:
            self._task = self.bar.add_task(what, total=self._total, completed=self._done, status="compiling")
            yield

    def update(self, number: int, values: Mapping[str, float]) -> None:
        """Shows the values of a step."""
        words = [
            f"{name} {values[key]:.4g}"
            for name, key in (
                ("loss", "loss"),
                ("validation loss", "validation/loss"),
                ("img/s", "images_per_second"),
            )
            if key in values
        ]
        if self._plain and words:
            speed = values.get("steps_per_second", 0.0)
            left = [f"{_duration((self._total - number) / speed)} left"] if speed else []
            self.say(f"step {number} of {self._total}: {', '.join([*words, *left])}")
        self.bar.update(self._task, completed=number)
        if "loss" in values:
            self.bar.update(self._task, status=" ".join(words))


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class Logger:
    """Collects metrics (sums and counts) between log points and writes their means.

    Metrics of a step are read while the next one runs, so logging never waits for the device.
    """

    def __init__(
        self, directory: Path, stage: Stage, rates: Rates, *, first: int = 0, quiet: bool = False
    ) -> None:
        """first: the step that the run goes on from; what the logs hold of later ones is done again, and goes.

        Raises UserError, as every method that writes, where the directory's disk is full.
        """
        self.stage, self.rates = stage, rates
        self.chief = first_process()
        self.shown = Shown(stage.steps, first, quiet=quiet)
        self._directory = directory
        self.say = self.shown.say
        self._first = first
        self._sums: dict[str, np.ndarray] = {}
        self._pending: tuple[int, Metrics] | None = None
        self._bad: list[BadUpdate] = []
        self._flops = 0.0
        kind = jax.devices()[0].device_kind
        self._peak = (peak_flops(kind) or 0.0) * jax.device_count()
        self._since = time.monotonic()
        self._steps = 0
        if self.chief:
            with explained(directory):
                directory.mkdir(parents=True, exist_ok=True)
                drop_later_rows(directory / "metrics.jsonl", first)
                self._jsonl = (directory / "metrics.jsonl").open("a", encoding="utf-8")
                self._board = TensorBoard(directory / "tensorboard", first)

    @contextmanager
    def progress(self) -> Iterator[None]:
        """The block is the loop; its time is the steps'."""
        with self.shown.progress(self.stage.objective.kind):
            self._since = time.monotonic()
            yield

    def flops(self, per_step: float) -> None:
        """Model FLOPs of a step over all devices; from now on the logs hold what is made of them."""
        self._flops = per_step

    def after_step(self, number: int, metrics: Metrics, **counts: int) -> None:
        """Notes step `number`'s metrics, and at a log point writes the means since the last one.

        counts: of the whole run so far, written as they are.
        """
        self._collect()
        self._pending = (number, metrics)
        self._steps += 1
        if number % self.stage.log_every == 0 or number == self.stage.steps:
            self._collect()
            rates = {f"learning_rate/{group}": float(rate(number - 1)) for group, rate in self.rates.items()}
            self.write(number, {**self._means(), **rates, **counts})
        elif number == self._first + 1:
            # The first log point may be hours away: that it runs is shown at once.
            self._collect()
            self.shown.update(number, self._so_far())

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time in the block is not the steps': validation, pictures, compiling."""
        began = time.monotonic()
        yield
        self._since += time.monotonic() - began

    def bad_updates(self, *, wait: bool = False) -> list[BadUpdate]:
        """Those that came to light since the last call; with `wait`, of every step so far."""
        if wait:
            self._collect()
        bad, self._bad = self._bad, []
        return bad

    def write(self, number: int, values: Mapping[str, float]) -> None:
        """Writes named values of a step to both logs."""
        self.shown.update(number, values)
        if not self.chief:
            return
        # JSON has no NaN; null keeps a bad value visible and the file readable.
        record = {k: v if math.isfinite(v) else None for k, v in values.items()}
        with explained(self._directory):
            self._jsonl.write(json.dumps({"step": number, **record}) + "\n")
            self._jsonl.flush()
            self._board.write(number, values)

    def picture(self, number: int, name: str, pixels: np.ndarray) -> None:
        """Adds a picture, uint8 [H, W, 3], to TensorBoard."""
        if self.chief:
            with explained(self._directory):
                self._board.picture(number, name, pixels)

    def close(self) -> None:
        if self.chief:
            with explained(self._directory):
                self._jsonl.close()
                self._board.close()

    def _collect(self) -> None:
        if self._pending is None:
            return
        number, metrics = self._pending
        self._pending = None
        host = {name: np.asarray(value, np.float64) for name, value in metrics.items()}
        for name, value in host.items():
            # A loss that is not finite must not hide those of the steps around it.
            if np.all(np.isfinite(value)):
                self._sums[name] = self._sums.get(name, 0.0) + value
        if host["bad_updates"][0]:
            mean = float(host["loss_mean"][0]) if "loss_mean" in host else None
            self._bad.append(BadUpdate(number, float(host["loss"][0] / host["loss"][1]), mean))

    def _so_far(self) -> dict[str, float]:
        return {name: float(total[0] / total[1]) for name, total in self._sums.items() if total[1] > 0}

    def _means(self) -> dict[str, float]:
        now = time.monotonic()
        means = self._so_far()
        seconds = max(now - self._since, 1e-9)
        means["steps_per_second"] = self._steps / seconds
        means["images_per_second"] = self._steps * self.stage.batch_size / seconds
        if self._flops:
            rate = self._flops * means["steps_per_second"]
            means["model_tflops_per_second"] = rate / 1e12
            if self._peak:
                means["model_flops_utilisation"] = rate / self._peak
        means["host_memory_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        stats = jax.local_devices()[0].memory_stats()
        if stats and "peak_bytes_in_use" in stats:
            means["device_memory_gib"] = stats["peak_bytes_in_use"] / 2**30
        self._sums.clear()
        self._since, self._steps = now, 0
        return means


def drop_later_rows(path: Path, step: int) -> None:
    """Rewrites a log without the rows after a step, and without a row that was cut in the middle."""
    if not path.exists():
        return
    text = path.read_bytes()
    kept = b"".join(line for line in text.splitlines(keepends=True) if _is_up_to(line, step))
    if kept != text:
        write_file(path, kept)


def _is_up_to(line: bytes, step: int) -> bool:
    try:
        return line.endswith(b"\n") and json.loads(line)["step"] <= step
    except (ValueError, KeyError, TypeError):
        return False
