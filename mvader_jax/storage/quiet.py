"""Orbax and tensorstore without their asides: what is wrong is said once, by whoever catches it."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator
from typing import Any

#: Of asyncio and of orbax: how what is raised where nobody can catch it begins.
_ASIDES = ("Event loop is closed", "Encountered error while reading array index")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps orbax from logging what it raises, and files that a bundle does not have."""
    _ignore_what_was_under_way()
    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _more_reads_that_failed(record: logging.LogRecord) -> bool:
    """A filter of asyncio's log, which tells the errors that nobody asked a task for: of reads, once is enough."""
    error = record.exc_info[1] if record.exc_info else None
    return not (record.getMessage().startswith("Task exception") and " Error reading " in str(error))


def _ignore_what_was_under_way() -> None:
    """Drops messages for good: where orbax gives up, the other reads that were under way complain of that,
    later and from threads of their own, where nobody can catch it."""
    logging.getLogger("asyncio").addFilter(_more_reads_that_failed)  # added once, however often
    before = sys.unraisablehook
    if getattr(before, "ignores_what_was_under_way", False):
        return

    def hook(unraisable: Any, /) -> None:
        if not str(unraisable.exc_value).startswith(_ASIDES):
            before(unraisable)

    hook.ignores_what_was_under_way = True  # type: ignore[attr-defined]
    sys.unraisablehook = hook
