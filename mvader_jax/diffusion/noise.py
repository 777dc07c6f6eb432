"""Where a picture's randomness comes from: its seed and its index, nothing else."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def initial_noise(seeds: jax.Array, indices: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Standard normal latents float32 [B, *shape].

    seeds: uint32 [B]; indices: int32 [B]. Row i depends on (seeds[i], indices[i]) alone: not on the
    batch, its neighbours or the mesh.
    """

    def one(seed: jax.Array, index: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(jax.random.key(seed), index), shape, jnp.float32)

    return jax.vmap(one)(jnp.asarray(seeds), jnp.asarray(indices))
