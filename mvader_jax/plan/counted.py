"""FLOPs of a program counted from its jaxpr, before any compiler: matrix products and convolutions.

What a step needs (`remat` "none") is the numerator of a utilisation; what it does with its remat setting is
checked against the compiled program's count.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import jax

from mvader_jax.parallel.mesh import MeshConfig, make_mesh
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
    # On the host's own device, where attention takes the plain path whose products can be seen.
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    program = train_program(config, dataclasses.replace(stage, accumulate=1), mesh, precomputed)
    with jax.set_mesh(mesh):
        return count_flops(jax.jit(program.function).trace(*program.arguments).jaxpr, padding=False)
