"""FLOPs, bytes and collectives of a compiled program per chip, loops multiplied out.

XLA's own `cost_analysis` counts a loop's body once. Here every computation is counted where it is called,
times the trip count of the loops round it. What is counted: FLOPs of matrix products and convolutions,
those of attention kernels by their shapes; bytes of operands and results of every instruction that is not
inside a fusion, slices at their own size, arrays in the chip's fast memory left out.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable

from mvader_jax.plan.hlo.flops import convolution_flops, dot_flops, kernel_flops
from mvader_jax.plan.hlo.groups import Groups, parse_groups, parse_pairs
from mvader_jax.plan.hlo.parse import Array, Computation, Instruction, array_of, arrays_of, parse, trip_count

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_CONVOLUTION = "conv_general_dilated"
#: What XLA writes where an estimate of cycles overflowed.
SATURATED = 2**63 - 1
COLLECTIVES = (
    "all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all",
    "collective-permute", "collective-broadcast",
)  # fmt: skip
#: Instructions that move nothing: names, views, and the second halves of asynchronous pairs.
_FREE = frozenset({
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "opt-barrier", "copy-done", "all-gather-done", "all-reduce-done", "async-done",
    "collective-permute-done", "send-done", "recv-done", "async-update", "while", "call", "conditional", "iota",
})  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Collective:
    """kind: as XLA names it; payload: bytes of its larger side per chip; groups: who exchanges with whom."""

    kind: str
    payload: int
    groups: Groups | None
    times: int = 1

    @property
    def wire_bytes(self) -> float:
        """Bytes a chip sends for all its times: a ring's, the least that any algorithm needs."""
        n = self.groups.size if self.groups else 1
        if n < 2:
            return 0.0
        share = {"all-reduce": 2.0 * (n - 1) / n, "collective-permute": 1.0}.get(self.kind, (n - 1) / n)
        return self.times * self.payload * share


@dataclasses.dataclass
class Cost:
    """Of one run of the program on one chip.

    flops: matrix products, convolutions and kernels; kernel_flops, convolution_flops: the parts of them of attention
    kernels, and of convolutions and their gradients. bytes: of HBM. launches: instructions that run, numbers alone left out.
    cycles: sum of XLA's estimates, loops multiplied out; saturated: how many of them overflowed.
    unknown_loops: loops whose trip count could not be read, counted once. once_flops: as if every loop ran
    once, to compare with `cost_analysis`.
    """

    flops: float = 0.0
    kernel_flops: float = 0.0
    convolution_flops: float = 0.0
    once_flops: float = 0.0
    bytes: float = 0.0
    launches: int = 0
    cycles: float = 0.0
    saturated: int = 0
    unknown_loops: int = 0
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    loops: dict[str, int] = dataclasses.field(default_factory=dict)


def cost(text: str) -> Cost:
    """The cost per chip of a compiled program's text (`compiled.as_text()`)."""
    computations, entry = parse(text)
    total = Cost()
    _walk(computations, computations[entry], 1, total)
    return total


def _walk(
    computations: dict[str, Computation], here: Computation, times: int, total: Cost, once: int = 1
) -> None:
    channels: set[str] = set()
    for i in here.instructions:
        _cycles(i, times, total)
        if i.opcode == "while":
            trips = trip_count(computations, here, i)
            if trips is None:
                total.unknown_loops += 1
            total.loops[i.name] = trips or 1
            for key in ("body", "condition"):
                inner = computations.get(i.called(key) or "")
                if inner is not None:
                    _walk(computations, inner, times * (trips or 1), total, once)
        elif i.opcode in ("call", "async-start"):
            inner = computations.get(i.called("to_apply") or i.called("calls") or "")
            if inner is not None:
                _walk(computations, inner, times, total, once)
        elif i.opcode == "conditional":
            _branches(computations, i, times, total)
        elif i.opcode == "fusion":
            inner = computations.get(i.called("calls") or "")
            if inner is not None:
                _inside(computations, inner, times, total, i, channels)
                total.bytes += times * _fusion_bytes(here, i, inner)
                total.launches += times * _is_array(i)
        else:
            _count(computations, here, i, times, total, i, channels)
            if i.opcode not in _FREE:
                total.bytes += times * _plain_bytes(here, i)
                total.launches += times * _is_array(i)


def _branches(computations: dict[str, Computation], i: Instruction, times: int, total: Cost) -> None:
    """Of a conditional the dearest branch counts."""
    names = re.findall(r"(?:true_computation|false_computation)=%?([\w.\-]+)", i.attributes)
    listed = re.search(r"branch_computations=\{([^}]*)\}", i.attributes)
    names += re.findall(r"%([\w.\-]+)", listed[1]) if listed else []
    found = []
    for name in names:
        if name in computations:
            part = Cost()
            _walk(computations, computations[name], times, part)
            found.append(part)
    if found:
        part = max(found, key=lambda c: (c.flops, c.bytes))
        for field in dataclasses.fields(Cost):
            if field.name not in ("collectives", "loops"):
                setattr(total, field.name, getattr(total, field.name) + getattr(part, field.name))
        total.collectives += part.collectives
        total.loops.update(part.loops)


def _inside(
    computations: dict[str, Computation],
    fused: Computation,
    times: int,
    total: Cost,
    outer: Instruction,
    channels: set[str],
) -> None:
    for i in fused.instructions:
        if i.opcode in ("fusion", "call"):
            inner = computations.get(i.called("calls") or i.called("to_apply") or "")
            if inner is not None:
                _inside(computations, inner, times, total, outer, channels)
        else:
            _count(computations, fused, i, times, total, outer, channels)


def _count(
    computations: dict[str, Computation],
    here: Computation,
    i: Instruction,
    times: int,
    total: Cost,
    outer: Instruction,
    channels: set[str],
) -> None:
    """FLOPs and collectives of one instruction. outer: the fusion round it, or itself."""
    flops = 0.0
    if i.opcode == "dot":
        flops = dot_flops(here, i)
    elif i.opcode == "convolution":
        flops = convolution_flops(here, i)
        # On TPUs products are convolutions too; of whose mathematics it is, its name in the jaxpr tells.
        if _CONVOLUTION in i.attributes:
            total.convolution_flops += times * flops
    elif i.opcode == "custom-call" and "tpu_custom_call" in i.attributes:
        flops = kernel_flops(f"{i.name} {i.attributes}", [array_of(here, o) for o in i.operands])
        total.kernel_flops += times * flops
    total.flops += times * flops
    total.once_flops += flops
    kind = i.opcode.removesuffix("-start")
    if kind in COLLECTIVES:
        channel = re.search(r"channel_id=(\d+)", i.attributes)
        if channel and channel[1] in channels:
            return  # an asynchronous fusion repeats its collective in each of its steps
        channels.update(channel.groups() if channel else ())
        groups = parse_pairs(i.attributes) if kind == "collective-permute" else parse_groups(i.attributes)
        if groups is not None and groups.size < 2:
            return  # every chip with itself
        sent = sum(array.bytes for o in i.operands for array in arrays_of(here, o))
        got = i.bytes - (sent if i.opcode.endswith("-start") and kind != "all-reduce" else 0)
        name = f"{outer.name} {outer.called('calls') or ''}"
        if kind == "all-reduce" and "scatter" in name and outer is not i:
            kind = "reduce-scatter"  # how a TPU's text writes one: an all-reduce fused with its slice
        payload = max(got, sent) if kind in ("all-gather", "reduce-scatter") else sent
        total.collectives.append(Collective(kind, payload, groups, times))


def _plain_bytes(here: Computation, i: Instruction) -> float:
    if i.opcode in ("dynamic-slice", "slice", "gather"):
        return 2.0 * _hbm(i.arrays)
    if i.opcode == "dynamic-update-slice":
        return 2.0 * _hbm(arrays_of(here, i.operands[1]))
    results = i.arrays[1:2] if i.opcode in ("copy-start", "all-gather-start") else i.arrays
    return _hbm(results) + sum(_hbm(arrays_of(here, o)) for o in i.operands)


def _fusion_bytes(here: Computation, i: Instruction, inner: Computation) -> float:
    read = 0.0
    for operand, parameter in zip(i.operands, inner.parameters, strict=False):
        whole = _hbm(arrays_of(here, operand))
        if whole:
            read += min(whole, _slices_of(inner, parameter))
    roots = [inner.root]
    if inner.root.opcode == "tuple":
        roots = [inner.by_name[name] for name in inner.root.operands]
    written = 0.0
    for array, root in zip(i.arrays, roots, strict=False):
        if array.fast:
            continue
        while root.opcode in ("bitcast", "copy", "convert") and root.operands[0] in inner.by_name:
            root = inner.by_name[root.operands[0]]
        if root.opcode == "dynamic-update-slice":
            written += array_of(inner, root.operands[1]).bytes
        else:
            written += array.bytes
    return read + written


def _slices_of(inner: Computation, parameter: Instruction) -> float:
    """Bytes a fusion reads of a parameter: slices where only slices are taken; nothing where it is only
    written into."""
    total = 0.0
    for user in inner.users.get(parameter.name, []):
        if user.opcode in ("dynamic-slice", "slice", "gather") and user.operands[0] == parameter.name:
            total += user.bytes
        elif user.opcode == "dynamic-update-slice" and user.operands[0] == parameter.name:
            continue
        elif user.opcode == "bitcast":
            total += min(_slices_of(inner, user), user.bytes)
        else:
            return float(parameter.bytes)
    return total


def _is_array(i: Instruction) -> bool:
    """Whether it makes more than a number, such as a loop's counter."""
    return any(array.shape for array in i.arrays)


def _hbm(arrays: Iterable[Array]) -> float:
    return float(sum(array.bytes for array in arrays if not array.fast))


def _cycles(i: Instruction, times: int, total: Cost) -> None:
    for found in _CYCLES.findall(i.attributes):
        if int(found) >= SATURATED:
            total.saturated += 1
        else:
            total.cycles += times * int(found)
