"""What a person sees of a run while it goes on."""

from __future__ import annotations

import json
from pathlib import Path

import micro
import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from mvader_jax.train.log import Logger


@pytest.mark.parametrize("interval", [0.5, 50.0, 250.0])
def test_the_time_left_is_told_however_far_apart_log_points_are(tmp_path, interval):
    logger = Logger(tmp_path, micro.train_config(steps=1000).stages["diffusion"], {}, quiet=True)
    with logger.progress():
        bar = logger.shown.bar
        (task,) = bar.tasks
        for number in range(1, 11):
            bar.get_time = lambda at=number * interval: at
            logger.write(50 * number, {"loss": 1.0})
        assert task.time_remaining == pytest.approx(10 * interval)
    logger.close()


def shown_by_tensorboard(directory: Path, name: str) -> list[tuple[int, float]]:
    """A curve as TensorBoard reads it: a session that starts at a step hides what was there from it on."""
    shown: list[tuple[int, float]] = []
    for path in sorted(directory.iterdir()):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")  # then its checksum, the event, and the event's
            event = Event.FromString(data[12 : 12 + length])
            data = data[12 + length + 4 :]
            if event.session_log.status == SessionLog.START:
                shown = [(step, value) for step, value in shown if step < event.step]
            shown += [(event.step, value.simple_value) for value in event.summary.value if value.tag == name]
    return shown


def test_rows_after_the_step_that_a_run_goes_on_from_go(tmp_path: Path) -> None:
    stage = micro.train_config(steps=1000).stages["diffusion"]
    log = tmp_path / "metrics.jsonl"
    for first in (0, 20):
        logger = Logger(tmp_path, stage, {}, first=first, quiet=True)
        with logger.progress():
            for step in range(first + 10, first + 41, 10):
                logger.write(step, {"loss": float(step + first), "validation/loss": 1.0})
        logger.close()
        with log.open("a") as stream:
            stream.write('{"step": 11, "lo')  # killed while it wrote
    rows = [json.loads(line) for line in log.read_text().splitlines()[:-1]]
    assert [(row["step"], row["loss"]) for row in rows] == [
        *((10, 10.0), (20, 20.0), (30, 50.0), (40, 60.0), (50, 70.0), (60, 80.0))
    ]
    assert shown_by_tensorboard(tmp_path / "tensorboard", "loss") == [(r["step"], r["loss"]) for r in rows]


def test_a_run_that_nobody_watches_says_a_line_each_log_point(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = micro.train_config(steps=40, log_every=20).stages["diffusion"]
    for quiet in (False, True):
        logger = Logger(tmp_path, stage, {}, quiet=quiet)
        with logger.progress():
            logger.write(20, {"loss": 0.12345, "images_per_second": 30.0, "steps_per_second": 0.01})
            logger.write(20, {"validation/loss": 0.5})
            logger.say(
                "no [markup] and no line that is broken at eighty characters, however long it is: " + "x" * 80
            )
        logger.close()
    progress = [
        "diffusion: step 0 of 40, compiling",
        "step 20 of 40: loss 0.1235, img/s 30, 0:33:20 left",
        "step 20 of 40: validation loss 0.5",
    ]
    said = "no [markup] and no line that is broken at eighty characters, however long it is: " + "x" * 80
    assert capsys.readouterr().err.splitlines() == [*progress, said, said]
