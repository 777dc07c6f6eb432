"""The LIBTPU flags of tpu/env.sh are ones that libtpu knows: an unknown one would end every process of a pod."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COMPILE = """
import jax, jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.parallel.pods import parse_topology
from mvader_jax.plan.topology import devices
mesh = make_mesh(MeshConfig(fsdp=4), devices(parse_topology({topology!r})))
x = jax.ShapeDtypeStruct((8, 128), jnp.bfloat16, sharding=NamedSharding(mesh, PartitionSpec("fsdp")))
jax.jit(lambda x: x @ x.T).trace(x).lower(lowering_platforms=("tpu",)).compile()
print("compiled")
"""


def flags(pod: str) -> str:
    script = f'source "{ROOT}/tpu/env.sh" && printf %s "$LIBTPU_INIT_ARGS"'
    env = {k: v for k, v in os.environ.items() if k != "LIBTPU_INIT_ARGS"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**env, "TPU_TYPE": pod},
    )
    return done.stdout


def compile_with(arguments: str, topology: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "LIBTPU_INIT_ARGS": arguments, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(
        [sys.executable, "-c", COMPILE.format(topology=topology)],
        capture_output=True,
        text=True,
        env=env,
        cwd=ROOT,
    )


@pytest.mark.parametrize(("pod", "topology"), [("v5e-256", "v5e:2x2"), ("v6e-256", "v6e:2x2")])
def test_libtpu_takes_every_flag(pod: str, topology: str) -> None:
    arguments = flags(pod)
    done = compile_with(arguments, topology)
    assert done.returncode == 0 and "compiled" in done.stdout, done.stderr[-500:]


def test_an_unknown_flag_would_not_pass() -> None:
    assert compile_with("--xla_tpu_no_such_flag=true", "v5e:2x2").returncode != 0


def test_every_flag_and_variable_has_its_reason() -> None:
    lines = (ROOT / "tpu" / "env.sh").read_text(encoding="utf-8").splitlines()
    block = False
    for before, line in itertools.pairwise(lines):
        if line.startswith(("export ", "  --xla")) and "LIBTPU_INIT_ARGS" not in line:
            reasoned = before.lstrip().startswith("#")
            assert reasoned or (block and before.lstrip().startswith("--xla")), line
            block = True
