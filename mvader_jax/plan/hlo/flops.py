"""FLOPs of an instruction of a compiled program, as XLA's HloCostAnalysis counts them.

Positions that fall on padding or between dilated elements are no work.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from mvader_jax.plan.hlo.parse import Array, Computation, Instruction, array_of
from mvader_jax.train.flops import valid_taps


def dot_flops(here: Computation, i: Instruction) -> float:
    left = array_of(here, i.operands[0])
    match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.attributes)
    contracted = [int(d) for d in match[1].split(",") if d] if match else []
    return 2.0 * math.prod(i.arrays[0].shape) * math.prod(left.shape[d] for d in contracted)


def convolution_flops(here: Computation, i: Instruction) -> float:
    left, right = array_of(here, i.operands[0]).shape, array_of(here, i.operands[1]).shape
    labels = re.search(r"dim_labels=([\w?]+)_([\w?]+)->([\w?]+)", i.attributes)
    assert labels is not None, i.name
    window = _window(i.attributes)
    taps = 1
    for dim in sorted(set(labels[1]) - {"b", "f"}):
        n = int(dim)
        taps *= valid_taps(
            left[labels[1].index(dim)],
            right[labels[2].index(dim)],
            i.arrays[0].shape[labels[3].index(dim)],
            *(window[key][n] if n < len(window[key]) else default for key, default in _WINDOW.items()),
        )
    groups = re.search(r"feature_group_count=(\d+)", i.attributes)
    batches = re.search(r"batch_group_count=(\d+)", i.attributes)
    features = left[labels[1].index("f")] / int(groups[1] if groups else 1)
    rows = left[labels[1].index("b")] / int(batches[1] if batches else 1)
    return 2.0 * rows * features * right[labels[2].index("o")] * taps


_WINDOW = {"stride": 1, "pad": 0, "lhs_dilate": 1, "rhs_dilate": 1}


def _window(attributes: str) -> dict[str, list[int]]:
    found = re.search(r"window=\{([^}]*)\}", attributes)
    result: dict[str, list[int]] = {key: [] for key in _WINDOW}
    for part in (found[1] if found else "").split():
        key, _, value = part.partition("=")
        if key in result:
            # Of a padding "low_high" the low side fixes where the window stands.
            result[key] = [int(v.split("_")[0]) for v in value.split("x")]
    return result


def kernel_flops(what: str, operands: Sequence[Array]) -> float:
    """FLOPs of a Pallas attention kernel by the shapes of q [.., Sq, K], k and v [.., Sk, K]; else 0.

    what: its name and attributes. Forward: two products; the gradient by queries: three, one of them done
    again; by keys: four.
    """
    wide = [a.shape for a in operands if len(a.shape) >= 3 and a.dtype in ("bf16", "f32")]
    name = re.search(r"(?:splash_mha|flash_attention)\w*", what)
    if name is None or len(wide) < 3:
        return 0.0
    (*rows, queries, width), (*_, keys, _), (*_, _, values) = wide[:3]
    pairs = 2.0 * math.prod(rows) * queries * keys
    if "dkv" in name[0]:
        return pairs * (2 * width + 2 * values)
    if "dq" in name[0]:
        return pairs * (2 * width + values)
    return pairs * (width + values)
