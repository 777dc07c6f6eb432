"""The noise schedule of Stable Diffusion and the timesteps that samplers visit."""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mvader_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """Stable Diffusion 1.4's schedule by default (its diffusers `scheduler_config.json`)."""

    num_train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: Literal["linear", "scaled_linear"] = "scaled_linear"
    steps_offset: int = 1
    set_alpha_to_one: bool = False

    def alphas_cumprod(self) -> np.ndarray:
        """alpha-bar of every training timestep, float64 [num_train_steps]."""
        if self.beta_schedule == "linear":
            betas = np.linspace(self.beta_start, self.beta_end, self.num_train_steps, dtype=np.float64)
        else:
            betas = (
                np.linspace(self.beta_start**0.5, self.beta_end**0.5, self.num_train_steps, dtype=np.float64)
                ** 2
            )
        return np.cumprod(1.0 - betas)


@flax.struct.dataclass
class Schedule:
    """alphas_cumprod: [num_train_steps], float32 (float64 where JAX's x64 is on)."""

    alphas_cumprod: jax.Array
    config: ScheduleConfig = flax.struct.field(pytree_node=False)

    @classmethod
    def create(cls, config: ScheduleConfig) -> Schedule:
        dtype = jax.dtypes.canonicalize_dtype(jnp.float64)
        return cls(jnp.asarray(config.alphas_cumprod(), dtype), config)

    def alpha(self, t: jax.Array) -> jax.Array:
        """alpha-bar at integer timesteps; below 0 lies the image itself: 1 where `set_alpha_to_one`,
        otherwise the first timestep's (diffusers' `final_alpha_cumprod`)."""
        final = (
            jnp.ones((), self.alphas_cumprod.dtype)
            if self.config.set_alpha_to_one
            else self.alphas_cumprod[0]
        )
        return jnp.where(t < 0, final, self.alphas_cumprod[jnp.maximum(t, 0)])

    def add_noise(self, latents: jax.Array, noise: jax.Array, t: jax.Array) -> jax.Array:
        """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps. latents, noise: [B, h, w, C]; t: int [B]."""
        alpha = self.alpha(t).reshape(t.shape + (1,) * (latents.ndim - t.ndim))
        return jnp.sqrt(alpha) * latents + jnp.sqrt(1.0 - alpha) * noise


def leading_timesteps(config: ScheduleConfig, steps: int) -> np.ndarray:
    """The timesteps of `steps` sampling steps, descending: multiples of T // steps plus `steps_offset`.

    int64 [steps]; diffusers' "leading" spacing, as Stable Diffusion 1.4 was released with. The one rule
    for step counts: 1 to num_train_steps; a timestep past the schedule's end (the offset can lead there)
    is its last. Raises UserError otherwise.
    """
    total = config.num_train_steps
    if not 1 <= steps <= total:
        raise UserError(f"steps is {steps}; accepted are 1 to {total}")
    spaced = np.arange(steps, dtype=np.int64) * (total // steps) + config.steps_offset
    return np.minimum(spaced, total - 1)[::-1].copy()
