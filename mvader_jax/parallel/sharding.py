"""The only table from logical axes to mesh axes, and everything that reads it.

Modules name the axes of their parameters with `partitioned`; nothing else in the project writes a
PartitionSpec for a parameter.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from mvader_jax.errors import UserError

#: Arrays, shapes or the like in nested dictionaries and dataclasses: JAX's pytrees, of which no type is more exact.
Tree = Any

#: The axes of every mesh, slowest network first.
MESH_AXES = ("replica", "data", "fsdp", "tensor")

#: logical axis -> mesh axes. Two axes of one array may not meet on the same mesh axis.
LOGICAL_AXES: dict[str, tuple[str, ...]] = {
    "batch": ("replica", "data", "fsdp"),
    "sequence": (),
    "layers": (),
    "vocab": ("tensor",),
    "embed": ("fsdp",),  # the residual width of a transformer, as a parameter's axis
    "heads": ("tensor",),  # heads x head width, flattened
    "mlp": ("tensor",),
    "context": ("fsdp",),  # width of the condition at a cross-attention
    "channels_in": ("fsdp",),
    "channels_out": ("tensor",),
    "kernel": (),  # a convolution's window
    "rank": (),  # between the two factors of a low-rank change
    "vector": (),  # biases and norms: small, replicated
    "activation": (),  # the width of an activation
}

#: A tensor larger than this must be shardable on the mesh; a smaller one is replicated instead.
REPLICATE_BELOW_BYTES = 1 << 20

_shapes_alone: contextvars.ContextVar[bool] = contextvars.ContextVar("shapes_alone", default=False)


class ShardingError(UserError):
    """An unknown axis, two axes on one mesh axis, or a large tensor that does not divide."""


def mesh_axes(name: str) -> tuple[str, ...]:
    """The mesh axes of a logical axis. Raises ShardingError for an unknown name."""
    try:
        return LOGICAL_AXES[name]
    except KeyError:
        raise ShardingError(
            f"unknown logical axis {name!r}; known: {', '.join(sorted(LOGICAL_AXES))}"
        ) from None


@contextlib.contextmanager
def shapes_alone() -> Iterator[None]:
    """Parameters are asked for their shapes only: their random initializers are not traced.

    Also while a module is applied to parameters: flax then compares their shapes with the initializers',
    which is a quarter of what tracing takes.
    """
    token = _shapes_alone.set(True)
    try:
        yield
    finally:
        _shapes_alone.reset(token)


def partitioned(init: Callable[..., jax.Array], *names: str) -> Callable[..., Any]:
    """Names the axes of the parameter that `init` makes, checked against the table at once."""
    used: list[str] = []
    for name in names:
        used += mesh_axes(name)
    if len(used) != len(set(used)):
        raise ShardingError(f"axes {names} meet on one mesh axis: {used}")

    def make(key: jax.Array, shape: tuple[int, ...], *rest: Any) -> jax.Array:
        return jnp.zeros(shape, *rest) if _shapes_alone.get() else init(key, shape, *rest)

    return nn.with_logical_partitioning(make, names)


def partition_spec(
    names: tuple[str | None, ...],
    shape: tuple[int, ...],
    mesh: Mesh | AbstractMesh,
    itemsize: int = 4,
    what: str = "array",
) -> PartitionSpec:
    """The PartitionSpec of one array.

    A dimension that its mesh axes do not divide stays whole when the array is small
    (REPLICATE_BELOW_BYTES); for a larger array that is an error, so nothing large is ever
    replicated by accident. A large array that the table would leave whole (the stacked biases of a deep
    decoder) is divided over "fsdp", or else "tensor", along its longest dimension that divides.
    """
    size = itemsize
    for dim in shape:
        size *= dim
    entries: list[str | tuple[str, ...] | None] = []
    for name, dim in zip(names, shape, strict=True):
        axes = () if name is None else tuple(a for a in mesh_axes(name) if mesh.shape.get(a, 1) > 1)
        ways = 1
        for axis in axes:
            ways *= mesh.shape[axis]
        if dim % ways:
            if size > REPLICATE_BELOW_BYTES:
                raise ShardingError(
                    f"{what}: axis {name!r} of length {dim} does not divide over {ways} devices ({'x'.join(axes)})"
                )
            axes = ()
        entries.append(axes if len(axes) != 1 else axes[0])
    if size > REPLICATE_BELOW_BYTES and not any(entries) and set(names) & {None, "vector"}:
        spare = ((axis, mesh.shape.get(axis, 1)) for axis in ("fsdp", "tensor"))
        for axis, ways in spare:
            fits = [i for i, dim in enumerate(shape) if ways > 1 and dim % ways == 0]
            if fits:
                entries[max(fits, key=lambda i: shape[i])] = axis
                break
    return PartitionSpec(*(entry or None for entry in entries))


def batch_sharding(mesh: Mesh, ndim: int = 1) -> NamedSharding:
    """Sharding of an array whose first axis is the batch."""
    axes = tuple(a for a in mesh_axes("batch") if mesh.shape.get(a, 1) > 1)
    return NamedSharding(mesh, PartitionSpec(axes or None, *([None] * (ndim - 1))))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def abstract_init(module: nn.Module, *args: Any, **kwargs: Any) -> tuple[Tree, Tree]:
    """Shapes and logical axes of a module's parameters, without computing any.

    Returns (tree of ShapeDtypeStruct, tree of tuples of axis names), both unboxed.
    """
    with shapes_alone():
        boxed = jax.eval_shape(lambda key: module.init(key, *args, **kwargs)["params"], jax.random.key(0))
    names = jax.tree.map(
        lambda leaf: leaf.names if isinstance(leaf, nn.LogicallyPartitioned) else (None,) * leaf.ndim,
        boxed,
        is_leaf=lambda leaf: isinstance(leaf, nn.LogicallyPartitioned),
    )
    return nn.unbox(boxed), names


def param_shardings(abstract: Tree, names: Tree, mesh: Mesh | AbstractMesh) -> Tree:
    """NamedShardings of a tree of parameters on a mesh, by the table."""

    def one(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct, axes: tuple[str | None, ...]) -> NamedSharding:
        what = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, partition_spec(axes, leaf.shape, mesh, leaf.dtype.itemsize, what))

    return jax.tree_util.tree_map_with_path(one, abstract, names)


def init_params(
    module: nn.Module, key: jax.Array, *args: Any, mesh: Mesh | None = None, **kwargs: Any
) -> Tree:
    """A module's parameters, unboxed; on a mesh each device makes only its own shard."""

    def init(key: jax.Array) -> Tree:
        return nn.unbox(module.init(key, *args, **kwargs)["params"])

    if mesh is None:
        return jax.jit(init)(key)
    abstract, names = abstract_init(module, *args, **kwargs)
    return jax.jit(init, out_shardings=param_shardings(abstract, names, mesh))(key)


