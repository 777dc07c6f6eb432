"""How soon a command begins."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import micro
import pytest

from mvader_jax.storage.bundle import save_bundle


def test_naming_the_package_and_asking_for_help_are_quick() -> None:
    """In seconds of this process's own processor time, which other work on the machine does not lengthen."""

    def seconds(*command: str) -> float:
        before = os.times()
        subprocess.run([sys.executable, *command], check=True, capture_output=True)
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system

    assert min(seconds("-c", "import mvader_jax") for _ in range(3)) < 1.5
    assert min(seconds("-m", "mvader_jax.cli.main", "--help") for _ in range(3)) < 0.7
    heavy = {"torch", "transformers", "gradio", "tensorflow", "jax"}
    code = f"import sys, mvader_jax; sys.exit(bool({heavy} & set(sys.modules)))"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_the_second_process_finds_compiled_programs(tmp_path: Path) -> None:
    """The persistent cache: from nothing to pictures, in a fraction of the first process's time."""
    save_bundle(tmp_path / "b", micro.bundle())
    environment = {**os.environ, "MVADER_CACHE": str(tmp_path / "cache"), "JAX_PLATFORMS": "cpu"}
    command = [
        sys.executable,
        "-m",
        "mvader_jax.cli.main",
        "sample",
        "red",
        "--bundle",
        "b",
        "--steps",
        "2",
        "--quiet",
    ]
    spent = []
    for _ in range(2):
        start = time.monotonic()
        subprocess.run(command, check=True, cwd=tmp_path, env=environment, capture_output=True)
        spent.append(time.monotonic() - start)
    assert list((tmp_path / "cache").iterdir())
    assert spent[1] < 0.8 * spent[0]
