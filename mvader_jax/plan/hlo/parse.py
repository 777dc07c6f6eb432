"""Reads a compiled program's text: its computations, their instructions, and how often loops run.

Nothing here imports JAX.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Iterator

_BITS = {
    "pred": 8, "s2": 2, "u2": 2, "s4": 4, "u4": 4, "s8": 8, "u8": 8, "s16": 16, "u16": 16, "bf16": 16,
    "f16": 16, "s32": 32, "u32": 32, "f32": 32, "s64": 64, "u64": 64, "f64": 64, "c64": 64, "c128": 128,
}  # fmt: skip
_ARRAY = re.compile(r"\b([a-z]+\d+(?:e\d+m\d+\w*)?|pred)\[([\d,<=]*)\](\{[^{}]*\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .*\{$")
_START = re.compile(r"\s+(ROOT )?%?[\w.\-]+ = ")


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


def arrays_of(here: Computation, name: str) -> tuple[Array, ...]:
    return here.by_name[name].arrays if name in here.by_name else ()


def array_of(here: Computation, name: str) -> Array:
    return (*arrays_of(here, name), Array("f32", ()))[0]
