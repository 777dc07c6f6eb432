"""FLOPs of a program counted from its jaxpr, before any compiler: matrix products and convolutions.

What a step needs (`remat` "none") is the numerator of a utilisation; what it does with its remat setting is
checked against the compiled program's count.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection
from typing import Any

import jax

from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.plan.hlo_flops import valid_taps
from mvader_jax.train.config import Stage, TrainConfig


def jaxpr_flops(jaxpr: Any) -> float:
    """FLOPs of one run of a (closed) jaxpr; scans times their length, of a conditional the dearest branch.

    Raises ValueError for a while loop that computes products: its trip count is not known.
    """
    total = 0.0
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left = eqn.invars[0].aval.shape
            total += 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[d] for d in contracted)
        elif name == "conv_general_dilated":
            total += _convolution(eqn)
        elif name == "scan":
            total += params["length"] * jaxpr_flops(params["jaxpr"])
        elif name == "cond":
            total += max(jaxpr_flops(branch) for branch in params["branches"])
        elif name == "while":
            if jaxpr_flops(params["body_jaxpr"]) or jaxpr_flops(params["cond_jaxpr"]):
                raise ValueError("a while loop computes products; how often it runs cannot be counted")
        else:
            total += sum(jaxpr_flops(inner) for inner in _inner(params))
    return total


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
        return jaxpr_flops(jax.jit(program.function).trace(*program.arguments).jaxpr)


def _inner(params: dict[str, Any]) -> list[Any]:
    found: list[Any] = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(item, "eqns") or hasattr(item, "jaxpr"):
                found.append(item)
    return found


def _convolution(eqn: Any) -> float:
    params = eqn.params
    left, right, out = (v.aval.shape for v in (*eqn.invars[:2], eqn.outvars[0]))
    dims = params["dimension_numbers"]
    taps = 1
    for i, (l_dim, r_dim, o_dim) in enumerate(
        zip(dims.lhs_spec[2:], dims.rhs_spec[2:], dims.out_spec[2:], strict=True)
    ):
        taps *= valid_taps(
            left[l_dim],
            right[r_dim],
            out[o_dim],
            params["window_strides"][i],
            params["padding"][i][0],
            params["lhs_dilation"][i],
            params["rhs_dilation"][i],
        )
    features = left[dims.lhs_spec[1]] / params["feature_group_count"]
    rows = left[dims.lhs_spec[0]] / params["batch_group_count"]
    return float(2.0 * rows * features * right[dims.rhs_spec[0]] * taps)
