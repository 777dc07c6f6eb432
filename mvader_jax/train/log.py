"""Watching a run: progress bar, JSONL and TensorBoard. Process 0 writes; the others only count."""

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
from mvader_jax.train.config import Stage
from mvader_jax.train.flops import peak_flops

Rates = Mapping[str, Callable[[int], Any]]


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


class Watch:
    """Collects metrics (sums and counts) between log points and writes their means.

    Metrics of a step are read while the next one runs, so watching never waits for the device.
    """

    def __init__(self, directory: Path, stage: Stage, rates: Rates, *, quiet: bool = False) -> None:
        self.stage, self.rates = stage, rates
        self.chief = first_process()
        self.console = rich.console.Console(file=sys.stderr, quiet=quiet or not self.chief)
        self._sums: dict[str, np.ndarray] = {}
        self._pending: tuple[int, Any] | None = None
        self._bad: list[BadUpdate] = []
        self._flops = 0.0
        kind = jax.devices()[0].device_kind
        self._peak = (peak_flops(kind) or 0.0) * jax.device_count()
        self._since = time.monotonic()
        self._steps = 0
        self._bar: rich.progress.Progress | None = None
        if self.chief:
            from tensorboardX import SummaryWriter

            directory.mkdir(parents=True, exist_ok=True)
            self._jsonl = (directory / "metrics.jsonl").open("a", encoding="utf-8")
            self._board = SummaryWriter(str(directory / "tensorboard"))

    def say(self, message: str) -> None:
        self.console.print(message, highlight=False)

    @contextmanager
    def progress(self, first: int, total: int) -> Iterator[None]:
        """The progress bar around the loop: step, loss, images/s, time left."""
        columns = (
            rich.progress.TextColumn("{task.description}"),
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TextColumn("{task.fields[status]}"),
            rich.progress.TimeRemainingColumn(),
        )
        # Log points may lie minutes apart; what is left is told from those of the last ten.
        with rich.progress.Progress(
            *columns, console=self.console, refresh_per_second=2, speed_estimate_period=600
        ) as self._bar:
            self._task = self._bar.add_task(
                self.stage.objective, total=total, completed=first, status="compiling"
            )
            self._since = time.monotonic()
            yield
        self._bar = None

    def flops(self, per_step: float) -> None:
        """Model FLOPs of a step over all devices; from now on the logs hold what is made of them."""
        self._flops = per_step

    def after_step(self, number: int, metrics: Any) -> None:
        """Notes step `number`'s metrics, and at a log point writes the means since the last one."""
        self._collect()
        self._pending = (number, metrics)
        self._steps += 1
        if number % self.stage.log_every == 0 or number == self.stage.steps:
            self._collect()
            rates = {f"learning_rate/{group}": float(rate(number - 1)) for group, rate in self.rates.items()}
            self.write(number, {**self._means(), **rates})

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
        if self._bar is not None:
            status = " ".join(
                f"{name} {values[key]:.4g}"
                for name, key in (("loss", "loss"), ("img/s", "images_per_second"))
                if key in values
            )
            changed: dict[str, Any] = {"status": status} if status else {}
            self._bar.update(self._task, completed=number, **changed)
        if not self.chief:
            return
        # JSON has no NaN; null keeps a bad value visible and the file readable.
        record = {k: v if math.isfinite(v) else None for k, v in values.items()}
        self._jsonl.write(json.dumps({"step": number, **record}) + "\n")
        self._jsonl.flush()
        for name, value in values.items():
            self._board.add_scalar(name, value, number)

    def picture(self, number: int, name: str, pixels: np.ndarray) -> None:
        """Adds a picture, uint8 [H, W, 3], to TensorBoard."""
        if self.chief:
            self._board.add_image(name, pixels, number, dataformats="HWC")

    def close(self) -> None:
        if self.chief:
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

    def _means(self) -> dict[str, float]:
        now = time.monotonic()
        means = {name: float(total[0] / total[1]) for name, total in self._sums.items() if total[1] > 0}
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
