"""Which chips a collective joins, and which axes of the mesh those groups run along."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Mapping, Sequence


@dataclasses.dataclass(frozen=True)
class Groups:
    """members: positions in the mesh, flattened, of the chips of each group."""

    members: tuple[tuple[int, ...], ...]

    @property
    def size(self) -> int:
        return max((len(group) for group in self.members), default=1)

    def axes(self, mesh: Mapping[str, int]) -> tuple[str, ...]:
        """The mesh axes along which the members of a group differ; mesh: {axis: size}, slowest first."""
        names, sizes = list(mesh), list(mesh.values())
        differing: set[str] = set()
        for group in self.members:
            places = [_unravel(member, sizes) for member in group]
            for axis, values in zip(names, zip(*places, strict=True), strict=True):
                if len(set(values)) > 1:
                    differing.add(axis)
        return tuple(axis for axis in names if axis in differing)


def parse_groups(attributes: str) -> Groups | None:
    """The replica_groups of an instruction, in any of the three ways XLA writes them; None without any."""
    listed = re.search(r"replica_groups=\{(\{[\d,{} ]*\})\}", attributes)
    if listed:
        groups = re.findall(r"\{([\d, ]+)\}", listed[1])
        return Groups(tuple(tuple(int(n) for n in group.split(",")) for group in groups))
    short = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes)
    if short:
        order = _iota(_numbers(short[2]), _numbers(short[3] or ""))
        *_, size = _numbers(short[1])
        return Groups(tuple(tuple(order[i : i + size]) for i in range(0, len(order), size)))
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))?\s*\{([^}]*)\}",
        attributes,
    )
    if named:
        return _named(named[1], named[2], named[3], named[4])
    return None


def parse_pairs(attributes: str) -> Groups | None:
    """The source_target_pairs of a permutation, each pair of two chips a group."""
    found = re.search(r"source_target_pairs=\{(\{[\d,{} ]*\})\}", attributes)
    if not found:
        return None
    pairs = [tuple(int(n) for n in p.split(",")) for p in re.findall(r"\{([\d, ]+)\}", found[1])]
    return Groups(tuple(pair for pair in pairs if len(set(pair)) > 1))


def _named(axes: str, base: str | None, turned: str | None, chosen: str) -> Groups | None:
    sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", axes)}
    total = math.prod(sizes.values())
    order = _iota(_numbers(base), _numbers(turned or "")) if base else list(range(total))
    if len(order) != total or re.search(r"'[^']+':", chosen):
        return None  # a part of an axis: nothing here writes such groups
    along = re.findall(r"'([^']+)'", chosen)
    groups: dict[tuple[int, ...], list[int]] = {}
    for number, device in enumerate(order):
        place = dict(zip(sizes, _unravel(number, list(sizes.values())), strict=True))
        key = tuple(place[axis] for axis in sizes if axis not in along)
        groups.setdefault(key, []).append(device)
    return Groups(tuple(tuple(group) for group in groups.values()))


def _numbers(text: str) -> list[int]:
    return [int(n) for n in text.split(",") if n]


def _iota(dims: Sequence[int], turned: Sequence[int]) -> list[int]:
    """0..n-1 laid out as `dims`, its axes permuted by `turned`, flattened."""
    if not turned:
        return list(range(math.prod(dims)))
    strides = [math.prod(dims[i + 1 :]) for i in range(len(dims))]
    ranges = [range(dims[axis]) for axis in turned]
    return [
        sum(index * strides[axis] for index, axis in zip(place, turned, strict=True))
        for place in itertools.product(*ranges)
    ]


def _unravel(number: int, sizes: Sequence[int]) -> tuple[int, ...]:
    place = []
    for size in reversed(sizes):
        number, rest = divmod(number, size)
        place.append(rest)
    return tuple(reversed(place))
