"""Values and pictures of a run as TensorBoard reads them.

Written by the caller's own thread: what cannot be written is an error there, not a writer that waits for ever.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import image, scalar


class TensorBoard:
    """A new file of events in `directory`; what earlier ones hold of later steps than `first` is not shown."""

    def __init__(self, directory: Path, first: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._writer = EventsWriter(str(directory / "events"), f".{time.time_ns()}.{os.getpid()}")
        begun = SessionLog(status=SessionLog.START)
        self._writer.write_event(Event(wall_time=time.time(), step=first + 1, session_log=begun))
        self._writer.flush()

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        self._writer.flush()

    def picture(self, step: int, name: str, pixels: np.ndarray) -> None:
        """pixels: uint8 [H, W, 3]."""
        summary = image(name, pixels, dataformats="HWC")
        self._writer.write_event(Event(wall_time=time.time(), step=step, summary=summary))
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
