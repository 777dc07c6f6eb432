"""A number that tells whether a tree of arrays is the one that was saved, without gathering it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from mvader_jax.parallel.processes import gather_json
from mvader_jax.parallel.sharding import Tree

#: Arrays up to this size are summed on the host for the fingerprint.
_SMALL_BYTES = 4 << 20


def fingerprint(tree: Tree) -> int:
    """A 32-bit sum over every bit of a tree of arrays, the same on any mesh; one altered number changes it.

    Nothing is gathered: large arrays are summed where they lie, small ones by the hosts (a program over
    hundreds of small arrays would take as long to compile as a train step). All processes call it together.
    """
    leaves = list(enumerate(jax.tree.leaves(tree)))
    large = [_on_device(leaf, np.uint32(n)) for n, leaf in leaves if leaf.nbytes > _SMALL_BYTES]
    own = sum(_on_host(leaf, n) for n, leaf in leaves if leaf.nbytes <= _SMALL_BYTES)
    return (sum(int(np.asarray(s)) for s in large) + sum(gather_json(own))) % 2**32


@jax.jit
def _on_device(leaf: jax.Array, number: jax.Array) -> jax.Array:
    bits = leaf.astype(jnp.uint8) if leaf.dtype == bool else _bits(leaf)
    place = jnp.broadcast_to(number, leaf.shape)
    for axis, length in enumerate(leaf.shape):
        place = place * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, leaf.shape, axis)
    # An odd factor: no change of one number can cancel.
    return jnp.sum(bits.astype(jnp.uint32) * (2 * place + 1), dtype=jnp.uint32)


def _bits(leaf: jax.Array) -> jax.Array:
    return jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * jnp.dtype(leaf.dtype).itemsize}"))


def _on_host(leaf: jax.Array, number: int) -> int:
    """The same sum over the shards that this process answers for: of several copies, the first."""
    total = 0
    for shard in leaf.addressable_shards:
        if shard.replica_id:
            continue
        data = np.asarray(shard.data)
        bits = np.ascontiguousarray(data).reshape(-1).view(f"uint{8 * data.itemsize}").reshape(data.shape)
        place = np.full(data.shape, number, np.uint32)
        for axis, length in enumerate(leaf.shape):
            index = (shard.index[axis].start or 0) + np.arange(data.shape[axis], dtype=np.uint32)
            place = place * np.uint32(length) + index.reshape(-1, *[1] * (data.ndim - axis - 1)).astype(
                np.uint32
            )
        total += int(np.sum(bits.astype(np.uint32) * (2 * place + 1), dtype=np.uint32))
    return total % 2**32
