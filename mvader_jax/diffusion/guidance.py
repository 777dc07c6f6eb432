"""Classifier-free guidance (Ho and Salimans 2022): one batched call for both conditions."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mvader_jax.condition import Condition, concatenate, pad


def guided(
    eps: Callable[[jax.Array, jax.Array, Condition], jax.Array],
    condition: Condition,
    null: Condition,
    scale: jax.Array | float,
) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """denoise(x, t) = eps_null + scale (eps_condition - eps_null).

    eps: (latents [2B, ...], timesteps [2B], Condition of 2B rows) -> [2B, ...]. null: the null prompt's
    Condition, or a negative prompt's; its length may differ. scale: [] or [B].
    """
    length = max(condition.hidden.shape[1], null.hidden.shape[1])
    both = concatenate(pad(null, length), pad(condition, length))

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        doubled = jnp.concatenate([x, x])
        unconditional, conditional = jnp.split(eps(doubled, jnp.broadcast_to(t, doubled.shape[:1]), both), 2)
        factor = jnp.asarray(scale, x.dtype)
        factor = factor.reshape(factor.shape + (1,) * (x.ndim - factor.ndim) if factor.ndim else ())
        unconditional, conditional = unconditional.astype(x.dtype), conditional.astype(x.dtype)
        return unconditional + factor * (conditional - unconditional)

    return denoise
