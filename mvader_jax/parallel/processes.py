"""The processes of a job: how they join, which of them writes, how they wait for and tell each other.

What says "Together" must be called by all processes, in the same order.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from mvader_jax.errors import UserError

T = TypeVar("T")


#: What names a job's processes outside of pods, and how many seconds they wait for each other.
ADDRESS, COUNT, INDEX = "JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
TIMEOUT, _SECONDS = "MVADER_JOIN_TIMEOUT", 300


def initialize_distributed() -> None:
    """Joins the processes of a job where the environment names one; otherwise does nothing.

    Reads JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID; where none is
    set, JAX finds the other hosts of a TPU pod or of several slices itself. Calling it again is harmless. Raises
    UserError for half a set of variables or a value out of range, and where the processes have not met within
    MVADER_JOIN_TIMEOUT seconds (300).
    """
    if jax.distributed.is_initialized():
        return
    if any(name in os.environ for name in (ADDRESS, COUNT, INDEX)):
        seconds = _number(TIMEOUT, 1, 86_400) if TIMEOUT in os.environ else _SECONDS
        count = _number(COUNT, 1, 1 << 20)
        _join(_address(), count, _number(INDEX, 0, count - 1), seconds)
    elif on_tpu_pod():
        jax.distributed.initialize()


def _number(name: str, least: int, most: int) -> int:
    text = os.environ.get(name)
    if text is None:
        raise UserError(f"{name} is not set; a job needs all of {ADDRESS}, {COUNT} and {INDEX}")
    if not (text.isascii() and text.isdigit()) or not least <= int(text) <= most:
        raise UserError(f"{name} is {text!r}; accepted: {least} to {most}")
    return int(text)


def _address() -> tuple[str, int]:
    text = os.environ.get(ADDRESS)
    if text is None:
        raise UserError(f"{ADDRESS} is not set; a job needs all of {ADDRESS}, {COUNT} and {INDEX}")
    host, _, port = text.rpartition(":")
    if not host or not (port.isascii() and port.isdigit()) or not 1 <= int(port) <= 65535:
        raise UserError(f"{ADDRESS} is {text!r}; expected HOST:PORT of process 0, as in host0:1234")
    return host, int(port)


def _join(address: tuple[str, int], count: int, index: int, seconds: int) -> None:
    """JAX ends the process when its own time is up, so it gets more, and a thread, and we look at the clock."""
    text = f"{address[0]}:{address[1]}"
    problems: list[Exception] = []

    def initialize() -> None:
        try:
            jax.distributed.initialize(text, count, index, initialization_timeout=seconds + 3600)
        except Exception as error:
            problems.append(error)

    thread = threading.Thread(target=initialize, daemon=True)
    thread.start()
    thread.join(seconds)
    if problems:
        raise UserError(f"process {index} cannot join the job at {text}: {str(problems[0]).splitlines()[0]}")
    if thread.is_alive():
        try:
            socket.create_connection((address[0].strip("[]"), address[1]), timeout=5).close()
            why = f"not all of the {count} processes came"
        except OSError as error:
            why = f"process 0 does not answer there ({error.strerror or error})"
        raise UserError(f"the job did not meet at {text} within {seconds} s ({TIMEOUT}): {why}")


def on_tpu_pod() -> bool:
    """Whether this host has TPUs and perhaps siblings, by the environment.

    GKE names the hosts, and MVADER_POD settles doubt. A Cloud TPU VM names none: there JAX asks the
    metadata server, which answers for a single host too. On a host without TPU chips JAX sets
    TPU_SKIP_MDS_QUERY when it is imported.
    """
    if os.environ.get("JAX_PLATFORMS", "").split(",")[0] not in ("", "tpu"):
        return False
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "")
    # Where it finds none, libtpu leaves a sentence there.
    if "," in hosts and not hosts.startswith("WARNING"):
        return True
    if "MEGASCALE_NUM_SLICES" in os.environ or "MVADER_POD" in os.environ:
        return True
    return "TPU_SKIP_MDS_QUERY" not in os.environ and importlib.util.find_spec("libtpu") is not None


def alone() -> bool:
    """Whether this process is a whole job. Unlike `jax.process_count()` it starts no backend."""
    return not jax.distributed.is_initialized() or jax.process_count() == 1


def first_process() -> bool:
    """Whether this is the process that writes what one alone must write."""
    return alone() or jax.process_index() == 0


def everywhere(good: bool) -> bool:
    """Whether `good` holds in every process. Together."""
    if alone():
        return good
    return bool(np.all(multihost_utils.process_allgather(np.array(good))))


def gather_json(value: Any) -> list[Any]:
    """The JSON values of all processes, in order. Together."""
    if alone():
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(data.size))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: data.size] = data
    rows = multihost_utils.process_allgather(padded)
    return [json.loads(row[: int(length)].tobytes()) for row, length in zip(rows, lengths, strict=True)]


def barrier() -> None:
    """Waits for all processes. Together."""
    everywhere(True)


def by_first(action: Callable[[], T]) -> T:
    """Lets process 0 alone do something; all get the JSON value it returns, or raise its UserError. Together."""
    value, problem = None, ""
    if first_process():
        try:
            value = action()
        except UserError as error:
            problem = str(error)
    value, problem = gather_json([value, problem])[0]
    if problem:
        raise UserError(problem)
    return value


def gather_rows(array: jax.Array) -> np.ndarray:
    """An array that is divided over the processes by its rows, whole on every host. Together."""
    if array.is_fully_addressable:
        return np.asarray(array)
    return np.asarray(multihost_utils.process_allgather(array, tiled=True))
