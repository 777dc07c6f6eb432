"""The noise schedule of Stable Diffusion and the timesteps that samplers visit."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from mvader_jax.bounds import Bound, NonNegativeInt, PositiveInt
from mvader_jax.errors import UserError
from mvader_jax.settings import Checked

#: Of 0 the first step would add no noise, and samplers divide by it.
_BETA = Bound(lambda x: 0 < x < 1, "more than 0, and less than 1")


@dataclasses.dataclass(frozen=True)
class ScheduleConfig(Checked):
    """Stable Diffusion 1.4's schedule by default (its diffusers `scheduler_config.json`)."""

    num_train_steps: PositiveInt = 1000
    beta_start: Annotated[float, _BETA] = 0.00085
    beta_end: Annotated[float, _BETA] = 0.012
    beta_schedule: Literal["linear", "scaled_linear"] = "scaled_linear"
    steps_offset: NonNegativeInt = 1
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

    def alphas(self, timesteps: np.ndarray) -> np.ndarray:
        """alpha-bar at integer timesteps, float64; what lies below 0 is `Schedule.alpha`'s."""
        table = self.alphas_cumprod()
        final = 1.0 if self.set_alpha_to_one else table[0]
        return np.where(timesteps < 0, final, table[np.maximum(timesteps, 0)])


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

    int64 [steps]; diffusers' "leading" spacing, as Stable Diffusion 1.4 was released with. A timestep past
    the schedule's end (the offset leads there at `steps` = T) is its last. Raises UserError as `check_steps`.
    """
    check_steps(config, steps)
    spaced = np.arange(steps, dtype=np.int64) * (config.num_train_steps // steps) + config.steps_offset
    return np.minimum(spaced, config.num_train_steps - 1)[::-1].copy()


def linspace_timesteps(config: ScheduleConfig, steps: int) -> np.ndarray:
    """The timesteps of `steps` sampling steps, descending from T - 1: `steps` + 1 even ones without the last, 0.

    int64 [steps]; diffusers' "linspace" spacing of DPM-Solver. Raises UserError as `check_steps`.
    """
    check_steps(config, steps)
    return np.linspace(0, config.num_train_steps - 1, steps + 1).round()[:0:-1].astype(np.int64)


def check_steps(config: ScheduleConfig, steps: int) -> None:
    """The one rule for step counts: 1 to the schedule's length. Raises UserError otherwise."""
    if not 1 <= steps <= config.num_train_steps:
        raise UserError(f"steps is {steps}; accepted are 1 to {config.num_train_steps}")
