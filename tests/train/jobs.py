"""Starts jobs of several processes on loopback, as a pod's hosts would be."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """That of a process with so many CPU devices, which finds the package and the micro model."""
    paths = [str(ROOT), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    flags = [f for f in os.environ.get("XLA_FLAGS", "").split() if "device_count" not in f]
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith("TPU_")},
        "PYTHONPATH": os.pathsep.join(paths),
        "JAX_PLATFORMS": "cpu",
        "MALLOC_TRIM_THRESHOLD_": "100000000",  # as tpu/env.sh: freed memory goes back to the system
        "XLA_FLAGS": " ".join([*flags, f"--xla_force_host_platform_device_count={devices}"]),
        **more,
    }


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return int(s.getsockname()[1])


def run_job(
    processes: int, devices: int, arguments: list[str], options: dict[str, Any], timeout: float = 900.0
) -> list[tuple[int, str, str]]:
    """Runs `worker.py` in so many processes; (exit code, stdout, stderr) of each, all of them ended."""
    port = free_port()
    started = [
        subprocess.Popen(
            [sys.executable, str(HERE / "worker.py"), *arguments, json.dumps(options)],
            env=environment(
                devices,
                JAX_COORDINATOR_ADDRESS=f"localhost:{port}",
                JAX_NUM_PROCESSES=str(processes),
                JAX_PROCESS_ID=str(index),
            ),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(processes)
    ]
    try:
        ends = [process.communicate(timeout=timeout) for process in started]
    finally:
        for process in started:
            process.kill()
    return [(p.returncode, out, error) for p, (out, error) in zip(started, ends, strict=True)]
