"""SIGKILL at random moments: the end is that of an undisturbed run, bit for bit. See kill.py for the whole test."""

from __future__ import annotations

from pathlib import Path

import pytest
from kill import kill_test


@pytest.mark.slow
def test_killed_thirty_times(tmp_path: Path) -> None:
    report = kill_test(tmp_path, kills=30, steps=300)
    assert report.differing == ()
    assert report.kills == 30 and report.terms == 1
    # Some of the kills hit while a checkpoint was being written, and work was done again.
    assert report.writing >= 3 and report.repeated > 0


@pytest.mark.slow
def test_killed_four_times(tmp_path: Path) -> None:
    report = kill_test(tmp_path, kills=4, steps=40, seed=1)
    assert report.differing == () and report.kills == 4
