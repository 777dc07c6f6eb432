"""What a training run carries from step to step, and how parameters split into trainable and frozen.

Parameters are addressed by one path, `component/sub/tree/leaf`. A stage's groups are regular
expressions over these paths: the first group that matches a leaf owns it, a leaf that none matches
is frozen. Gradients, optimizer state and EMA exist for the trainable leaves alone.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

import flax.struct
import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from mvader_jax.condition import shapes
from mvader_jax.errors import UserError
from mvader_jax.train.lora import Settings, applied
from mvader_jax.train.objectives import average_of

Tree = Any


@flax.struct.dataclass
class TrainState:
    """step: int32 []; key: the run's random key, folded with the step and never split.

    A tree of the same class holds their shardings.
    trainable, ema: the same partial tree {component: ...}; frozen: the rest; opt_state: optax's.
    loss_mean: float32 [], running mean of the losses, NaN before the first; only where the stage asks for it.
    """

    step: Any
    key: Any
    trainable: Tree
    frozen: Tree
    opt_state: Any
    ema: Tree
    loss_mean: Any = None

    __repr__ = shapes


def partition(
    components: Mapping[str, Tree], patterns: Mapping[str, str]
) -> tuple[Tree, Tree, dict[str, str]]:
    """Splits components into (trainable, frozen, {path: group}).

    components: {component: tree}, of arrays or of shapes.
    patterns: {group: regular expression matched against a leaf's whole path}, in order.
    Raises UserError where a group matches nothing: a typo must not freeze a model silently.
    """
    flat = flatten_dict(dict(components), sep="/", keep_empty_nodes=False)
    groups: dict[str, str] = {}
    for path in flat:
        for group, pattern in patterns.items():
            if re.fullmatch(pattern, path):
                groups[path] = group
                break
    for group, pattern in patterns.items():
        if group not in groups.values():
            raise UserError(
                f"trainable group {group!r} ({pattern}) matches no parameter of: {', '.join(sorted(components))}"
            )
    trainable = {path: leaf for path, leaf in flat.items() if path in groups}
    frozen = {path: leaf for path, leaf in flat.items() if path not in groups}
    return unflatten_dict(trainable, sep="/"), unflatten_dict(frozen, sep="/"), groups


def merge(trainable: Tree, frozen: Tree) -> Tree:
    """The inverse of `partition`: whole components again."""
    return unflatten_dict({**flatten_dict(frozen), **flatten_dict(trainable)})


def seen_by_loss(
    trainable: Tree,
    frozen: Tree,
    ema: Tree,
    averages: Collection[str],
    lora: Settings,
    key: jax.Array | None = None,
) -> dict[str, Tree]:
    """The components that a loss reads, changed by their factors. averages: of which it reads the running average too
    (`average_of`); lora: the stage's; key: of its dropout, None where nothing is dropped."""
    components = applied(merge(trainable, frozen), lora, key)
    if averages:
        averaged = applied(merge(ema, frozen), lora)
        components |= {average_of(name): averaged[name] for name in averages}
    return components


def labels(trainable: Tree, groups: Mapping[str, str]) -> Tree:
    """The group of every trainable leaf, as a tree of the same structure (for optax.multi_transform)."""
    flat = flatten_dict(trainable, sep="/")
    return unflatten_dict({path: groups[path] for path in flat}, sep="/")
