"""LoRA of any component, in names of this package: what no public format has a place for.

`COMPONENT/PATH.down` and `.up` as our factors lie; `.ranks`, one for each layer; `.alphas`, where they are not the ranks.
"""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np

from mvader_jax.convert.lora.foreign import unread
from mvader_jax.convert.tensors import Weights, finite, is_float
from mvader_jax.errors import UserError
from mvader_jax.lora.factors import Factors, Lora, factor_shapes, kernels
from mvader_jax.models.components import COMPONENTS, abstract_components
from mvader_jax.models.config import ModelConfig

NAME = "mvader"
_TENSOR = re.compile(r"(\w+)/(\S+/kernel)\.(down|up|ranks|alphas)")


def recognises(names: Collection[str]) -> bool:
    return any(_TENSOR.fullmatch(name) for name in names)


def arrays(lora: Lora) -> dict[str, np.ndarray]:
    """The file's tensors by name."""
    found: dict[str, np.ndarray] = {}
    for component, weights in lora.weights.items():
        for path, factors in weights.items():
            start = f"{component}/{path}"
            found[f"{start}.down"], found[f"{start}.up"] = factors.down, factors.up
            found[f"{start}.ranks"] = np.array(factors.ranks, np.int32)
            if any(alpha is not None for alpha in factors.alphas):
                pairs = zip(factors.alphas, factors.ranks, strict=True)
                values = [rank if alpha is None else float(alpha) for alpha, rank in pairs]
                found[f"{start}.alphas"] = np.array(values, np.float64)
    return found


def read(weights: Weights, model: ModelConfig) -> Lora:
    """Raises UserError for weights that the model has not, and factors that do not fit them."""
    places: dict[tuple[str, str], set[str]] = {}
    strange = []
    for name in weights.tensors:
        match = _TENSOR.fullmatch(name)
        if match is None:
            strange.append(name)
        else:
            places.setdefault((match[1], match[2]), set()).add(match[3])
    if strange:
        raise UserError(unread(strange))
    here = [name for name, field in COMPONENTS.items() if getattr(model, field, None) is not None]
    wanted = dict.fromkeys(component for component, _ in places)
    for component in wanted:
        if component not in here:
            raise UserError(f"it is of a {component}; the model has {', '.join(here)}")
    trees, _ = abstract_components(model, wanted)
    found: dict[str, dict[str, Factors]] = {}
    for (component, path), parts in sorted(places.items()):
        weight = kernels(trees[component]).get(path)
        if weight is None:
            raise UserError(f"it is of {component}/{path}, which this model has not")
        if not {"down", "up", "ranks"} <= parts:
            raise UserError(
                f"of {component}/{path} there is no {' and no '.join({'down', 'up', 'ranks'} - parts)}"
            )
        start = f"{component}/{path}"
        part = {name: weights.tensors[f"{start}.{name}"].read() for name in parts}
        found.setdefault(component, {})[path] = _factors(start, part, weight.shape)
    return Lora(found)


def _factors(name: str, parts: dict[str, np.ndarray], shape: tuple[int, ...]) -> Factors:
    down, up, ranks = parts["down"], parts["up"], parts["ranks"]
    layers = shape[0] if len(shape) == 3 else 1
    alphas = parts.get("alphas")
    rank = down.shape[-1] if down.ndim else 0
    good = (down.shape, up.shape) == factor_shapes(shape, rank) and ranks.shape == (layers,)
    good &= alphas is None or alphas.shape == (layers,)
    if not good or rank == 0 or ranks.dtype != np.int32 or ranks.max(initial=0) != rank or ranks.min() < 0:
        raise UserError(
            f"the factors of {name} are {list(down.shape)} and {list(up.shape)} beside a weight {list(shape)}"
        )
    if not all(is_float(part.dtype) and finite(part) for part in (down, up)):
        raise UserError(f"the factors of {name} are no finite floats")
    one = [None] * layers if alphas is None else [np.array(alpha, np.float64) for alpha in alphas]
    return Factors(down, up, tuple(int(rank) for rank in ranks), tuple(one))
