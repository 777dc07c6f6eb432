"""The decoder's frozen matrices as integers with scales: a half or a quarter of bfloat16's bytes in memory and on links.

A kernel [in, out] becomes integers of its shape, with `kernel_scale` [groups, out] beside it: for every column, and in it for
every group of rows, kernel = integers * kernel_scale (symmetric: there is no zero point). They become numbers where they are
used, after a mesh has gathered them. Embeddings, layer norms, biases, adapters and the head stay numbers.

`qwix` would be a dependency whose parameters are objects of its own, which tables of shardings, checkpoints and hashes
would have to learn; here a quantised tree is a tree of arrays like any other.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.linen.dtypes import promote_dtype
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float, Int

from mvader_jax.errors import UserError
from mvader_jax.parallel.sharding import Tree, gathered, partitioned

Dtype = Any
SCALE = "kernel_scale"


@dataclasses.dataclass(frozen=True)
class Integers:
    """largest: the integer that a group's largest number becomes; rows: of a group, 0 for the whole column."""

    dtype: Dtype
    largest: int
    rows: int = 0


#: The names of `bounds.FrozenDtype` that are integers.
INTEGERS: Mapping[str, Integers] = {
    "int8": Integers(jnp.int8, 127),
    "int4": Integers(jnp.int4, 7, rows=128),
}


class Dense(nn.Module):
    """x kernel + bias, as `nn.Dense`; the kernel may be integers, with `kernel_scale` beside it.

    axes: logical ones of the kernel.
    """

    features: int
    axes: tuple[str, str]
    dtype: Dtype
    bias: bool = True

    @nn.compact
    def __call__(self, x: Float[jax.Array, "*_ I"]) -> Float[jax.Array, "*_ O"]:
        init = partitioned(nn.initializers.normal(0.02), *self.axes)
        kernel = self.param("kernel", init, (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,)) if self.bias else None
        x, bias = promote_dtype(x, bias, dtype=self.dtype)
        if self.has_variable("params", SCALE):
            # A checkpoint of its own: kernels made numbers are not kept for a backward pass.
            y = jax.checkpoint(functools.partial(_product, self.axes))(
                x, kernel, self.get_variable("params", SCALE)
            )
        else:
            y = x @ kernel.astype(x.dtype)
        return y if bias is None else y + bias


def _product(axes: tuple[str, str], x: jax.Array, values: jax.Array, scale: jax.Array) -> jax.Array:
    # Pinned before they are made numbers: what is gathered are the integers.
    values, scale = gathered(values, *axes), gathered(scale, "vector", axes[1])
    return x @ numbers(values, scale, x.dtype)


def numbers(
    values: Int[jax.Array, "I O"], scale: Float[jax.Array, "G O"], dtype: Dtype
) -> Float[jax.Array, "I O"]:
    """The kernel that integers and scales stand for."""
    by_group = values.astype(dtype).reshape(scale.shape[0], -1, values.shape[1])
    return (by_group * scale.astype(dtype)[:, None]).reshape(values.shape)


def integers(
    kernel: Float[jax.Array, "*L I O"], name: str
) -> tuple[Int[jax.Array, "*L I O"], Float[jax.Array, "*L G O"]]:
    """(integers, scales) nearest to a kernel. name: of `INTEGERS`.

    Scales are bfloat16's numbers, so that casting them to any dtype of parameters loses nothing.
    """
    to = INTEGERS[name]
    *layers, rows, columns = kernel.shape
    split = kernel.astype(jnp.float32).reshape(*layers, _groups(rows, to.rows), -1, columns)
    scale = (jnp.max(jnp.abs(split), axis=-2, keepdims=True) / to.largest).astype(jnp.bfloat16)
    scale = jnp.where(scale == 0, 1, scale)
    values = jnp.clip(jnp.round(split / scale.astype(jnp.float32)), -to.largest, to.largest)
    return values.astype(to.dtype).reshape(kernel.shape), scale.squeeze(-2)


def _groups(rows: int, most: int) -> int:
    """The fewest equal groups of at most `most` rows; 0: one group."""
    return next(n for n in range(-(-rows // (most or rows)), rows + 1) if rows % n == 0)


_compiled = jax.jit(integers, static_argnames="name")


def kept_in(frozen_dtype: str, dtype: str) -> tuple[str, str | None]:
    """(what parameters are kept in that are no integers, which integers the decoder's matrices become, if any)."""
    return (dtype, frozen_dtype) if frozen_dtype in INTEGERS else (frozen_dtype, None)


def is_matrix(path: tuple[str, ...]) -> bool:
    """Whether a parameter, `component/path`, is one of those that integers may stand for."""
    return path[:2] == ("decoder", "layers") and path[-1] == "kernel"


def has_integers(component: Tree) -> bool:
    """Whether a component's matrices are integers."""
    return any(path[-1] == SCALE for path in flatten_dict(component))


def quantised(components: Mapping[str, Tree], name: str) -> dict[str, Tree]:
    """Components with the matrices of the decoder's layers as integers, of arrays or of shapes alike.

    Raises UserError where there are no such matrices, or they are other integers already.
    """
    flat = flatten_dict(dict(components))
    matrices = list(filter(is_matrix, flat))
    if not matrices:
        raise UserError(
            f"frozen_dtype {name} is for the matrices of a decoder that stays frozen; there are none among "
            f"{', '.join(sorted(components)) or 'no components'}"
        )
    for path in matrices:
        if not jnp.issubdtype(flat[path].dtype, jnp.floating) and flat[path].dtype != name:
            raise UserError(f"the decoder is stored in {flat[path].dtype}; {name} cannot be made of it")
        if jnp.issubdtype(flat[path].dtype, jnp.floating):
            abstract = isinstance(flat[path], jax.ShapeDtypeStruct)
            made = jax.eval_shape if abstract else (lambda make, kernel: make(kernel))
            flat[path], flat[(*path[:-1], SCALE)] = made(functools.partial(_compiled, name=name), flat[path])
    return unflatten_dict(flat)


def with_scales(axes: Mapping[str, Tree], components: Mapping[str, Tree]) -> dict[str, Tree]:
    """The logical axes of components, with those of the scales that are among these."""
    flat = flatten_dict(dict(axes))
    for path in flatten_dict(dict(components)):
        if path[-1] == SCALE:
            *layers, _, columns = flat[(*path[:-1], "kernel")]
            flat[path] = (*layers, "vector", columns)
    return unflatten_dict(flat)
