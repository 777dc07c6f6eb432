"""Latent consistency distillation (Luo et al. 2023): a model learns to lead from any noise to the picture in one call.

f(x, t) = c_skip(t) x + c_out(t) x_0(x, t), with x_0 the picture that the model foresees, is trained to be the same all
along the path that its teacher, under guidance, takes from noise to a picture.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int, Key

from mvader_jax.diffusion.levels import consistency_timesteps
from mvader_jax.diffusion.loss import timestep_odds
from mvader_jax.diffusion.schedule import Schedule, by_row

Numbers = TypeVar("Numbers", np.ndarray, jax.Array)
#: (x_t [B, ...], t int32 [B]) -> the model's prediction [B, ...].
Predict = Callable[[jax.Array, jax.Array], jax.Array]
#: How the teacher's path is followed over one skip: DDIM's step, or Heun's, of two calls and second order.
Solver = Literal["ddim", "heun"]
_SIGMA_DATA, _TIMESTEP_SCALING = 0.5, 10.0


def boundary(timesteps: Numbers) -> tuple[Numbers, Numbers]:
    """(c_skip, c_out): 1 and 0 at t = 0, where f is x itself; the authors' numbers."""
    scaled = timesteps * _TIMESTEP_SCALING
    square = scaled**2 + _SIGMA_DATA**2
    return _SIGMA_DATA**2 / square, scaled / square**0.5


@dataclasses.dataclass(frozen=True)
class Path:
    """Skips along the teacher's path. solver: see `Solver`; timestep_bias: as of `diffusion_loss`; huber: c of the
    pseudo-Huber loss sqrt(d^2 + c^2) - c, which is the absolute error where it is small, and the square where it is
    large."""

    schedule: Schedule
    solver: Solver = "ddim"
    timestep_bias: float = 1.0
    huber: float = 0.001

    def loss(
        self,
        student: Predict,
        target: Predict,
        teacher: Predict,
        latents: Float[jax.Array, " B *dims"],
        key: Key[jax.Array, ""],
    ) -> tuple[Float32[jax.Array, " B"], Int[jax.Array, " B"]]:
        """(each row's pseudo-Huber distance of the student's f at t from the target's f one skip later, its t).

        t: one of `consistency_timesteps`. latents: scaled. No gradient goes to target and teacher.
        """
        config = self.schedule.config
        times = consistency_timesteps(config)
        time_key, noise_key = jax.random.split(key)
        odds = timestep_odds(self.schedule, self.timestep_bias)[times]
        index = jax.random.categorical(time_key, jnp.log(odds), shape=latents.shape[:1])
        t = jnp.asarray(times, jnp.int32)[index]
        later = jnp.maximum(t - config.num_train_steps // config.original_steps, 0)
        noisy = self.schedule.add_noise(latents, jax.random.normal(noise_key, latents.shape, jnp.float32), t)
        led = self.skip(teacher, noisy, t, later)
        expected = jax.lax.stop_gradient(self.consistent(target, led, later))
        error = self.consistent(student, noisy, t) - expected
        distance = jnp.sqrt(jnp.square(error) + self.huber**2) - self.huber
        return jnp.mean(distance, axis=tuple(range(1, error.ndim))), t

    def consistent(self, predict: Predict, x: jax.Array, t: Int[jax.Array, " B"]) -> jax.Array:
        """f(x, t)."""
        clean = self.schedule.clean(x, predict(x, t).astype(jnp.float32), t)
        skip, out = (by_row(part, x) for part in boundary(t.astype(jnp.float32)))
        return skip * x + out * clean

    def skip(
        self, predict: Predict, x: jax.Array, t: Int[jax.Array, " B"], later: Int[jax.Array, " B"]
    ) -> jax.Array:
        """The path's point at timestep `later` from that at `t`."""

        def noise(x: jax.Array, t: jax.Array) -> jax.Array:
            return self.schedule.noise(x, predict(x, t).astype(jnp.float32), t)

        def led(eps: jax.Array) -> jax.Array:
            alpha = by_row(self.schedule.alpha(t), x)
            clean = (x - jnp.sqrt(1 - alpha) * eps) / jnp.sqrt(alpha)
            return self.schedule.add_noise(clean, eps, later)

        eps = noise(x, t)
        if self.solver == "heun":
            eps = (eps + noise(led(eps), later)) / 2
        return led(eps)
