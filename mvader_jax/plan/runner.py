"""Plans in a process of their own, with progress: a compilation can take minutes and libtpu can abort."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

from mvader_jax.errors import UserError
from mvader_jax.parallel.libtpu import ENVIRONMENT
from mvader_jax.plan.request import Request

Say = Callable[[str], None]


def run_request(request: Request, say: Say) -> dict[str, Any]:
    """The plan of a request as plain JSON values. Raises UserError for what cannot be planned.

    say: called with every new state of the work.
    """
    answer = ask("mvader_jax.plan.request", request.to_json(), say)
    if "error" in answer:
        raise UserError(answer["error"])
    return dict(answer["plan"])


def ask(module: str, text: str, say: Say) -> dict[str, Any]:
    """Runs `python -m module` with `text` on its standard input; its last line is the JSON answer."""
    env = {
        **os.environ,
        **ENVIRONMENT,
        "JAX_PLATFORMS": "cpu",
        "TF_CPP_MIN_LOG_LEVEL": "2",
    }
    child = subprocess.Popen(
        [sys.executable, "-m", module],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
    )
    assert child.stdin is not None and child.stdout is not None and child.stderr is not None
    noise: list[str] = []

    def listen(stream: Any) -> None:
        for line in stream:
            if line.startswith("progress: "):
                say(line.removeprefix("progress: ").strip())
            else:
                noise.append(line)

    listener = threading.Thread(target=listen, args=(child.stderr,), daemon=True)
    listener.start()
    try:
        child.stdin.write(text)
        child.stdin.close()
        out = child.stdout.read()
        code = child.wait()
        listener.join()
    except BaseException:
        child.kill()
        child.wait()
        raise
    lines = out.strip().splitlines()
    if code != 0 or not lines:
        last = next((line.strip() for line in reversed(noise) if line.strip()), "it said nothing")
        raise UserError(f"the planning process ended with code {code}: {last}")
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer
