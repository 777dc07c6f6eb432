"""Reads a compiled program's text: FLOPs, bytes and collectives a chip, loops multiplied out.

XLA's own `cost_analysis` counts a loop's body once. Here every computation is counted where it is called,
times the trip count of the loops round it. What is counted: FLOPs of matrix products and convolutions as
XLA's HloCostAnalysis does (positions that fall on padding or between dilated elements are no work), those
of attention kernels by their shapes; bytes of operands and results of every instruction that is not inside
a fusion, slices at their own size, arrays in the chip's fast memory left out. Nothing here imports JAX.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterable, Iterator, Sequence

from mvader_jax.plan.groups import Groups, parse_groups, parse_pairs

_BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16,
    "f16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+\d+(?:e\d+m\d+\w*)?|pred)\[([\d,<=]*)\](\{[^{}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_START = re.compile(r"\s+(ROOT )?%?[\w.\-]+ = ")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
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
class Array:
    """One array of an instruction's result. fast: it lies in the chip's fast memory, not in HBM."""

    dtype: str
    shape: tuple[int, ...]
    fast: bool = False

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * _bits(self.dtype) // 8


@dataclasses.dataclass(frozen=True)
class Instruction:
    name: str
    opcode: str
    arrays: tuple[Array, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str
    root: bool

    @property
    def bytes(self) -> int:
        return sum(array.bytes for array in self.arrays)

    def called(self, key: str) -> str | None:
        match = re.search(rf"\b{key}=%?([\w.\-]+)", self.attributes)
        return match[1] if match else None


@dataclasses.dataclass(frozen=True)
class Computation:
    name: str
    instructions: tuple[Instruction, ...]

    @functools.cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {i.name: i for i in self.instructions}

    @property
    def root(self) -> Instruction:
        return next((i for i in self.instructions if i.root), self.instructions[-1])

    @functools.cached_property
    def parameters(self) -> list[Instruction]:
        found = [i for i in self.instructions if i.opcode == "parameter"]
        return sorted(found, key=lambda i: int(i.literal or 0))

    @functools.cached_property
    def users(self) -> dict[str, list[Instruction]]:
        result: dict[str, list[Instruction]] = {}
        for i in self.instructions:
            for operand in i.operands:
                result.setdefault(operand, []).append(i)
        return result


@dataclasses.dataclass(frozen=True)
class Collective:
    """kind: as XLA names it; payload: bytes of its larger side a chip; groups: who exchanges with whom."""

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

    flops: matrix products, convolutions and kernels; kernel_flops: the kernels' part of them. bytes: of
    HBM. cycles: sum of XLA's estimates, loops multiplied out; saturated: how many of them overflowed.
    unknown_loops: loops whose trip count could not be read, counted once. once_flops: as if every loop ran
    once, to compare with `cost_analysis`.
    """

    flops: float = 0.0
    kernel_flops: float = 0.0
    once_flops: float = 0.0
    bytes: float = 0.0
    cycles: float = 0.0
    saturated: int = 0
    unknown_loops: int = 0
    collectives: list[Collective] = dataclasses.field(default_factory=list)
    loops: dict[str, int] = dataclasses.field(default_factory=dict)


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """({name: computation}, the entry's name). Raises ValueError for text that is no HLO module."""
    computations: dict[str, Computation] = {}
    entry, name = "", ""
    body: list[str] = []
    for line in text.splitlines():
        if not name:
            header = _HEADER.match(line)
            if header:
                name, body = header[2], []
                entry = name if header[1] else entry
        elif line.rstrip() == "}":
            found = (_instruction(whole.strip()) for whole in body)
            computations[name] = Computation(name, tuple(i for i in found if i is not None))
            name = ""
        elif _START.match(line) or not body:
            body.append(line)
        else:
            body[-1] += line  # a kernel's metadata goes on over several lines
    if entry not in computations:
        raise ValueError("this is no text of a compiled program: it has no ENTRY computation")
    return computations, entry


def cost(text: str) -> Cost:
    """The cost of a compiled program's text (`compiled.as_text()`), a chip."""
    computations, entry = parse(text)
    total = Cost()
    _walk(computations, computations[entry], 1, total)
    return total


def _instruction(line: str) -> Instruction | None:
    name, equals, rest = line.partition(" = ")
    if not equals:
        return None
    root = name.startswith("ROOT ")
    name = name.removeprefix("ROOT ").lstrip("%")
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.find(" ")
    kind, rest = rest[:end], rest[end:].lstrip()
    opcode, paren, _ = rest.partition("(")
    if not paren:
        return None
    close = _closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : close]
    arrays = tuple(_arrays(kind))
    return Instruction(name, opcode, arrays, tuple(_NAME.findall(inside)), inside, rest[close + 1 :], root)


def _arrays(kind: str) -> Iterator[Array]:
    for dtype, dims, layout in _ARRAY.findall(kind):
        shape = tuple(int(d.lstrip("<=")) for d in dims.split(",") if d)
        yield Array(dtype, shape, "S(1)" in layout)


def _closing(text: str, start: int) -> int:
    depth = 0
    for index in range(start, len(text)):
        if text[index] == "(":
            depth += 1
        elif text[index] == ")":
            depth -= 1
            if depth == 0:
                return index
    return len(text)


def _bits(dtype: str) -> int:
    if dtype in _BITS:
        return _BITS[dtype]
    return 4 if dtype.startswith("f4") else 8 if dtype.startswith("f8") else 0


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
        else:
            _count(computations, here, i, times, total, i, channels)
            if i.opcode not in _FREE:
                total.bytes += times * _plain_bytes(here, i)


def _branches(computations: dict[str, Computation], i: Instruction, times: int, total: Cost) -> None:
    """Of a conditional the dearest branch counts."""
    names = re.findall(r"(?:true_computation|false_computation)=%?([\w.\-]+)", i.attributes)
    listed = re.search(r"branch_computations=\{([^}]*)\}", i.attributes)
    names += _NAME.findall(listed[1]) if listed else []
    found = []
    for name in names:
        if name in computations:
            part = Cost()
            _walk(computations, computations[name], times, part)
            found.append(part)
    if found:
        part = max(found, key=lambda c: (c.flops, c.bytes))
        for field in ("flops", "kernel_flops", "once_flops", "bytes", "cycles", "saturated", "unknown_loops"):
            setattr(total, field, getattr(total, field) + getattr(part, field))
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
        flops = _dot_flops(here, i)
    elif i.opcode == "convolution":
        flops = _convolution_flops(here, i)
    elif i.opcode == "custom-call" and "tpu_custom_call" in i.attributes:
        flops = kernel_flops(f"{i.name} {i.attributes}", [_array(here, o) for o in i.operands])
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
        sent = sum(array.bytes for o in i.operands for array in _arrays_of(here, o))
        got = i.bytes - (sent if i.opcode.endswith("-start") and kind != "all-reduce" else 0)
        name = f"{outer.name} {outer.called('calls') or ''}"
        if kind == "all-reduce" and "scatter" in name and outer is not i:
            kind = "reduce-scatter"  # how a TPU's text writes one: an all-reduce fused with its slice
        payload = max(got, sent) if kind in ("all-gather", "reduce-scatter") else sent
        total.collectives.append(Collective(kind, payload, groups, times))


def trip_count(computations: dict[str, Computation], here: Computation, loop: Instruction) -> int | None:
    """How often a while loop runs: as XLA noted, or read from a counter compared with a constant."""
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes)
    if known:
        return int(known[1])
    condition = computations.get(loop.called("condition") or "")
    body = computations.get(loop.called("body") or "")
    if condition is None or body is None:
        return None
    compare = condition.root
    if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
        return None
    counter, limit = (_resolve(condition, name) for name in compare.operands)
    index = re.search(r"index=(\d+)", counter.attributes) if counter.opcode == "get-tuple-element" else None
    end = _integer(limit)
    if index is None or end is None:
        return None
    place = int(index[1])
    start = _integer(_tuple_operand(here, loop.operands[0], place))
    step = _step(body, place)
    if start is None or step is None or step < 1:
        return None
    return max(0, -(-(end - start) // step))


def _step(body: Computation, place: int) -> int | None:
    """By how much a loop's body moves its counter."""
    added = _tuple_operand(body, body.root.name, place)
    while added is not None and added.opcode in ("copy", "bitcast"):
        added = body.by_name.get(added.operands[0])
    if added is None or added.opcode not in ("add", "fusion"):
        return None
    if added.opcode == "fusion":
        return 1
    numbers = [_integer(_resolve(body, name)) for name in added.operands]
    # A constant may have been sunk into the loop as one of its parameters; counters step by one then.
    return next((n for n in numbers if n is not None), 1)


def _resolve(here: Computation, name: str) -> Instruction:
    i = here.by_name[name]
    while i.opcode in ("copy", "bitcast") and i.operands[0] in here.by_name:
        i = here.by_name[i.operands[0]]
    return i


def _tuple_operand(here: Computation, name: str, place: int) -> Instruction | None:
    made = here.by_name.get(name)
    if made is None or made.opcode != "tuple" or place >= len(made.operands):
        return None
    return _resolve(here, made.operands[place])


def _integer(i: Instruction | None) -> int | None:
    if i is None or i.opcode != "constant":
        return None
    return int(i.literal) if re.fullmatch(r"-?\d+", i.literal) else None


def _arrays_of(here: Computation, name: str) -> tuple[Array, ...]:
    return here.by_name[name].arrays if name in here.by_name else ()


def _array(here: Computation, name: str) -> Array:
    return (*_arrays_of(here, name), Array("f32", ()))[0]


def _dot_flops(here: Computation, i: Instruction) -> float:
    left = _array(here, i.operands[0])
    match = re.search(r"lhs_contracting_dims=\{([\d,]*)\}", i.attributes)
    contracted = [int(d) for d in match[1].split(",") if d] if match else []
    return 2.0 * math.prod(i.arrays[0].shape) * math.prod(left.shape[d] for d in contracted)


def _convolution_flops(here: Computation, i: Instruction) -> float:
    left, right = _array(here, i.operands[0]).shape, _array(here, i.operands[1]).shape
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


def _plain_bytes(here: Computation, i: Instruction) -> float:
    if i.opcode in ("dynamic-slice", "slice", "gather"):
        return 2.0 * _hbm(i.arrays)
    if i.opcode == "dynamic-update-slice":
        return 2.0 * _hbm(_arrays_of(here, i.operands[1]))
    results = i.arrays[1:2] if i.opcode in ("copy-start", "all-gather-start") else i.arrays
    return _hbm(results) + sum(_hbm(_arrays_of(here, o)) for o in i.operands)


def _fusion_bytes(here: Computation, i: Instruction, inner: Computation) -> float:
    read = 0.0
    for operand, parameter in zip(i.operands, inner.parameters, strict=False):
        whole = _hbm(_arrays_of(here, operand))
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
            written += _array(inner, root.operands[1]).bytes
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


def _hbm(arrays: Iterable[Array]) -> float:
    return float(sum(array.bytes for array in arrays if not array.fast))


def _cycles(i: Instruction, times: int, total: Cost) -> None:
    for found in _CYCLES.findall(i.attributes):
        if int(found) >= SATURATED:
            total.saturated += 1
        else:
            total.cycles += times * int(found)
