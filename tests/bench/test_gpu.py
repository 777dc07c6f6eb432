"""The measurements on a GPU, at a size for a CPU: they run to the end, and what fails is told."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("gpu.py")


@pytest.fixture(scope="module")
def gpu() -> Any:
    spec = importlib.util.spec_from_file_location("bench_gpu", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Dataclasses look their module up.
    sys.modules["bench_gpu"] = module
    spec.loader.exec_module(module)
    return module


def run(out: Path, *flags: str, **environment: str) -> dict[str, Any]:
    # One device, as a GPU is, and nothing optimised.
    environment = {**os.environ, "XLA_FLAGS": "--xla_backend_optimization_level=0", **environment}
    command = [sys.executable, str(SCRIPT), str(out), "--size", "small", "--seconds", "0", *flags]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_it_runs_to_the_end(tmp_path: Path) -> None:
    found = run(tmp_path / "gpu.json", "--budget", "3000")
    assert list(found) == [
        "device",
        "train, ours",
        "PyTorch",
        "train, diffusers eager",
        "train, diffusers compiled",
        "draw 1, ours",
    ]
    assert not [name for name, told in found.items() if told is None or "failed" in told], found
    for name, told in found.items():
        if "," in name:
            assert told["images_s"] > 0 and told["images_s"] == pytest.approx(told["batch"] / told["step_s"])
    assert found["train, ours"]["cudnn_attentions"] == 0
    assert found["train, ours"]["peak_gib"] > 0


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("raise ModuleNotFoundError(\"No module named 'torch'\")", "No module named 'torch'"),
        ("import os; os._exit(7)", "the process ended with 7"),
    ],
    ids=["missing", "crashing"],
)
def test_without_pytorch_the_file_says_so(tmp_path: Path, body: str, told: str) -> None:
    (tmp_path / "torch.py").write_text(body + "\n")
    (tmp_path / "diffusers.py").write_text("import torch\n")
    found = run(tmp_path / "gpu.json", "--parts", "diffusers", PYTHONPATH=str(tmp_path))
    assert told in found["diffusers"]["failed"]
    assert found["train, ours"] is None and found["draw 1, ours"] is None


def test_what_does_not_end_in_time_is_said_to_be_so(tmp_path: Path) -> None:
    (tmp_path / "diffusers.py").write_text("import time; time.sleep(60)\n")
    flags = ("--parts", "diffusers", "draw", "--budget", "0.1")
    found = run(tmp_path / "gpu.json", *flags, PYTHONPATH=str(tmp_path))
    assert "budget of 0.1 s" in found["diffusers"]["failed"]
    assert found["draw"] == {"failed": "no time was left"}


def test_a_measurement_that_fails_loses_no_other(gpu: Any, tmp_path: Path) -> None:
    report = gpu.Report(tmp_path / "gpu.json", 0.0)

    def broken() -> dict[str, Any]:
        raise RuntimeError("cuDNN said no")

    report.measure("one", broken)
    report.measure("two", lambda: report.rate(lambda: None, lambda: None, 4))
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["one"]["failed"] == "RuntimeError: cuDNN said no"
    assert found["two"]["batch"] == 4 and found["two"]["steps"] == 3


def test_the_largest_batch_that_fits_is_taken(gpu: Any) -> None:
    size = gpu.SIZES["sd14"]
    assert gpu.worth_trying(size, 75.0)[0] == 40  # an H100's
    assert gpu.worth_trying(size, 132.0)[0] == 80  # an H200's
    assert gpu.worth_trying(size, 8.0) == [8]
    assert gpu.worth_trying(size, None) == list(size.batches)

    def run(batch: int) -> dict[str, Any]:
        if batch > 32:
            raise MemoryError("RESOURCE_EXHAUSTED")
        return {"batch": batch}

    def full(error: Exception) -> bool:
        return isinstance(error, MemoryError)

    assert gpu.first_that_fits((48, 40, 32, 24), run, full) == {"batch": 32, "too_large": [48, 40]}
    with pytest.raises(MemoryError, match=r"no batch fits; tried \[64, 48\]"):
        gpu.first_that_fits((64, 48), run, full)
    with pytest.raises(ZeroDivisionError):
        gpu.first_that_fits((64, 48), lambda batch: {"batch": batch / 0}, full)
