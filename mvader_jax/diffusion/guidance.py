"""Classifier-free guidance (Ho and Salimans 2022): one batched call for all conditions."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
from jaxtyping import Float

from mvader_jax.condition import Condition, concatenate, pad
from mvader_jax.diffusion.pndm import Denoise

#: (latents [kB, ...], timesteps [kB], Condition of kB rows) -> [kB, ...].
Eps: TypeAlias = Callable[[jax.Array, jax.Array, Condition], jax.Array]


def guided(
    eps: Eps,
    condition: Condition,
    null: Condition,
    scale: Float[jax.Array, ""] | Float[jax.Array, " B"] | float,
    negative: Condition | None = None,
    strength: Float[jax.Array, ""] | Float[jax.Array, " B"] | float = 1.0,
) -> Denoise:
    """denoise(x, t) = base + scale (eps_condition - base), where the base is what guidance leads away from:

        base = eps_null + strength (eps_negative - eps_null)

    so that a negative prompt of strength 0 is the null condition, and of strength 1 stands in its place.
    Without a negative prompt the base is eps_null; one of strength 1 throughout is cheaper given as `null`.

    eps: with k = 2 conditions, or 3 with a negative one; that of the prompts is the last. Their lengths may differ.
    scale, strength: one, or each row's.
    """
    conditions = [null, condition] if negative is None else [null, negative, condition]
    length = max(c.hidden.shape[1] for c in conditions)
    together = concatenate(*(pad(c, length) for c in conditions))

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        repeated = jnp.concatenate([x] * len(conditions))
        predicted = eps(repeated, jnp.broadcast_to(t, repeated.shape[:1]), together).astype(x.dtype)
        base, *negatives, conditional = jnp.split(predicted, len(conditions))
        for other in negatives:
            base = base + _by_row(strength, x) * (other - base)
        return base + _by_row(scale, x) * (conditional - base)

    return denoise


def alone(eps: Eps, condition: Condition) -> Denoise:
    """denoise(x, t) = eps_condition, as `guided` by a scale of 1, for a half or a third of its work."""

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        return eps(x, jnp.broadcast_to(t, x.shape[:1]), condition).astype(x.dtype)

    return denoise


def _by_row(value: jax.Array | float, x: jax.Array) -> jax.Array:
    factor = jnp.asarray(value, x.dtype)
    return factor.reshape(factor.shape + (1,) * (x.ndim - factor.ndim) if factor.ndim else ())
