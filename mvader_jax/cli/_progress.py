"""What a command tells on standard error while it works: a bar or a spinner on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

#: Seconds between plain lines, where standard error is no terminal.
EVERY = 30.0
#: Seconds over which a rate is measured, and between redrawings of a bar.
_WINDOW, _REDRAW = 60.0, 0.2


def tell(message: str) -> None:
    """A line on standard error, at once. A reader that has gone away is no reason to stop."""
    with contextlib.suppress(OSError, ValueError):
        print(message, file=sys.stderr, flush=True)


class Bar:
    """How far work is. unit: what is counted, "B" for bytes; total: how many of it, None while unknown."""

    def __init__(
        self, what: str, unit: str, total: int | None, quiet: bool, clock: Callable[[], float]
    ) -> None:
        self.what, self.unit, self.total, self.done = what, unit, total, 0
        self._quiet, self._clock = quiet, clock
        self._marks = [(clock(), 0)]
        self._told = -EVERY
        self._rich: Any = None

    def begin(self, total: int, done: int = 0) -> None:
        """How many there are, and how many were there before the work began."""
        self.total, self.done, self._marks = total, done, [(self._clock(), done)]
        if self._rich is not None:
            self._show(force=True)

    def update(self, done: int, total: int | None = None) -> None:
        """So many are done by now."""
        self.done, self.total = done, self.total if total is None else total
        now = self._clock()
        self._marks.append((now, done))
        while len(self._marks) > 2 and self._marks[0][0] < now - _WINDOW:
            self._marks.pop(0)
        self._show(force=done == self.total)

    def advance(self, count: int) -> None:
        """So many more are done."""
        self.update(self.done + count)

    def say(self, message: str) -> None:
        """A line of its own, above the bar."""
        if self._rich is not None:
            with contextlib.suppress(OSError):
                self._rich.console.print(message, highlight=False, markup=False, soft_wrap=True)
        elif not self._quiet:
            tell(message)

    def __str__(self) -> str:
        """'12 of 40 images, 3.1 images/s, 9 s left'."""
        (first, before), (last, now) = self._marks[0], self._marks[-1]
        speed = (now - before) / (last - first) if last > first else 0.0
        of = "" if self.total is None else f" of {_amount(self.total, self.unit)}"
        unit = "" if self.unit == "B" else f" {self.unit}"
        text = f"{_amount(self.done, self.unit)}{of}{unit}"
        if speed:
            rate = f"{_amount(speed, self.unit)}/s" if self.unit == "B" else f"{speed:.3g} {self.unit}/s"
            text += f", {rate}"
            if self.total is not None and self.done < self.total:
                text += f", {(self.total - self.done) / speed:.0f} s left"
        return text

    def _show(self, *, force: bool) -> None:
        now = self._clock()
        if self._quiet:
            return
        if self._rich is not None:
            if force or now - self._told >= _REDRAW:
                self._told = now
                with contextlib.suppress(OSError):
                    self._rich.update(0, completed=self.done, total=self.total, told=str(self))
                    self._rich.refresh()
        elif self.done and now - self._told >= EVERY:
            self._told = now
            tell(f"{self.what}: {self}")


def _amount(number: float, unit: str) -> str:
    if unit != "B":
        return f"{number:,.0f}"
    for name in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.3g} {name}"
        number /= 1000
    return f"{number:,.1f} GB"


@contextmanager
def bar(
    what: str,
    unit: str,
    *,
    total: int | None = None,
    quiet: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Bar]:
    """A bar with the rate and the time left; a line now and then where standard error is no terminal."""
    shown = Bar(what, unit, total, quiet, clock)
    if quiet or not sys.stderr.isatty():
        yield shown
        return
    import rich.console
    import rich.progress

    columns = (
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.TextColumn("{task.fields[told]}"),
    )
    # No thread of its own: TFDS exchanges `__import__` while it loads, and rich imports as it draws.
    console = rich.console.Console(stderr=True)
    with rich.progress.Progress(*columns, console=console, auto_refresh=False) as shown._rich:
        shown._rich.add_task(what, total=total, told="")
        yield shown


@contextmanager
def bars(quiet: bool, unit: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar after another, named by what is done; yields what is told of (name, done, total)."""
    with contextlib.ExitStack() as shown:
        known: dict[str, Bar] = {}

        def progress(what: str, done: int, total: int) -> None:
            if what not in known:
                shown.close()
                known[what] = shown.enter_context(bar(what, unit, quiet=quiet))
                known[what].begin(total, done)  # the first ones waited for the compiler too
            known[what].update(done)

        yield progress


@contextmanager
def status(message: str, quiet: bool = False, *, at_once: bool = False) -> Iterator[Callable[[str], None]]:
    """A spinner that tells what is being done, and for how long; yields the function that tells what is next.

    Where standard error is no terminal, a line every EVERY seconds. at_once: and one whenever something new begins.
    """
    if quiet:
        yield lambda text: None
    elif sys.stderr.isatty():
        import rich.console
        import rich.progress

        columns = (
            rich.progress.SpinnerColumn(),
            rich.progress.TextColumn("{task.description}"),
            rich.progress.TimeElapsedColumn(),
        )
        console = rich.console.Console(stderr=True)
        with rich.progress.Progress(*columns, console=console, transient=True) as spinner:
            task = spinner.add_task(message, total=None)
            yield lambda text: spinner.update(task, description=text)
    else:
        with _lines(message, at_once) as say:
            yield say


@contextmanager
def _lines(message: str, at_once: bool) -> Iterator[Callable[[str], None]]:
    began, now, ended = time.monotonic(), [message], threading.Event()

    def line() -> None:
        tell(f"[{time.monotonic() - began:5.0f} s] {now[0]}")

    def say(text: str) -> None:
        now[0] = text
        if at_once:
            line()

    def repeat() -> None:
        while not ended.wait(EVERY):
            line()

    thread = threading.Thread(target=repeat, name="status", daemon=True)
    thread.start()
    try:
        yield say
    finally:
        ended.set()
        thread.join()
