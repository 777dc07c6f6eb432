"""Kills a training run again and again, and compares its end with that of a run left in peace.

    python tests/train/kill.py --kills 30 --steps 300

Each time the same command is started, and SIGKILLed at a random moment: somewhere between two steps, while a
checkpoint is being written, or while it is still starting. One SIGTERM must save and exit with 75. The
final parameters, and the last checkpoint with its optimizer state, must be those of the undisturbed run,
bit for bit.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

import micro
from jobs import HERE, ROOT, environment

from mvader_jax.storage.bundle import load_bundle, save_bundle
from mvader_jax.storage.checkpoint import restore_tree

STAGE = "language"


@dataclasses.dataclass
class Report:
    """writing: kills that hit while a checkpoint was being written; repeated: steps that were done and lost."""

    kills: int = 0
    starting: int = 0
    writing: int = 0
    terms: int = 0
    repeated: int = 0
    differing: tuple[str, ...] = ()


def command(workdir: Path, steps: int) -> list[str]:
    return [
        *(sys.executable, "-m", "mvader_jax.cli.main", "train", str(HERE / "micro_run.py")),
        *("--stage", STAGE, "--workdir", str(workdir), "--quiet", f"stages.{STAGE}.steps={steps}"),
    ]


def start(workdir: Path, steps: int) -> subprocess.Popen[bytes]:
    env = environment(NANO_BUNDLE=str(workdir.parent / "init"))
    return subprocess.Popen(command(workdir, steps), env=env, cwd=ROOT, stderr=subprocess.PIPE)


def steps_logged(workdir: Path) -> list[int]:
    """The steps in the log, in order."""
    path = workdir / STAGE / "metrics.jsonl"
    return list(_steps_logged(path, path.stat().st_size)) if path.exists() else []


@functools.lru_cache(maxsize=8)
def _steps_logged(path: Path, size: int) -> tuple[int, ...]:
    lines = path.read_bytes()[:size].decode().splitlines()
    found = []
    for line in lines:
        # A killed process may leave half a line.
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if "loss" in record:
            found.append(record["step"])
    return tuple(found)


def newest_saved(workdir: Path) -> int:
    folder = workdir / STAGE / "checkpoints"
    return max((int(path.name) for path in folder.glob("*") if path.name.isdigit()), default=0)


def being_written(workdir: Path) -> list[Path]:
    return list((workdir / STAGE / "checkpoints").glob("*tmp*"))


def wait_for(process: subprocess.Popen[bytes], condition: Callable[[], object]) -> None:
    """Until it is true, or the process has ended."""
    while process.poll() is None and not condition():
        time.sleep(0.005)


def await_moment(process: subprocess.Popen[bytes], workdir: Path, rng: random.Random) -> str:
    """Waits for a random moment of the run and says of which kind."""
    before = len(steps_logged(workdir))
    way = rng.choice(["step", "step", "write", "write", "start"])
    if way == "start":
        time.sleep(rng.uniform(0.0, 8.0))
    elif way == "step":
        more = rng.randint(1, 14)
        wait_for(process, lambda: len(steps_logged(workdir)) >= before + more)
        time.sleep(rng.uniform(0.0, 0.02))
    else:
        wait_for(process, lambda: len(steps_logged(workdir)) > before)
        wait_for(process, lambda: being_written(workdir))
        time.sleep(rng.uniform(0.0, 0.05))
    return way


def kill_test(root: Path, kills: int, steps: int, seed: int = 0) -> Report:
    """Runs it all below `root`. Raises AssertionError where a run does not end as it should."""
    rng = random.Random(seed)
    peace, war = root / "peace", root / "war"
    save_bundle(root / "init", micro.bundle(micro.NANO, "decoder"))
    process = start(peace, steps)
    _, error = process.communicate()
    assert process.returncode == 0, error.decode()[-2000:]
    report = Report()
    while report.kills < kills:
        process = start(war, steps)
        before = len(steps_logged(war))
        way = await_moment(process, war, rng)
        if process.poll() is not None:
            assert process.returncode == 0, process.communicate()[1].decode()[-2000:]
            break
        report.writing += bool(being_written(war))
        report.starting += len(steps_logged(war)) <= before
        process.kill()
        process.communicate()
        report.kills += 1
        report.repeated += max(steps_logged(war), default=0) - newest_saved(war)
        print(f"kill {report.kills} ({way}) at step {max(steps_logged(war), default=0)}", flush=True)
    process = start(war, steps)
    before = len(steps_logged(war))
    wait_for(process, lambda: len(steps_logged(war)) > before)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate()
        assert process.returncode == 75, (process.returncode, error.decode()[-2000:])
        report.terms += 1
        process = start(war, steps)
    _, error = process.communicate()
    assert process.returncode == 0, error.decode()[-2000:]
    logged = steps_logged(war)
    # Every step once and in order, however often it was done again.
    assert logged == list(range(1, steps + 1))
    report.differing = tuple(differing(peace, war, steps))
    return report


def differing(peace: Path, war: Path, steps: int) -> list[str]:
    """Names of the arrays of the two ends that are not bitwise equal; none is what should be."""
    found = []
    pairs = [
        (load_bundle(peace / STAGE / "bundle").components, load_bundle(war / STAGE / "bundle").components),
        tuple(restore_tree(w / STAGE / "checkpoints" / str(steps) / "state") for w in (peace, war)),
    ]
    for one, other in pairs:
        a, b = named(one), named(other)
        found += [f"{path} is missing" for path in a.keys() ^ b.keys()]
        for path in a.keys() & b.keys():
            if np.asarray(a[path]).tobytes() != np.asarray(b[path]).tobytes():
                found.append(path)
    return found


def named(tree: Any) -> dict[str, Any]:
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in flat}


if __name__ == "__main__":
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcome = kill_test(Path(folder), options.kills, options.steps, options.seed)
    print(outcome)
    sys.exit(bool(outcome.differing))
