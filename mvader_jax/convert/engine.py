"""The strict, two-way map between a source's tensors and our components.

A `SourceMap` lists every tensor of a source with the leaf (or slice of a leaf) it becomes. It is total:
what is missing, unexpected, repeated or misshaped stops the conversion, the first of it named and all counted; what is
left out on purpose is listed in the map with the reason. The same links serve both directions.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from mvader_jax.convert.layouts import SAME, Layout
from mvader_jax.convert.tensors import DTYPES, Tensor, cast, finite, is_float, plain
from mvader_jax.errors import UserError

Shape = tuple[int, ...]
#: How many tensors that do not fit a message names.
_NAMED = 6
#: {component: tree of things with a shape}, as `components.abstract_components` returns it.
Abstract = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Link:
    """One tensor of the source, `name`, is one slice of ours: leaf `path` of `component`.

    layer: the slice's place on the first axis of a leaf stacked over layers; None for a whole leaf.
    part: which part of a fused tensor.
    """

    name: str
    component: str
    path: str
    layout: Layout = SAME
    layer: int | None = None
    part: int = 0


@dataclasses.dataclass(frozen=True)
class Skip:
    """Tensors that are left out on purpose: a pattern of whole names, and why."""

    pattern: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Alias:
    """Tensors that repeat others: `pattern` of a whole name, and the name it repeats (`re` replacement).

    They are checked to be equal to what they repeat.
    """

    pattern: str
    target: str


@dataclasses.dataclass(frozen=True)
class SourceMap:
    """links: both directions. spellings: (pattern, replacement) pairs that turn other spellings of a
    source's names into those of the links. optional: components that the source may lack as a whole."""

    source: str
    links: tuple[Link, ...]
    skips: tuple[Skip, ...] = ()
    aliases: tuple[Alias, ...] = ()
    spellings: tuple[tuple[str, str], ...] = ()
    optional: frozenset[str] = frozenset()

    @property
    def components(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(link.component for link in self.links))

    def only(self, components: Iterable[str]) -> SourceMap:
        """The same map for some of its components."""
        kept = set(components)
        return dataclasses.replace(self, links=tuple(link for link in self.links if link.component in kept))


@dataclasses.dataclass(frozen=True)
class Paired:
    """A leaf of ours and what it is made of: shape and dtype as it will be written.

    slices: each a tensor, its layout and part; one for a whole leaf, one a layer for a stacked one.
    """

    path: str
    shape: Shape
    dtype: np.dtype
    stacked: bool
    slices: tuple[tuple[Tensor, Layout, int], ...]


@dataclasses.dataclass(frozen=True)
class Matched:
    """What a source comes to: {component: its leaves, sorted by path}, and {reason: names left out}."""

    leaves: Mapping[str, tuple[Paired, ...]]
    skipped: Mapping[str, tuple[str, ...]]

    @property
    def nbytes(self) -> int:
        """Bytes that will be read."""
        return sum(t.nbytes for leaves in self.leaves.values() for leaf in leaves for t, _, _ in leaf.slices)


def shapes(tree: Any) -> dict[str, Shape]:
    """{path: shape} of a tree of arrays, in the order of the paths."""
    flat = flatten_dict(tree, sep="/")
    return {path: tuple(flat[path].shape) for path in sorted(flat)}


def links_of(
    component: str, tree: Any, rule: Callable[[str, Shape], tuple[str, Layout, int]]
) -> tuple[Link, ...]:
    """The links of every leaf of a component.

    rule: (path, shape) -> (name, layout, part); a name with {layer} stands for one tensor a layer.
    """
    links = []
    for path, shape in shapes(tree).items():
        name, layout, part = rule(path, shape)
        if "{layer}" in name:
            links += [
                Link(name.replace("{layer}", str(i)), component, path, layout, i, part)
                for i in range(shape[0])
            ]
        else:
            links.append(Link(name, component, path, layout, None, part))
    return tuple(links)


