"""Where a picture's randomness comes from: its seed and its index, nothing else."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float32, Int, Key, UInt32

from mvader_jax.condition import Array

#: Folded into a seed in place of an image's index, which is below 2**31: the root of the samplers' noise.
_SAMPLER_STREAM = 2**32 - 1


def initial_noise(
    seeds: UInt32[Array, " B"], indices: Int[Array, " B"], shape: tuple[int, ...]
) -> Float32[jax.Array, "B ..."]:
    """Standard normal latents [B, *shape].

    Row i depends on (seeds[i], indices[i]) alone: not on the
    batch, its neighbours or the mesh.
    """

    def one(seed: jax.Array, index: jax.Array) -> jax.Array:
        return jax.random.normal(jax.random.fold_in(jax.random.key(seed), index), shape, jnp.float32)

    return jax.vmap(one)(jnp.asarray(seeds), jnp.asarray(indices))


def sampler_keys(seeds: UInt32[Array, " B"], indices: Int[Array, " B"]) -> Key[jax.Array, " B"]:
    """A PRNG key per image, for samplers that add noise; independent of its `initial_noise`.

    Key i depends on (seeds[i], indices[i]) alone.
    """

    def one(seed: jax.Array, index: jax.Array) -> jax.Array:
        return jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), _SAMPLER_STREAM), index)

    return jax.vmap(one)(jnp.asarray(seeds), jnp.asarray(indices))
