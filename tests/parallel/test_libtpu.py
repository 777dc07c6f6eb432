"""libtpu, which this environment has and which finds no TPU here, says nothing of it to anybody."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mvader_jax.parallel import libtpu


def said(code: str) -> tuple[str, str]:
    """(stdout, stderr) of Python in an environment that names neither a platform nor a pod."""
    env = {
        name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "TPU_", "TF_CPP"))
    }
    # Else it depends on who else uses libtpu at this moment.
    env["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
    done = subprocess.run([sys.executable, "-c", code], env=env, text=True, capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_nothing_is_said_where_there_is_no_tpu() -> None:
    assert importlib.util.find_spec("libtpu") is not None
    assert "libtpu" in said("import jax; jax.devices()")[1]
    assert said("import mvader_jax, jax; print(jax.devices()[0].platform)") == ("cpu\n", "")


def test_a_machine_with_a_tpu_and_what_the_user_says_stay_as_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in libtpu.ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(libtpu, "_DEVICES", (str(tmp_path / "accel[0-9]*"),))
    (tmp_path / "accel0").touch()
    libtpu.hush()
    assert not os.environ.keys() & libtpu.ENVIRONMENT.keys()
    (tmp_path / "accel0").unlink()
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v4-8")
    libtpu.hush()
    assert os.environ["TPU_ACCELERATOR_TYPE"] == "v4-8"
    assert os.environ["TPU_WORKER_HOSTNAMES"] == "localhost"
    for name in libtpu.ENVIRONMENT:
        monkeypatch.delenv(name)
