"""What commands tell on standard error: a bar on a terminal, lines at once elsewhere, and never a reason to stop."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
import time

import pytest

from mvader_jax.cli import _progress
from mvader_jax.cli._progress import bar, status, tell


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_lines_now_and_then_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with bar("drawing", "images", clock=clock) as shown:
        shown.begin(1000, 100)
        assert capsys.readouterr().err == ""
        for second in range(1, 71):
            clock.now = float(second)
            shown.advance(2)
        shown.say("line 3: bad")
    assert capsys.readouterr().err.splitlines() == [
        "drawing: 102 of 1,000 images, 2 images/s, 449 s left",
        "drawing: 162 of 1,000 images, 2 images/s, 419 s left",
        "drawing: 222 of 1,000 images, 2 images/s, 389 s left",
        "line 3: bad",
    ]


def test_bytes_and_unknown_totals(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with bar("copying", "B", clock=clock) as shown:
        clock.now = 1.0
        shown.update(2_500_000)
        clock.now = 40.0
        shown.update(4_000_000_000, 8_000_000_000)
    first, second = capsys.readouterr().err.splitlines()
    assert first == "copying: 2.5 MB, 2.5 MB/s"
    assert second == "copying: 4.0 GB of 8.0 GB, 100 MB/s, 40 s left"


def test_a_terminal_gets_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with bar("drawing", "images") as shown:
        shown.begin(4)
        shown.advance(4)
        shown.say("line 3: bad")
    said = terminal.getvalue()
    assert "4 of 4 images" in said and "line 3: bad" in said and "drawing" in said
    with status("loading") as say:
        say("drawing now")
        time.sleep(0.3)
    assert "drawing now" in terminal.getvalue()


def test_quiet_is_quiet(capsys: pytest.CaptureFixture[str]) -> None:
    with bar("drawing", "images", quiet=True) as shown, status("loading", True) as say:
        shown.begin(2)
        shown.advance(2)
        say("drawing")
        shown.say("a problem")
    assert capsys.readouterr().err == ""


def test_a_long_status_is_told_while_it_lasts(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_progress, "EVERY", 0.05)
    with status("loading tiny") as say:
        time.sleep(0.2)
        say("drawing")
        time.sleep(0.2)
    lines = capsys.readouterr().err.splitlines()
    assert any("loading tiny" in line for line in lines) and any("drawing" in line for line in lines)
    monkeypatch.setattr(_progress, "EVERY", 30.0)
    with status("loading", at_once=True) as say:
        say("compiling")
    assert capsys.readouterr().err == "[    0 s] compiling\n"


def test_a_reader_that_goes_away_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    read, write = os.pipe()
    os.close(read)
    monkeypatch.setattr(sys, "stderr", os.fdopen(write, "w", buffering=1))
    tell("nobody reads this")
    with bar("drawing", "images") as shown:
        shown.begin(2)
        shown.advance(2)
        shown.say("nor this")
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.close()
    tell("closed")


def test_a_log_is_not_empty_until_the_end() -> None:
    code = "import time\nfrom mvader_jax.cli._progress import tell\ntell('now')\ntime.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert process.stderr.readline() == "now\n"
    process.kill()
    process.communicate()