def manifest(source_map: SourceMap, abstract: Abstract) -> dict[str, Shape]:
    """The names and shapes of the source's tensors as the map says them, from our shapes alone.

    Raises ValueError where the map is no bijection onto our leaves: that is a fault of the map.
    """
    ours = {component: shapes(abstract[component]) for component in source_map.components}
    names: dict[str, Shape] = {}
    covered: dict[tuple[str, str], set[int | None]] = {}
    parts: dict[str, list[int]] = {}
    for link in source_map.links:
        shape = ours[link.component].get(link.path)
        if shape is None:
            raise ValueError(f"the map names {link.component} {link.path}, which does not exist")
        seen = covered.setdefault((link.component, link.path), set())
        if link.layer in seen:
            raise ValueError(f"the map fills {link.component} {link.path} twice at layer {link.layer}")
        seen.add(link.layer)
        parts.setdefault(link.name, []).append(link.part)
        external = link.layout.external_shape(shape if link.layer is None else shape[1:])
        if names.setdefault(link.name, external) != external:
            raise ValueError(f"the map gives {link.name} two shapes")
    for component, leaves in ours.items():
        for path, shape in leaves.items():
            if covered.get((component, path)) not in ({None}, set(range(shape[0]) if shape else ())):
                raise ValueError(f"the map does not fill {component} {path}")
    layouts = {link.name: link.layout for link in source_map.links}
    for name, used in parts.items():
        if sorted(used) != list(range(layouts[name].parts)):
            raise ValueError(f"the map uses parts {used} of {name}")
    return names


def match(
    source_map: SourceMap,
    tensors: Mapping[str, Tensor],
    abstract: Abstract,
    *,
    dtype: str = "keep",
) -> Matched:
    """Pairs a source's tensors with our leaves.

    dtype: of the floating leaves: "keep", "float32" or "bfloat16". Raises UserError for tensors that are
    missing, unexpected, repeated or misshaped: the first are named, all are counted.
    """
    found, skipped, problems = _sort(source_map, tensors)
    absent = {
        component
        for component in source_map.optional
        if not any(link.component == component and link.name in found for link in source_map.links)
    }
    present = source_map.only(set(source_map.components) - absent)
    expected = manifest(present, abstract)
    problems += [f"missing {name}" for name in expected if name not in found]
    problems += [f"unexpected {plain(tensor.name)}" for name, tensor in found.items() if name not in expected]
    problems += [
        f"misshaped {found[name].name}, {list(found[name].shape)} where {list(shape)} belongs"
        for name, shape in expected.items()
        if name in found and found[name].shape != shape
    ]
    leaves = {} if problems else _leaves(present, found, abstract, dtype, problems)
    if problems:
        more = f"; and {len(problems) - _NAMED} more" if len(problems) > _NAMED else ""
        raise UserError(f"the source does not fit {source_map.source}: {'; '.join(problems[:_NAMED])}{more}")
    return Matched(leaves, skipped)


def _sort(
    source_map: SourceMap, tensors: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, tuple[str, ...]], list[str]]:
    """(tensors by the names of the links, names left out by reason, problems)."""
    found: dict[str, Tensor] = {}
    skipped: dict[str, tuple[str, ...]] = {}
    problems: list[str] = []
    repeats: list[tuple[str, Tensor]] = []
    known = {link.name for link in source_map.links}
    for name, tensor in tensors.items():
        spelled = name
        for pattern, replacement in source_map.spellings:
            spelled = re.sub(pattern, replacement, spelled)
        skip = next((s for s in source_map.skips if re.fullmatch(s.pattern, spelled)), None)
        alias = next((a for a in source_map.aliases if re.fullmatch(a.pattern, spelled)), None)
        if skip is not None and spelled not in known:
            skipped[skip.reason] = (*skipped.get(skip.reason, ()), name)
        elif alias is not None:
            repeats.append((re.sub(alias.pattern, alias.target, spelled), tensor))
        elif spelled in found:
            problems.append(f"repeated {name} (also {found[spelled].name})")
        else:
            found[spelled] = tensor
    for target, tensor in repeats:
        # What an alias repeats may itself be left out (a buffer), and then so is the alias.
        skip = next((s for s in source_map.skips if re.fullmatch(s.pattern, target)), None)
        if target in found:
            if not _equal(found[target], tensor):
                problems.append(f"{tensor.name} differs from {found[target].name}, which it should repeat")
            reason = "repeats another tensor, checked equal"
            skipped[reason] = (*skipped.get(reason, ()), tensor.name)
        elif skip is not None:
            skipped[skip.reason] = (*skipped.get(skip.reason, ()), tensor.name)
        else:
            found[target] = tensor
    return found, skipped, problems


