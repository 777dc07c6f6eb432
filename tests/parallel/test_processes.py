"""Two real processes: who writes, who waits, and that the mistake of the first is told by all."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mvader_jax.errors import UserError
from mvader_jax.parallel.processes import (
    barrier,
    by_first,
    first_process,
    gather_json,
    initialize_distributed,
)

ROOT = Path(__file__).parents[2]

PROGRAM = """
import jax, numpy as np
from mvader_jax.errors import UserError
from mvader_jax.parallel.processes import (
    barrier, by_first, everywhere, first_process, gather_json, gather_rows, initialize_distributed)
initialize_distributed()
index = jax.process_index()
said = [first_process(), gather_json({"of": index}), by_first(lambda: index), everywhere(index == 0)]
barrier()
mesh = jax.make_mesh((2,), ("x",))
sharding = jax.NamedSharding(mesh, jax.P("x"))
rows = jax.make_array_from_process_local_data(sharding, np.full((1, 2), index), (2, 2))
said.append(gather_rows(rows).tolist())
def refuse():
    raise UserError("the place is taken")
try:
    by_first(refuse)
except UserError as error:
    said.append(str(error))
print(said)
"""


def test_two_processes_agree() -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    running = []
    for index in range(2):
        environment = {
            **os.environ,
            "XLA_FLAGS": "",
            "JAX_PLATFORMS": "cpu",
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(index),
        }
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        running.append(
            subprocess.Popen([sys.executable, "-c", PROGRAM], env=environment, text=True, **pipes)  # type: ignore[call-overload]
        )
    said = [process.communicate(timeout=120) for process in running]
    for index, (out, err) in enumerate(said):
        both = [{"of": 0}, {"of": 1}]
        assert (
            out.splitlines()[-1] == f"{[index == 0, both, 0, False, [[0, 0], [1, 1]], 'the place is taken']}"
        ), err


def test_alone_a_process_is_the_first() -> None:
    def refuse() -> None:
        raise UserError("the place is taken")

    barrier()
    assert first_process() and by_first(lambda: [1, "ü"]) == [1, "ü"] and gather_json(3) == [3]
    with pytest.raises(UserError, match="the place is taken"):
        by_first(refuse)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "host0"}, "JAX_NUM_PROCESSES is not set; a job needs all of"),
        ({"JAX_PROCESS_ID": "1"}, "JAX_NUM_PROCESSES is not set"),
        (
            {"JAX_PROCESS_ID": "1", "JAX_NUM_PROCESSES": "2"},
            "JAX_COORDINATOR_ADDRESS is not set; a job needs all",
        ),
        ({"JAX_NUM_PROCESSES": "2", "JAX_COORDINATOR_ADDRESS": "h:1"}, "JAX_PROCESS_ID is not set"),
        (("host0", 2, 1), "JAX_COORDINATOR_ADDRESS is 'host0'; expected HOST:PORT of process 0"),
        (("host0:", 2, 1), "expected HOST:PORT"),
        ((":123", 2, 1), "expected HOST:PORT"),
        (("host0:port", 2, 1), "expected HOST:PORT"),
        (("host0:70000", 2, 1), "expected HOST:PORT"),
        (("host0:1", 2, 2), "JAX_PROCESS_ID is '2'; accepted: 0 to 1"),
        (("host0:1", 2, -1), "JAX_PROCESS_ID is '-1'; accepted: 0 to 1"),
        (("host0:1", 0, 0), "JAX_NUM_PROCESSES is '0'; accepted: 1 to"),
        (("host0:1", 1.5, 0), "JAX_NUM_PROCESSES is '1.5'; accepted: 1 to"),
        (("host0:1", "two", 0), "JAX_NUM_PROCESSES is 'two'; accepted: 1 to"),
        (("host0:1", 2, 1, 0), "MVADER_JOIN_TIMEOUT is '0'; accepted: 1 to 86400"),
    ],
)
def test_half_a_job_is_refused_at_once(
    variables: dict[str, str] | tuple[object, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID", "MVADER_JOIN_TIMEOUT")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    if isinstance(variables, tuple):
        variables = {name: str(value) for name, value in zip(names, variables, strict=False)}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=re.escape(message)):
        initialize_distributed()


@pytest.mark.parametrize(
    ("index", "why"),
    [(1, "process 0 does not answer there (Connection refused)"), (0, "not all of the 2 processes came")],
)
def test_processes_that_do_not_meet_end_in_time_with_a_sentence(index: int, why: str) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
        "JAX_NUM_PROCESSES": "2",
        "JAX_PROCESS_ID": str(index),
        "MVADER_JOIN_TIMEOUT": "1",
    }
    words = ["-m", "mvader_jax.cli.main", "train", "configs/tiny.py"]
    done = subprocess.run(
        [sys.executable, *words], env=environment, text=True, capture_output=True, timeout=60, cwd=ROOT
    )
    assert done.returncode == 2
    assert (
        f"mvader: the job did not meet at localhost:{port} within 1 s (MVADER_JOIN_TIMEOUT): {why}"
        in done.stderr
    )
    assert "Traceback" not in done.stderr
