"""Model FLOPs of a traced program, for the utilisation that a run reports.

Counted from the program itself: every matrix product and convolution, loops multiplied out. Additions and
the like are left out, as is what rematerialisation computes a second time (trace the step without it):
this is the numerator of "model FLOPs utilisation" (Chowdhery et al. 2022, PaLM, appendix B).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

from mvader_jax.parallel.pods import chips, generation_of

#: Peak of one GPU in dense bfloat16 FLOP/s, by what its `device_kind` begins with: NVIDIA's data sheets, without
#: sparsity. TPUs stand in `parallel/chips.toml`.
GPU_PEAKS = {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
}


def peak_flops(device_kind: str) -> float | None:
    """bfloat16 FLOP/s of a device at its best; None for a kind that is not listed (a CPU)."""
    generation = generation_of(device_kind)
    if generation is not None:
        chip = chips()[generation]
        return chip.peak / chip.cores
    return next((peak for name, peak in GPU_PEAKS.items() if device_kind.startswith(name)), None)


def count_flops(jaxpr: Any, *, padding: bool = True) -> float:
    """FLOPs of a jaxpr over all devices: 2 for each multiply-add of a matrix product or convolution.

    jaxpr: of `jax.make_jaxpr` or a traced function. Scans count their length, of a conditional the dearest
    branch. padding: whether a convolution's products with the zeros around its input count, as they do in
    published counts and not in what a compiled program does. Raises ValueError for a while loop that computes
    products: how often it runs is not known.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    total = 0.0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == "dot_general":
            total += _dot(equation)
        elif name == "conv_general_dilated":
            total += _convolution(equation, padding)
        elif name == "cond":
            total += max(count_flops(branch, padding=padding) for branch in equation.params["branches"])
        elif name == "pallas_call":
            estimate = equation.params.get("cost_estimate")
            total += float(estimate.flops) if estimate is not None else 0.0
        else:
            inner = sum(count_flops(each, padding=padding) for each in _inner(equation))
            if inner and name == "while":
                raise ValueError("a while loop computes products; how often it runs cannot be counted")
            total += _times(equation) * inner
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


def _convolution(equation: Any, padding: bool) -> float:
    params = equation.params
    left, right, out = (v.aval.shape for v in (*equation.invars[:2], equation.outvars[0]))
    dims = params["dimension_numbers"]
    taps = 1.0
    for i, (l_dim, r_dim, o_dim) in enumerate(
        zip(dims.lhs_spec[2:], dims.rhs_spec[2:], dims.out_spec[2:], strict=True)
    ):
        dilated, stride = params["lhs_dilation"][i], params["window_strides"][i]
        if padding:
            # Zeros that a transposed convolution of stride 2 puts between its inputs are not computed with.
            taps *= out[o_dim] * right[r_dim] / dilated
        else:
            before, spread = params["padding"][i][0], params["rhs_dilation"][i]
            taps *= valid_taps(left[l_dim], right[r_dim], out[o_dim], stride, before, dilated, spread)
    features = left[dims.lhs_spec[1]] / params["feature_group_count"]
    rows = left[dims.lhs_spec[0]] / params["batch_group_count"]
    return float(2.0 * rows * features * right[dims.rhs_spec[0]] * taps)


@functools.lru_cache(maxsize=4096)
def valid_taps(size: int, kernel: int, out: int, stride: int, pad: int, dilated: int, spread: int) -> int:
    """Pairs (output position, kernel position) of one dimension that meet an input element.

    size: of the input; dilated: its dilation (lhs); spread: the kernel's (rhs); pad: before the input.
    """
    end = (size - 1) * dilated + 1
    count = 0
    for k in range(kernel):
        offset = k * spread - pad
        if dilated == 1:
            first = max(0, -(offset // stride))
            last = min(out - 1, (end - 1 - offset) // stride)
            count += max(0, last - first + 1)
        else:
            positions = (o * stride + offset for o in range(out))
            count += sum(1 for p in positions if 0 <= p < end and p % dilated == 0)
    return count
