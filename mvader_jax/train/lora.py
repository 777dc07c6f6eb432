"""Factors that train beside frozen weights: one more component, `lora`, whose tree is that of what it changes.

A weight at `unet/PATH/kernel` has its factors at `lora/unet/PATH/kernel/down` and `up`. The networks know nothing of them:
in each microbatch the weights are changed, W + alpha / rank * down @ up, before the loss reads them, and gradients reach
the factors through the product. That is one product of rank r for each weight beside one of the whole batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mvader_jax.errors import UserError
from mvader_jax.lora.config import LoraConfig
from mvader_jax.lora.factors import (
    DOWN,
    UP,
    Factors,
    Lora,
    changed,
    factor_axes,
    factor_shapes,
    kernels,
    largest_rank,
    targets,
)
from mvader_jax.models.quantised import SCALE
from mvader_jax.parallel.sharding import Tree

#: The component that factors are.
LORA = "lora"
Settings = Mapping[str, LoraConfig]


def with_factors(components: Mapping[str, Tree], settings: Settings, seed: int) -> dict[str, Tree]:
    """Components, of arrays or of shapes, with fresh factors of those that the settings name.

    `down` is drawn uniformly, as PyTorch draws a linear layer and PEFT its first factor; `up` is zeros, so that the model
    is what it was. Raises UserError where settings match no weight, or a rank is more than a weight has.
    """
    if not settings:
        return dict(components)
    wanted = {
        (component, path): factor_shapes(leaf.shape, config.rank)
        for component, config in settings.items()
        for path, leaf in _targets(components, component, config).items()
    }

    def drawn(key: jax.Array) -> dict[str, jax.Array]:
        factors = {}
        for name, (down, up) in zip(sorted(wanted), _sorted_shapes(wanted), strict=True):
            key, own = jax.random.split(key)
            # What a stacked weight's layers read is one layer's.
            reads = math.prod(down[1:-1] if len(up) == 3 else down[:-1])
            bound = reads**-0.5
            path = "/".join(name)
            factors[f"{path}/{DOWN}"] = jax.random.uniform(own, down, jnp.float32, -bound, bound)
            factors[f"{path}/{UP}"] = jnp.zeros(up, jnp.float32)
        return factors

    key = jax.random.fold_in(jax.random.key(seed), len(wanted))
    if any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(dict(components))):
        made: Mapping[str, Any] = jax.eval_shape(drawn, key)
    else:
        # On the host: every process of a job has the same, whole, and puts its part onto the mesh.
        made = jax.tree.map(np.asarray, jax.jit(drawn)(key))
    return {**components, LORA: unflatten_dict(made, sep="/")}


def _sorted_shapes(wanted: Mapping[Any, Any]) -> list[Any]:
    return [wanted[name] for name in sorted(wanted)]


def _targets(components: Mapping[str, Tree], component: str, config: LoraConfig) -> dict[str, Any]:
    if component not in components:
        raise UserError(f"lora names {component!r}; the stage computes with {', '.join(sorted(components))}")
    found = targets(components[component], config.targets)
    if not found:
        some = ", ".join(path.rpartition("/")[0] for path in list(kernels(components[component]))[:3])
        raise UserError(
            f"lora.{component}.targets ({config.targets}) is found in no path of its matrices and convolutions, as "
            f"{some or 'it has none'}"
        )
    flat = flatten_dict(components[component], sep="/")
    for path, leaf in found.items():
        module = path.rpartition("/")[0]
        if config.rank > largest_rank(leaf.shape):
            raise UserError(
                f"lora.{component}.rank is {config.rank}, more than the weight of {module} has, {list(leaf.shape)}; at "
                f"most {largest_rank(leaf.shape)}"
            )
        if f"{module}/{SCALE}" in flat:
            raise UserError(
                f"lora.{component} changes {module}, which is stored as integers; frozen_dtype bfloat16 keeps numbers"
            )
    return found


def check_groups(
    components: Mapping[str, Tree], settings: Settings, groups: Mapping[str, str], teachers: Iterable[str]
) -> None:
    """Raises UserError where a group trains a weight that has factors, none trains the factors, or they change a teacher."""
    for component in settings:
        if component in teachers:
            raise UserError(f"lora changes the {component}, a teacher, which stays as it is")
    for path in flatten_dict(components.get(LORA, {}), sep="/"):
        weight = path.rpartition("/")[0]
        if weight in groups:
            raise UserError(
                f"group {groups[weight]!r} trains {weight}, which lora changes by its factors; one of the two is enough"
            )
        if f"{LORA}/{path}" not in groups:
            component = path.split("/")[0]
            raise UserError(
                f"no group trains the factors of {weight}; one that does is Group('{LORA}/{component}/.*', 1e-4)"
            )


def with_factor_axes(axes: Mapping[str, Tree], components: Mapping[str, Tree]) -> dict[str, Tree]:
    """Logical axes of components, with those of the factors that are among these."""
    if LORA not in components:
        return dict(axes)
    flat = flatten_dict(dict(axes), sep="/")
    found = {}
    for path in flatten_dict(components[LORA], sep="/"):
        weight, _, factor = path.rpartition("/")
        found[path] = dict(zip((DOWN, UP), factor_axes(flat[weight]), strict=True))[factor]
    return {**axes, LORA: unflatten_dict(found, sep="/")}


def applied(
    components: Mapping[str, Tree], settings: Settings, key: jax.Array | None = None
) -> dict[str, Tree]:
    """Components with their weights changed by the factors among them, which are left out.

    key: of `rank_dropout`; without it nothing is left out.
    """
    if LORA not in components:
        return dict(components)
    flat = flatten_dict({name: tree for name, tree in components.items() if name != LORA}, sep="/")
    for number, (weight, down, up) in enumerate(_pairs(components[LORA])):
        config = settings[weight.split("/")[0]]
        if key is not None and config.rank_dropout:
            own = jax.random.fold_in(key, number)
            kept = jax.random.bernoulli(own, 1.0 - config.rank_dropout, (*up.shape[:-1], 1))
            up = jnp.where(kept, up / max(1.0 - config.rank_dropout, 1e-6), 0.0)
        flat[weight] = changed(flat[weight], down, up, config.scale)
    tree: dict[str, Tree] = unflatten_dict(flat, sep="/")
    return tree


def _pairs(factors: Tree) -> list[tuple[str, Any, Any]]:
    """(path of the weight, its down, its up), in order."""
    flat = flatten_dict(factors, sep="/")
    weights = sorted({path.rpartition("/")[0] for path in flat})
    return [(weight, flat[f"{weight}/{DOWN}"], flat[f"{weight}/{UP}"]) for weight in weights]


def as_lora(factors: Tree, settings: Settings) -> Lora:
    """Trained factors, whole on the host, as files hold them.

    alpha / rank is multiplied into `up`: a file whose alphas are its ranks means the same to every reader, and some
    do not read alphas (`load_lora_adapter` of diffusers 0.42 passes over the metadata that PEFT keeps them in).
    """
    weights: dict[str, dict[str, Factors]] = {}
    for path, down, up in _pairs(factors):
        component, _, inner = path.partition("/")
        config = settings[component]
        layers = up.shape[0] if up.ndim == 3 else 1
        scaled = np.asarray(up) * np.float32(config.scale)
        one = Factors(np.asarray(down), scaled, (config.rank,) * layers, (None,) * layers)
        weights.setdefault(component, {})[inner] = one
    return Lora(weights)


def component_of(path: str) -> str:
    """The component whose weights change with a parameter that trains: of a factor, that which it is of."""
    first, _, rest = path.partition("/")
    return rest.split("/")[0] if first == LORA else first
