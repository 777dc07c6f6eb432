"""The noise schedule of Stable Diffusion: how much of a picture is left at each training timestep."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64, Int

from mvader_jax.bounds import Bound, NonNegativeInt, PositiveInt
from mvader_jax.errors import UserError
from mvader_jax.settings import Checked

#: How sampling steps are spaced over the schedule (`levels.timesteps_of`).
Spacing = Literal["leading", "trailing", "linspace"]
#: What a model predicts, in diffusers' words: the noise eps, or v = sqrt(abar) eps - sqrt(1 - abar) x_0 (Salimans & Ho
#: 2022, as Stable Diffusion 2 at 768 pixels), which is the noise where there is little and the picture where there is much.
Prediction = Literal["epsilon", "v_prediction"]
#: Of 0 the first step would add no noise, and samplers divide by it.
_BETA = Bound(lambda x: 0 < x < 1, "more than 0, and less than 1")


@dataclasses.dataclass(frozen=True)
class ScheduleConfig(Checked):
    """Stable Diffusion 1.4's schedule by default (its diffusers `scheduler_config.json`).

    spacing: of the sampling steps; None is each sampler's own. prediction_type: what the model is trained to predict.
    original_steps: of a model that was distilled to few steps, how many steps its teacher was followed in; those that
    it draws in are chosen among them.
    """

    num_train_steps: PositiveInt = 1000
    beta_start: Annotated[float, _BETA] = 0.00085
    beta_end: Annotated[float, _BETA] = 0.012
    beta_schedule: Literal["linear", "scaled_linear"] = "scaled_linear"
    steps_offset: NonNegativeInt = 1
    set_alpha_to_one: bool = False
    spacing: Spacing | None = None
    prediction_type: Prediction = "epsilon"
    original_steps: PositiveInt = 50

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.original_steps > self.num_train_steps:
            raise UserError(
                f"original_steps is {self.original_steps}; accepted are 1 to the schedule's {self.num_train_steps}"
            )

    def alphas_cumprod(self) -> Float64[np.ndarray, " num_train_steps"]:
        """alpha-bar of every training timestep."""
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

    def alpha(self, t: Int[jax.Array, " *B"]) -> Float[jax.Array, " *B"]:
        """alpha-bar at integer timesteps of the schedule."""
        return self.alphas_cumprod[t]

    def add_noise(
        self,
        latents: Float[jax.Array, " B *dims"],
        noise: Float[jax.Array, " B *dims"],
        t: Int[jax.Array, " B"],
    ) -> Float[jax.Array, " B *dims"]:
        """`add_noise` at timesteps."""
        return add_noise(latents, noise, self.alpha(t))

    def target(
        self,
        latents: Float[jax.Array, " B *dims"],
        noise: Float[jax.Array, " B *dims"],
        t: Int[jax.Array, " B"],
    ) -> Float[jax.Array, " B *dims"]:
        """What the model is to predict of `add_noise`'s result."""
        if self.config.prediction_type == "epsilon":
            return noise
        # v of (x_0, eps) mixes (eps, -x_0) as x_t mixes (x_0, eps).
        return add_noise(noise, -latents, self.alpha(t))

    def clean(
        self,
        noisy: Float[jax.Array, " B *dims"],
        predicted: Float[jax.Array, " B *dims"],
        t: Int[jax.Array, " B"],
    ) -> Float[jax.Array, " B *dims"]:
        """x_0 as the model's prediction has it."""
        alpha = by_row(self.alpha(t), noisy)
        if self.config.prediction_type == "epsilon":
            return (noisy - jnp.sqrt(1.0 - alpha) * predicted) / jnp.sqrt(alpha)
        return jnp.sqrt(alpha) * noisy - jnp.sqrt(1.0 - alpha) * predicted

    def noise(
        self,
        noisy: Float[jax.Array, " B *dims"],
        predicted: Float[jax.Array, " B *dims"],
        t: Int[jax.Array, " B"],
    ) -> Float[jax.Array, " B *dims"]:
        """eps as the model's prediction has it."""
        if self.config.prediction_type == "epsilon":
            return predicted
        return noise_of_velocity(noisy, predicted, by_row(self.alpha(t), noisy))


def by_row(values: jax.Array, like: jax.Array) -> jax.Array:
    """One number, or each row's, in a shape that multiplies `like` [B, ...]."""
    return values.reshape(values.shape + (1,) * (like.ndim - values.ndim)) if values.ndim else values


def add_noise(
    latents: Float[jax.Array, " B *dims"],
    noise: Float[jax.Array, " B *dims"],
    alpha: Float[jax.Array, ""] | Float[jax.Array, " B"],
) -> Float[jax.Array, " B *dims"]:
    """x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) eps. alpha: abar_t, one or each row's."""
    alpha = by_row(alpha, latents)
    return jnp.sqrt(alpha) * latents + jnp.sqrt(1.0 - alpha) * noise


def noise_of_velocity(
    latents: Float[jax.Array, " *dims"], velocity: Float[jax.Array, " *dims"], alpha: Float[jax.Array, "..."]
) -> Float[jax.Array, " *dims"]:
    """eps = sqrt(abar_t) v + sqrt(1 - abar_t) x_t."""
    return jnp.sqrt(alpha) * velocity + jnp.sqrt(1.0 - alpha) * latents
