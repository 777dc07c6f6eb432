"""Model FLOPs of a traced program, for the utilisation that a run reports.

Counted from the program itself: every matrix product and convolution, loops multiplied out. Additions and
the like are left out, as is what rematerialisation computes a second time (trace the step without it):
this is the numerator of "model FLOPs utilisation" (Chowdhery et al. 2022, PaLM, appendix B).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

#: Peak of one device in dense bfloat16 FLOP/s, by what its `device_kind` begins with; longest match wins.
#: Google Cloud's TPU pages and NVIDIA's data sheets, without sparsity. An installed package has no
#: tpu/chips.toml, so the TPUs' stand here too; a test holds the two together.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "TPU7x": 2307e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """bfloat16 FLOP/s of a device at its best; None for a kind that is not listed (a CPU)."""
    known = [name for name in PEAK_FLOPS if device_kind.startswith(name)]
    return PEAK_FLOPS[max(known, key=len)] if known else None


def count_flops(jaxpr: Any) -> float:
    """FLOPs of a jaxpr over all devices: 2 for each multiply-add of a matrix product or convolution.

    jaxpr: of `jax.make_jaxpr` or a traced function. A loop whose length is not known counts once.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation)
        elif name == "cond":
            total += max(count_flops(branch) for branch in equation.params["branches"])
        elif name == "pallas_call":
            estimate = equation.params.get("cost_estimate")
            total += float(estimate.flops) if estimate is not None else 0.0
        else:
            total += _times(equation) * sum(count_flops(inner) for inner in _inner(equation))
    return total


def _times(equation: Any) -> float:
    if equation.primitive.name == "scan":
        return float(equation.params["length"])
    if equation.primitive.name == "shard_map":
        # The body is what one device does.
        return float(equation.params["mesh"].size)
    return 1.0


def _inner(equation: Any) -> Iterator[Any]:
    """The jaxprs that an equation runs; of a rule for derivatives, only the function itself."""
    if "call_jaxpr" in equation.params:
        yield equation.params["call_jaxpr"]
        return
    for value in equation.params.values():
        for part in value if isinstance(value, (tuple, list)) else (value,):
            if hasattr(getattr(part, "jaxpr", part), "eqns"):
                yield part


def _dot(equation: Any) -> float:
    (contracting, _), _ = equation.params["dimension_numbers"]
    shape = equation.invars[0].aval.shape
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in contracting)


def _convolution(equation: Any) -> float:
    numbers = equation.params["dimension_numbers"]
    kernel = equation.invars[1].aval.shape
    out_features, *rest = (kernel[i] for i in numbers.rhs_spec)
    del out_features
    # Zeros that a transposed convolution of stride 2 puts between its inputs are not computed with.
    zeros = math.prod(equation.params["lhs_dilation"])
    return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(rest) / zeros
