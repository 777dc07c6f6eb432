"""Eq. 1 of the paper: the noise-prediction objective."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from mvader_jax.diffusion.schedule import Schedule


def diffusion_loss(
    predict: Callable[[jax.Array, jax.Array], jax.Array],
    latents: jax.Array,
    key: jax.Array,
    schedule: Schedule,
) -> tuple[jax.Array, jax.Array]:
    """L = E || eps - F(x_t, c, t) ||^2 with t uniform over the schedule, as a mean over elements.

    predict: (x_t [B, h, w, C], t int32 [B]) -> eps [B, h, w, C]. latents: scaled, [B, h, w, C].
    Returns (loss of each row float32 [B], t [B]).
    """
    time_key, noise_key = jax.random.split(key)
    t = jax.random.randint(time_key, latents.shape[:1], 0, schedule.config.num_train_steps)
    noise = jax.random.normal(noise_key, latents.shape, jnp.float32)
    error = predict(schedule.add_noise(latents, noise, t), t).astype(jnp.float32) - noise
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim))), t
