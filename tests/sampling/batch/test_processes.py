"""Batch sampling in two real processes on loopback: each writes its own pictures, one of them the manifest."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import micro
import numpy as np
import pytest

from mvader_jax.data.scenes.world import render, scene_at
from mvader_jax.images.png import save_png
from mvader_jax.images.read import load_image
from mvader_jax.storage.bundle import save_bundle


def sample(folder: Path, out: str, count: int, mesh: str) -> list[subprocess.CompletedProcess[str]]:
    """`count` processes that draw `prompts.jsonl` together, a device each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mvader_jax.cli.main",
        "sample",
        "--prompts",
        "prompts.jsonl",
        "--steps",
        "2",
    ]
    command += ["--bundle", "b", "--batch", "4", "--out", out, "--mesh", mesh]
    base = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "MVADER_CACHE": str(folder / "cache")}
    processes = []
    for index in range(count):
        joined = {
            "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
            "JAX_NUM_PROCESSES": str(count),
            "JAX_PROCESS_ID": str(index),
        }
        environment = {**base, **(joined if count > 1 else {})}
        process = subprocess.Popen(
            command, cwd=folder, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        processes.append(process)
    done = []
    for process in processes:
        out_text, error_text = process.communicate(timeout=500)
        done.append(subprocess.CompletedProcess(command, process.returncode, out_text, error_text))
    return done


@pytest.mark.slow
def test_two_processes_draw_what_one_draws(tmp_path: Path) -> None:
    save_bundle(tmp_path / "b", micro.bundle())
    save_png(tmp_path / "0.png", render(scene_at(0, 0)))
    lines = [
        {"id": "a", "prompt": "a red circle", "num_images": 5, "seed": 3},
        {"id": "b", "prompt": [{"text": "in blue"}, {"image": "0.png", "weight": 0.3}], "num_images": 2},
        {"id": "c", "prompt": [{"image": "nowhere.png"}]},
    ]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    alone = sample(tmp_path, "alone", 1, "data=1")
    together = sample(tmp_path, "together", 2, "data=1,fsdp=2")
    for process in (*alone, *together):
        assert process.returncode == 1 and "Traceback" not in process.stderr, process.stderr
    assert "line 3" in together[0].stderr and "line 3" not in together[1].stderr
    names = sorted(path.name for path in (tmp_path / "alone").glob("*.png"))
    assert len(names) == 7 == len(list((tmp_path / "together").glob("*.png")))
    rows = [json.loads(row) for row in (tmp_path / "together/manifest.jsonl").read_text().splitlines()]
    assert sorted(row["file"] for row in rows) == names
    for name in names:
        one, other = (
            np.asarray(load_image(tmp_path / out / name)).astype(int) for out in ("alone", "together")
        )
        assert np.mean(np.abs(one - other) <= 1) >= 0.999, name
    again = sample(tmp_path, "together", 2, "data=1,fsdp=2")
    assert "0 drawn, 7 were there" in again[0].stderr
