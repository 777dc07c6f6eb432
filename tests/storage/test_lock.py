"""One job at a time in a directory, and the next one as soon as it has ended, however it ended."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mvader_jax.errors import UserError
from mvader_jax.storage.lock import LOCK, only_user

HOLDER = """
import sys, time
from mvader_jax.storage.lock import only_user
with only_user(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(directory: Path) -> subprocess.Popen[str]:
    """A process that holds the lock until its input ends."""
    command = [sys.executable, "-c", HOLDER, str(directory)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    return process


def refused(directory: Path, reason: str) -> None:
    with pytest.raises(UserError, match=reason), only_user(directory):
        raise AssertionError


@pytest.mark.parametrize("locks", [True, False])
def test_a_second_job_is_told_who_holds_the_place(
    tmp_path: Path, locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run" / "vae"
    other = holder(out)
    if not locks:  # a file system without them: the process' number is all there is

        def flock(number: int, how: int) -> None:
            raise OSError("Operation not supported")

        monkeypatch.setattr(fcntl, "flock", flock)
    refused(out, rf"'{out}' is in use by process {other.pid} of .* since .*; wait or name another place")
    other.communicate("", timeout=20)
    with only_user(out):
        assert (out / LOCK).is_file()
    assert list(out.iterdir()) == []


@pytest.mark.parametrize("locks", [True, False])
def test_a_dead_holders_lock_is_taken_over(
    tmp_path: Path, locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = holder(tmp_path)
    os.kill(other.pid, signal.SIGKILL)
    other.wait(timeout=20)
    assert (tmp_path / LOCK).is_file()
    if not locks:

        def flock(number: int, how: int) -> None:
            raise OSError("Operation not supported")

        monkeypatch.setattr(fcntl, "flock", flock)
    with only_user(tmp_path):
        pass
    assert not (tmp_path / LOCK).exists()


def test_an_error_inside_frees_the_place(tmp_path: Path) -> None:
    def failing() -> None:
        with only_user(tmp_path):
            refused(tmp_path, "is in use by process")
            raise KeyError

    with pytest.raises(KeyError):
        failing()
    with only_user(tmp_path):
        pass


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(tmp_path / "file", "cannot write '.*file'")
    refused(Path("/proc/x"), "cannot write '/proc/x'")
    refused(Path("gs://b/x"), "is not on this machine's file system")