def constrain(x: jax.Array, *names: str) -> jax.Array:
    """Pins an activation's sharding inside `jax.set_mesh`; without a mesh it does nothing."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        for name in names:
            mesh_axes(name)
        return x
    return jax.lax.with_sharding_constraint(x, partition_spec(names, x.shape, mesh, 0, "activation"))


def gathered(x: jax.Array, *names: str) -> jax.Array:
    """Pins a parameter, of these logical axes, as a batch needs it: whole along the mesh axes that the batch lies over."""
    over = set(mesh_axes("batch"))
    return constrain(x, *("activation" if over & set(mesh_axes(name)) else name for name in names))


def bytes_per_device(tree: Tree) -> int:
    """Bytes of a tree of abstract arrays on one device, by their shardings; of unsharded ones, all of them."""
    total = 0
    for leaf in jax.tree.leaves(tree):
        sharding = getattr(leaf, "sharding", None)
        shape = leaf.shape if sharding is None else sharding.shard_shape(leaf.shape)
        total += int(np.prod(shape, dtype=np.int64)) * _bits(leaf.dtype)
    return total // 8


def _bits(dtype: Any) -> int:
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        return 64
    # NumPy keeps an int4 in a byte, a device two.
    return 4 if dtype == jnp.int4 else 8 * int(dtype.itemsize)
