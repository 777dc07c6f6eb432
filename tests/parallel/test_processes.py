"""Two real processes: who writes, who waits, and that the mistake of the first is told by all."""

from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from mvader_jax.errors import UserError
from mvader_jax.parallel.processes import barrier, by_first, first_process, gather_json

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
