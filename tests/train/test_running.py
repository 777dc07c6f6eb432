"""A run as a process: what it says where nobody looks on, who may stop it, and what does not."""

from __future__ import annotations

import errno
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import micro
import pytest
from jobs import ROOT, environment
from kill import STAGE, command

from mvader_jax.errors import UserError
from mvader_jax.storage.bundle import save_bundle
from mvader_jax.train.log import Logger


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("running") / "init"
    save_bundle(path, micro.bundle(micro.NANO, "decoder"))
    return path


def start(
    workdir: Path, init: Path, steps: int, *overrides: str, limit: str = "true", **streams: object
) -> subprocess.Popen[str]:
    arguments = [word for word in command(workdir, steps) if word != "--quiet"]
    settings = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **streams}
    env = environment(NANO_BUNDLE=str(init), PYTHONUNBUFFERED="")
    words = ["bash", "-c", f'{limit}; exec "$@"', "-", *arguments, *overrides]
    return subprocess.Popen(words, env=env, cwd=ROOT, text=True, **settings)  # type: ignore[call-overload,no-any-return]


def steps_of(workdir: Path) -> list[int]:
    lines = (workdir / STAGE / "metrics.jsonl").read_text().splitlines()
    return [row["step"] for row in map(json.loads, lines) if "loss" in row]


def wait_until(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_log_grows_ctrl_c_saves_and_a_reader_may_go_away(init: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    every = f"stages.{STAGE}.log_every=5"
    with log.open("w") as stream:
        first = start(run, init, 2000, every, stderr=stream)
    # Not a terminal: plain lines, there as soon as they are written, from the first step on.
    wait_until(first, lambda: "step 10 of 2000: loss " in log.read_text())
    lines = log.read_text().splitlines()
    assert lines[0].startswith("objective captioning, from ")
    lines = lines[[line.partition(" ")[0] for line in lines].index("memory") + 1 :]
    assert lines[0] == "captioning: step 0 of 2000, compiling"
    assert lines[1].startswith("step 1 of 2000: loss ")
    assert (
        lines[2].startswith("step 5 of 2000: loss ") and " img/s " in lines[2] and lines[2].endswith(" left")
    )

    # A second process in the same directory is told who is there, and nothing of the first is touched.
    second = start(run, init, 2000)
    _, error = second.communicate(timeout=120)
    assert second.returncode == 2 and f"is in use by process {first.pid} of " in error
    assert error.startswith("mvader: ") and error.count("\n") == 1

    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=60) == 130
    said = log.read_text().splitlines()[-1]
    assert said.startswith("interrupted: step ") and said.endswith(
        "is saved, the same command goes on from there"
    )
    stopped = int(said.split()[2])
    assert (run / STAGE / "checkpoints" / str(stopped)).is_dir()

    # Rows of steps that will be done again go; a reader that goes away ends nothing.
    with (run / STAGE / "metrics.jsonl").open("a") as stream:
        stream.write(f'{{"step": {stopped + 5}, "loss": 1.0}}\n{{"step": {stopped + 1}, "lo')
    third = start(run, init, stopped + 30, every)
    assert third.stderr is not None and third.stdout is not None
    assert third.stderr.readline() == f"going on from step {stopped} of {stopped + 30}\n"
    third.stderr.close()
    third.stdout.close()
    third.send_signal(signal.SIGHUP) if (run / STAGE / ".mvader-lock").exists() else None
    assert third.wait(timeout=120) == 0
    steps = steps_of(run)
    assert steps == sorted(set(steps)) and steps[-1] == stopped + 30
    assert (run / STAGE / "bundle").is_dir() and not (run / STAGE / ".mvader-lock").exists()


def test_a_workdir_that_is_a_file_is_one_sentence(init: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    process = start(tmp_path / "file", init, 2)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2 and error.startswith("mvader: ") and error.count("\n") == 1
    assert "Not a directory" in error


@pytest.mark.parametrize("platform", ["foo", "cuda"])
def test_a_platform_that_is_not_here_is_one_sentence(platform: str, init: Path, tmp_path: Path) -> None:
    env = {**environment(NANO_BUNDLE=str(init)), "JAX_PLATFORMS": platform}
    done = subprocess.run(command(tmp_path / "run", 2), env=env, cwd=ROOT, text=True, capture_output=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"mvader: JAX finds no devices for JAX_PLATFORMS={platform}: ")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_starting_ends_it_without_a_traceback(number: int, init: Path, tmp_path: Path) -> None:
    for delay in (0.8, 2.2):
        process = start(tmp_path / "run", init, 1000)
        time.sleep(delay)
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
        assert process.returncode in (128 + number, 75, 130), (delay, error)
        assert "Traceback" not in error and not out, (delay, error)
        if process.returncode == 143:
            assert not error


def test_a_closed_stdout_ends_a_short_command_quietly() -> None:
    env = environment()
    process = subprocess.Popen(
        [sys.executable, "-m", "mvader_jax.cli.main", "samplers"],
        env=env,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 1 and not process.stderr.read()


def test_closed_standard_streams_do_not_end_in_a_file(tmp_path: Path) -> None:
    """With stderr closed the next file that is opened would be it, and libraries would write their lines there."""
    script = "exec 2>&-; exec 1>&-; exec " + " ".join(command(tmp_path, 1)[:3]) + " samplers"
    done = subprocess.run(["bash", "-c", script], env=environment(), cwd=ROOT)
    assert done.returncode == 0


def test_a_disk_that_takes_no_more_is_one_sentence_and_the_last_checkpoint_is_whole(
    init: Path, tmp_path: Path
) -> None:
    """RLIMIT_FSIZE in place of a full disk, which needs root: no file may grow beyond so many bytes."""
    run = tmp_path / "run"
    process = start(run, init, 10)
    assert process.wait(timeout=120) == 0
    process = start(run, init, 40, limit="ulimit -f 60")
    _, error = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in error, error
    (said,) = [line for line in error.splitlines() if line.startswith("mvader: ")]
    assert f"cannot save a checkpoint in {run / STAGE / 'checkpoints'}: " in said
    assert "File too large" in said and said.endswith("; step 10 is whole")
    # With room again the same command goes on from there.
    process = start(run, init, 12)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 0 and error.startswith("going on from step 10 of 12\n")


class Full(io.StringIO):
    def flush(self) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")


def test_a_log_that_cannot_be_written_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logger = Logger(tmp_path, micro.train_config().stages["diffusion"], {}, quiet=True)
    monkeypatch.setattr(logger, "_jsonl", Full())
    with logger.progress(), pytest.raises(UserError) as caught:
        logger.write(2, {"loss": 1.0})
    assert str(caught.value) == f"cannot write '{tmp_path}': no space is left on its disk"
