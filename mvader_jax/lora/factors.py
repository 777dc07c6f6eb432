"""A weight's low-rank change: W + scale * down @ up, where scale is alpha / rank (Hu et al. 2021, section 4.1).

Factors lie as our kernels do. Of a kernel [in, out]: down [in, r], up [r, out]. Of one stacked over layers, [L, in, out]:
[L, in, r] and [L, r, out]. Of a convolution [h, w, in, out] (LoCon): down [h, w, in, r], up [r, out], which is a
convolution to r channels and a 1x1 convolution after it.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from jaxtyping import Float, Float32

from mvader_jax.parallel.sharding import Tree

Shape = tuple[int, ...]
#: The leaf that factors change.
KERNEL = "kernel"
#: The names of a weight's two factors, in the order that an input meets them.
DOWN, UP = "down", "up"


@dataclasses.dataclass(frozen=True)
class Factors:
    """What a file holds of one weight; host arrays, of the file's dtype.

    ranks, alphas: of the weight's only layer, or of each that it is stacked of. A layer of rank 0 is not changed; one
    of less than the largest rank is filled up with zeros. An alpha that is None is the rank: a scale of 1.
    """

    down: np.ndarray
    up: np.ndarray
    ranks: tuple[int, ...]
    alphas: tuple[np.ndarray | None, ...]

    @property
    def scale(self) -> Float32[np.ndarray, " L"]:
        """alpha / rank of each layer."""
        pairs = zip(self.alphas, self.ranks, strict=True)
        values = [1.0 if alpha is None or not rank else float(alpha) / rank for alpha, rank in pairs]
        return np.array(values, np.float32)


@dataclasses.dataclass(frozen=True)
class Lora:
    """Factors of a model's weights. weights: {component: {path of the weight: its factors}}."""

    weights: Mapping[str, Mapping[str, Factors]]

    @property
    def components(self) -> tuple[str, ...]:
        return tuple(self.weights)


def kernels(tree: Tree) -> dict[str, Any]:
    """{path: leaf} of a component's weights that may have factors."""
    flat = flatten_dict(tree, sep="/")
    return {path: leaf for path, leaf in sorted(flat.items()) if path.split("/")[-1] == KERNEL}


def targets(tree: Tree, pattern: str) -> dict[str, Any]:
    """Those of `kernels` in whose path, without its last part, a regular expression is found."""
    return {path: leaf for path, leaf in kernels(tree).items() if re.search(pattern, module_of(path))}


def module_of(path: str) -> str:
    """The module that a kernel is the weight of."""
    return path.rpartition("/")[0]


def factor_shapes(shape: Shape, rank: int) -> tuple[Shape, Shape]:
    """(of down, of up) for a weight's shape."""
    *lead, rows, columns = shape
    layers = lead if len(shape) == 3 else ()
    return (*lead, rows, rank), (*layers, rank, columns)


def factor_axes(axes: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(of down, of up): logical axes, from the weight's own."""
    *lead, rows, columns = axes
    layers = lead if len(axes) == 3 else ()
    return (*lead, rows, "rank"), (*layers, "rank", columns)


def largest_rank(shape: Shape) -> int:
    """The rank of which a weight is made whole: more would change nothing."""
    *lead, rows, columns = shape
    window = int(np.prod(lead, dtype=np.int64)) if len(shape) == 4 else 1
    return min(window * rows, columns)


def changed(
    weight: Float[jax.Array, "*_ I O"], down: jax.Array, up: jax.Array, scale: jax.Array | float
) -> Float[jax.Array, "*_ I O"]:
    """W + scale * down @ up, computed in float32, in the weight's dtype. scale: one number, or one for each layer."""
    scale = jnp.asarray(scale, jnp.float32)
    if scale.ndim:
        scale = scale.reshape(-1, *(1,) * (weight.ndim - 1)) if weight.ndim == 3 else scale.reshape(())
    product = jnp.matmul(down.astype(jnp.float32), up.astype(jnp.float32), precision="highest")
    return (weight.astype(jnp.float32) + scale * product).astype(weight.dtype)
