"""Signals that ask a run to save and stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType

import jax
from jax.experimental import multihost_utils

Handler = Callable[[int, FrameType | None], None] | signal.Handlers


class Preemption:
    """SIGTERM (a preemption notice) or Ctrl-C in the block asks for a stop at the next step, on which all agree.

    Of several processes JAX's own handler notes the signal, in whichever of them, and tells the others. A
    second Ctrl-C, or one before `working` is set, ends the process as it is. The terminal may go away (SIGHUP).
    """

    #: Whether there are steps to save.
    working = False

    def __enter__(self) -> Preemption:
        self.signal = 0
        self._several = jax.process_count() > 1
        handlers: dict[int, Handler] = {signal.SIGINT: self._interrupt, signal.SIGHUP: signal.SIG_IGN}
        if not self._several:
            handlers[signal.SIGTERM] = self._ask
        # Only the main thread may set them.
        main = threading.current_thread() is threading.main_thread()
        self._before = {number: signal.signal(number, do) for number, do in handlers.items() if main}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signal = number

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self.signal == number or not self.working:
            raise KeyboardInterrupt
        # Not print: the signal may have come in the middle of one.
        os.write(2, b"\nstopping after this step; Ctrl-C again stops at once, without saving\n")
        self._ask(number, frame)
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)

    def requested(self, step: int) -> bool:
        """Whether to stop after this step. In a job of several processes all ask after every step."""
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return bool(self.signal)
