"""FLOPs of a program counted from its jaxpr, before any compiler: matrix products and convolutions.

What a step needs (`remat` "none") is the numerator of a utilisation; what it does with its remat setting is
checked against the compiled program's count.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Collection

import jax

from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.settings import to_dict
from mvader_jax.storage import programs
from mvader_jax.storage.atomic import make_directory, write_file
from mvader_jax.train.config import Stage, TrainConfig
from mvader_jax.train.flops import count_flops


def step_flops(
    config: TrainConfig, stage: Stage, precomputed: Collection[str] = (), *, remat: bool = False
) -> float:
    """FLOPs of one train step over its whole batch, the row shares exact.

    remat: with what the stage's policy computes again; else what the mathematics needs.
    """
    from mvader_jax.plan.program import train_program

    if not remat:
        stage = dataclasses.replace(stage, remat="none")
    mesh = make_mesh(MeshConfig(), _host())
    program = train_program(config, dataclasses.replace(stage, accumulate=1), mesh, precomputed)
    with jax.set_mesh(mesh):
        return count_flops(jax.jit(program.function).trace(*program.arguments).jaxpr, padding=False)


def kept_flops(
    config: TrainConfig,
    stage: Stage,
    precomputed: Collection[str],
    *,
    remat: bool = False,
    cache: bool = True,
) -> float:
    """`step_flops`, kept by the config beside compiled plans: tracing a large step takes seconds."""
    remat = remat and stage.remat != "none"
    stage = dataclasses.replace(stage, accumulate=1, row_groups=0, init=())
    recipe = [3, remat, to_dict(config.model), to_dict(stage), sorted(precomputed)]
    key = hashlib.sha256(json.dumps(recipe, default=str).encode()).hexdigest()[:32]
    path = programs.cache_directory() / "plans" / f"count-{key}.json"
    if cache and path.is_file():
        return float(json.loads(path.read_text(encoding="utf-8")))
    found = step_flops(config, stage, precomputed, remat=remat)
    if cache:
        make_directory(path.parent)
        write_file(path, json.dumps(found))
    return found


def _host() -> list[jax.Device]:
    """The host's own device, where attention takes the plain path whose products can be seen."""
    with contextlib.suppress(RuntimeError):  # no CPU among JAX_PLATFORMS
        return jax.local_devices(backend="cpu")[:1]
    return jax.local_devices()[:1]
