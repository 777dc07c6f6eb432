"""Eq. 1 of the paper: the noise-prediction objective."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32, Int, Key

from mvader_jax.diffusion.schedule import Schedule


def diffusion_loss(
    predict: Callable[[jax.Array, jax.Array], jax.Array],
    latents: Float[jax.Array, "B h w C"],
    key: Key[jax.Array, ""],
    schedule: Schedule,
    timestep_bias: float = 1.0,
) -> tuple[Float32[jax.Array, " B"], Int[jax.Array, " B"]]:
    """L = E || eps - F(x_t, c, t) ||^2 with t uniform over the schedule, as a mean over elements.

    predict: (x_t [B, h, w, C], t int32 [B]) -> eps [B, h, w, C], or v in its place where that is the schedule's
    `prediction_type`. latents: scaled.
    timestep_bias: above 1, t is drawn as `timestep_odds` says.
    Returns (the loss of each row, its t).
    """
    time_key, noise_key = jax.random.split(key)
    rows = latents.shape[:1]
    if timestep_bias > 1:
        t = jax.random.categorical(time_key, jnp.log(timestep_odds(schedule, timestep_bias)), shape=rows)
    else:
        t = jax.random.randint(time_key, rows, 0, schedule.config.num_train_steps)
    noise = jax.random.normal(noise_key, latents.shape, jnp.float32)
    predicted = predict(schedule.add_noise(latents, noise, t), t).astype(jnp.float32)
    error = predicted - schedule.target(latents, noise, t)
    return jnp.mean(jnp.square(error), axis=tuple(range(1, error.ndim))), t


def timestep_odds(schedule: Schedule, bias: float) -> Float32[jax.Array, " num_train_steps"]:
    """How often each timestep is drawn, against a clean one: min(1 + 1/SNR(t), bias).

    Of the picture's own error eq. 1 counts SNR(t): next to nothing where the noise hides the picture and the
    prompt alone tells what it holds. Odds of 1 + 1/SNR make of it the error of the velocity (Salimans & Ho
    2022); the bias keeps the noisiest timesteps from being all there is.
    """
    return jnp.minimum(1.0 / schedule.alphas_cumprod.astype(jnp.float32), bias)  # 1 + (1 - alpha) / alpha
