"""The noise levels that a run visits: which timesteps, spaced how, and the alpha-bar of each.

levels = levels_of(config, 50)            # 50 steps, spaced as the schedule says
levels[20:]                               # img2img: the last 30 of them
levels.noised(latents, noise)             # what the first of these steps begins with
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float64, Int, Int64

from mvader_jax.diffusion.schedule import ScheduleConfig, Spacing, add_noise
from mvader_jax.errors import UserError

#: The timestep at which the last step ends: below all of the schedule's lies the picture itself.
PICTURE = -1


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
    """The levels at which a run's steps begin; host values, constants of the program that they shape.

    timesteps: descending; what the model is told at each.
    table: alpha-bar of every timestep 0 to T - 1, for levels between the steps' too.
    final: alpha-bar where the last step ends.
    first: the number of steps of the whole run that come before these.
    """

    timesteps: Int64[np.ndarray, " n"]
    table: Float64[np.ndarray, " T"]
    final: float
    first: int = 0

    def __len__(self) -> int:
        return len(self.timesteps)

    def __getitem__(self, steps: slice) -> Levels:
        """The run without its first steps. Raises ValueError for a slice that is not `[start:]`."""
        start, stop, stride = steps.indices(len(self))
        if (stop, stride) != (len(self), 1):
            raise ValueError("only first steps can be left out of a run: levels[start:]")
        return dataclasses.replace(self, timesteps=self.timesteps[start:], first=self.first + start)

    @property
    def steps(self) -> int:
        """The number of steps of the whole run."""
        return self.first + len(self)

    @property
    def alphas(self) -> Float64[np.ndarray, " {len(self)+1}"]:
        """alpha-bar at which each step begins, then where the last one ends."""
        return self.alpha(np.append(self.timesteps, PICTURE))

    def alpha(self, timesteps: Int[np.ndarray, " *n"]) -> Float64[np.ndarray, " *n"]:
        """alpha-bar at timesteps; `final` at PICTURE."""
        return np.where(timesteps < 0, self.final, self.table[np.maximum(timesteps, 0)])

    def noised(
        self, latents: Float[jax.Array, " B *dims"], noise: Float[jax.Array, " B *dims"]
    ) -> Float[jax.Array, " B *dims"]:
        """Clean latents with the noise that the first step begins with; unchanged where no step is left."""
        if not len(self):
            return latents
        dtype = jax.dtypes.canonicalize_dtype(jnp.float64)
        return add_noise(latents, noise, jnp.asarray(self.alphas[0], dtype))


def levels_of(
    config: ScheduleConfig,
    steps: int,
    spacing: Spacing = "leading",
    *,
    endpoint: bool = False,
    alpha_later: int = 0,
) -> Levels:
    """The levels of a whole run of `steps` steps.

    spacing: where the schedule names none. endpoint: see `timesteps_of`. alpha_later: how many timesteps
    after what the model is told alpha-bar is taken; the schedule's `steps_offset`, which does the same to
    the model, is then left out. Raises UserError as `check_steps`.
    """
    if alpha_later:
        config = dataclasses.replace(config, steps_offset=0)
    table = config.alphas_cumprod()
    return Levels(
        timesteps_of(config, steps, config.spacing or spacing, endpoint=endpoint),
        table[np.minimum(np.arange(len(table)) + alpha_later, len(table) - 1)],
        1.0 if config.set_alpha_to_one else float(table[0]),
    )


def timesteps_of(
    config: ScheduleConfig, steps: int, spacing: Spacing, *, endpoint: bool = False
) -> Int64[np.ndarray, " {steps}"]:
    """The timesteps of `steps` sampling steps of a schedule of T, descending.

    leading: multiples of T // steps plus `steps_offset` (as Stable Diffusion 1.4 was released). trailing:
    T - 1 and every T / steps below it. linspace: even from T - 1 to 0; both rounded to whole timesteps.
    All three are diffusers' (there Euler's linspace stays fractional). A timestep past the schedule's end,
    where the offset leads at `steps` = T, is its last.

    endpoint: leading and linspace count the picture as one more level, after the last timestep, as
    DPM-Solver's do. Raises UserError as `check_steps`.
    """
    check_steps(config, steps)
    total, count = config.num_train_steps, steps + endpoint
    if spacing == "trailing":
        spaced = np.round(total - np.arange(steps) * (total / steps)) - 1
    elif spacing == "linspace":
        spaced = np.linspace(0, total - 1, count).round()[::-1][:steps]
    else:
        spaced = (np.arange(count) * max(total // count, 1) + config.steps_offset)[::-1][:steps]
    return np.clip(spaced, 0, total - 1).astype(np.int64)


def check_steps(config: ScheduleConfig, steps: int) -> None:
    """The one rule for step counts: 1 to the schedule's length. Raises UserError otherwise."""
    if not 1 <= steps <= config.num_train_steps:
        raise UserError(f"steps is {steps}; accepted are 1 to {config.num_train_steps}")