def _equal(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.storage == b.storage:
        return True
    return a.read().tobytes() == b.read().tobytes()


def _leaves(
    source_map: SourceMap,
    found: Mapping[str, Tensor],
    abstract: Abstract,
    dtype: str,
    problems: list[str],
) -> dict[str, tuple[Paired, ...]]:
    slices: dict[tuple[str, str], list[Link]] = {}
    for link in source_map.links:
        slices.setdefault((link.component, link.path), []).append(link)
    result: dict[str, tuple[Paired, ...]] = {}
    for component in source_map.components:
        leaves = []
        for path, shape in shapes(abstract[component]).items():
            links = sorted(slices[component, path], key=lambda link: link.layer or 0)
            kinds = {found[link.name].dtype for link in links}
            target, trouble = target_dtype(kinds, dtype)
            if trouble:
                problems.append(f"{links[0].name} {trouble}")
            pieces = tuple((found[link.name], link.layout, link.part) for link in links)
            leaves.append(Paired(path, shape, target, links[0].layer is not None, pieces))
        result[component] = tuple(leaves)
    return result


def target_dtype(kinds: set[np.dtype], dtype: str) -> tuple[np.dtype, str]:
    """The dtype of a leaf made of tensors of these kinds, and what is wrong with it ("" if nothing)."""
    wrong = [str(kind) for kind in kinds if not is_float(kind)]
    if wrong:
        return DTYPES["F32"], f"is {', '.join(wrong)}, not floating"
    if dtype != "keep":
        return np.dtype(DTYPES["BF16"] if dtype == "bfloat16" else DTYPES["F32"]), ""
    if len(kinds) > 1:
        names = ", ".join(sorted(map(str, kinds)))
        return DTYPES["F32"], f"and its like in other layers are of several types ({names}); pass --dtype"
    (kind,) = kinds
    if kind == DTYPES["F64"]:
        return DTYPES["F32"], "is float64, which cannot be kept; pass --dtype float32"
    return kind, ""


def converted(
    leaf: Paired, *, allow_nan: bool = False, report: Callable[[str], None] | None = None
) -> Iterator[np.ndarray]:
    """The slices of a leaf in order, read, checked and laid out; the whole leaf where it is not stacked.

    Raises UserError for NaN or infinite numbers, unless `allow_nan`: then `report` is called with each name;
    and for numbers that the leaf's dtype cannot hold.
    """
    for tensor, layout, part in leaf.slices:
        array = tensor.read()
        if not finite(array):
            if not allow_nan:
                raise UserError(
                    f"{tensor.name} in {tensor.file} holds NaN or infinite numbers; pass --allow-nan to take it"
                )
            if report is not None:
                report(tensor.name)
        array = layout.ours(array, part)
        yield cast(array, leaf.dtype, f"{tensor.name} in {tensor.file}")


def external(
    source_map: SourceMap,
    abstract: Abstract,
    read: Callable[[str, str, int | None], np.ndarray],
) -> Iterator[tuple[str, np.ndarray]]:
    """The source's tensors made from ours, in the order of `manifest`.

    read: (component, path, layer) -> our slice.
    """
    links: dict[str, list[Link]] = {}
    for link in source_map.links:
        links.setdefault(link.name, []).append(link)
    for name in manifest(source_map, abstract):
        parts = sorted(links[name], key=lambda link: link.part)
        pieces = [read(link.component, link.path, link.layer) for link in parts]
        yield name, parts[0].layout.external(pieces)
