"""A JAX profile of a few steps of a run, for TensorBoard or Perfetto."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import jax

#: Steps before the profile begins: the first compiles, the second still fills the pipeline.
_SKIPPED = 2


class Profile:
    """Profiles `steps` steps of this process's run, from its third on, into `directory`; 0 profiles none.

    Every process of a job writes its own host's part.
    """

    def __init__(self, directory: Path, steps: int, first: int) -> None:
        """first: the step that the run starts from, none of its own."""
        self.directory = directory
        self._begin = first + 1 + _SKIPPED
        self._end = self._begin + steps - 1
        self._steps = steps
        self._running = False

    def before(self, number: int) -> None:
        """Call before step `number`."""
        if self._steps and number == self._begin:
            self.directory.mkdir(parents=True, exist_ok=True)
            jax.profiler.start_trace(str(self.directory))
            self._running = True

    def after(self, number: int, result: Any) -> bool:
        """Call after step `number` with anything it computed. True when the profile has been written."""
        if not self._running or number != self._end:
            return False
        jax.block_until_ready(result)
        self._stop()
        return True

    def __enter__(self) -> Profile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._running:
            self._stop()

    def _stop(self) -> None:
        self._running = False
        jax.profiler.stop_trace()
