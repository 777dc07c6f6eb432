"""The samplers by name, and the one form in which they are called.

    SAMPLERS["plms"](denoise, latents, schedule, 50)                          # from noise to the picture
    start = start_at(50, strength=0.6)                                        # img2img: 30 of the 50 steps
    noisy = SAMPLERS["plms"].add_noise(latents, noise, schedule, 50, start)
    SAMPLERS["plms"](denoise, noisy, schedule, 50, start=start)

`denoise(x, t)` is the model's noise prediction with everything else closed over: x as the latents, t a
traced int32 []. Every sampler is pure and runs whole inside `jit` as one `lax.scan` with one call of
`denoise` in it. Its coefficients are computed in float64 on the host; the state is float32 at least,
whatever the model computes in.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from mvader_jax.diffusion import pndm, solvers
from mvader_jax.diffusion.pndm import Denoise
from mvader_jax.diffusion.schedule import Schedule, ScheduleConfig, leading_timesteps, linspace_timesteps
from mvader_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampler:
    """One row of `SAMPLERS`.

    solve: (denoise, latents, config, steps, start) -> latents; with `stochastic`, also eta and keys.
    levels: the noise levels, as timesteps of the schedule, at which its steps begin: descending, [steps].
    extra_calls: model calls beyond one a step, of a run of so many steps.
    stochastic: whether it takes eta > 0.
    """

    solve: Callable[..., jax.Array]
    levels: Callable[[ScheduleConfig, int], np.ndarray]
    extra_calls: Callable[[int], int] = lambda _: 0
    stochastic: bool = False

    def __call__(
        self,
        denoise: Denoise,
        latents: jax.Array,
        schedule: Schedule,
        steps: int,
        *,
        start: int = 0,
        eta: float = 0.0,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """Latents [B, ...] at the noise level where step `start` begins -> the picture's latents.

        steps, start, eta are Python numbers (static under `jit`). start: 0 (from pure noise) to `steps`
        (nothing is left to do: the latents come back as they are); steps before it are left out. eta: 0
        to 1, the share of fresh noise of a stochastic sampler; above 0 it needs `keys`, a PRNG key an
        image [B] (`noise.sampler_keys`). Raises UserError for numbers outside these ranges, and for eta
        above 0 where the sampler is deterministic.
        """
        self._check(schedule.config, steps, start)
        if not 0.0 <= eta <= 1.0:
            raise UserError(f"eta is {eta}; accepted are 0 to 1")
        if eta and not self.stochastic:
            stochastic = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.stochastic)
            raise UserError(f"eta is {eta}, but this sampler adds no noise; those that do: {stochastic}")
        x = latents.astype(jnp.promote_types(latents.dtype, jnp.float32))
        if start == steps:
            return x
        if not eta:
            return self.solve(denoise, x, schedule.config, steps, start)
        if keys is None:
            raise ValueError("eta > 0 draws noise and needs keys")
        return self.solve(denoise, x, schedule.config, steps, start, eta, keys)

    def calls(self, steps: int, start: int = 0) -> int:
        """How often a run calls the model."""
        return steps - start + self.extra_calls(steps - start)

    def add_noise(
        self, latents: jax.Array, noise: jax.Array, schedule: Schedule, steps: int, start: int
    ) -> jax.Array:
        """Clean latents with the noise that step `start` begins with; unchanged where `start` is `steps`.

        latents, noise: [B, h, w, C]. Raises UserError as `__call__`.
        """
        self._check(schedule.config, steps, start)
        if start == steps:
            return latents
        level = int(self.levels(schedule.config, steps)[start])
        return schedule.add_noise(latents, noise, jnp.full(latents.shape[:1], level, jnp.int32))

    def _check(self, config: ScheduleConfig, steps: int, start: int) -> None:
        self.levels(config, steps)  # refuses step counts
        if not 0 <= start <= steps:
            raise UserError(f"start is {start}; accepted are 0 to the number of steps, {steps}")


def start_at(steps: int, strength: float) -> int:
    """The step at which img2img begins: the last floor(steps * strength) steps are run (diffusers' rule).

    strength: 0 (the image itself) to 1 (all steps). Raises UserError for anything else.
    """
    if not 0.0 <= strength <= 1.0:
        raise UserError(f"the strength is {strength}; accepted are 0 (the image itself) to 1 (noise alone)")
    # 0.58 * 50 is 28.999999999999996.
    return steps - math.floor(steps * strength + 1e-9)


#: `plms` is what Stable Diffusion ran and this project's default.
SAMPLERS: dict[str, Sampler] = {
    "plms": Sampler(pndm.plms, leading_timesteps, lambda steps: 1),
    "pndm": Sampler(pndm.pndm, pndm.paper_levels, lambda steps: 3 * min(3, steps)),
    "pndm-diffusers": Sampler(pndm.pndm_diffusers, leading_timesteps, lambda steps: 3 * min(3, steps)),
    "s-pndm": Sampler(pndm.s_pndm, pndm.paper_levels, lambda steps: 1),
    "ddim": Sampler(solvers.ddim, leading_timesteps, stochastic=True),
    "dpm-solver++2m": Sampler(solvers.dpm_solver_2m, linspace_timesteps),
    "euler": Sampler(solvers.euler, leading_timesteps),
}
#: As they stand in this file: what is kept of their programs between runs holds for these.
OWN = dict(SAMPLERS)
