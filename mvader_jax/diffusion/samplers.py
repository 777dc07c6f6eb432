"""The samplers by name, and the one form in which they are called: `(denoise, x, levels)`.

    plms = SAMPLERS["plms"]
    levels = plms.levels(model.schedule, 50)                       # from noise to the picture
    latents = plms(denoise, noise, levels)
    levels = levels[start_at(50, strength=0.6):]                   # img2img: the last 30 of the 50 steps
    latents = plms(denoise, levels.noised(latents, noise), levels)

`levels.late(start)` leaves out a traced number of steps in place of the slice. `denoise(x, t)` is the model's
prediction with everything else closed over: x as the latents, t a traced int32 []; of the noise, or of v where the
schedule's `prediction_type` says so, which becomes one of the noise here, call by call. Every sampler is pure and runs
whole inside `jit` as one loop, `Levels.walk`, with one call of `denoise` in it. Its coefficients are computed in
float64 on the host; the state is float32 at least, whatever the model computes in.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Float, Key

from mvader_jax.diffusion import pndm, solvers
from mvader_jax.diffusion.levels import Levels, consistency_levels, levels_of
from mvader_jax.diffusion.pndm import Denoise
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Sampler:
    """One row of `SAMPLERS`.

    solve: (denoise, latents, levels) -> latents; with `stochastic`, also eta and keys.
    about: what it is, in a line.
    levels: (schedule, steps) -> the levels of a whole run, by the schedule's spacing or else its own.
    extra_calls: model calls beyond one per step, of a run of so many steps.
    stochastic: whether it takes eta > 0.
    distilled: whether it is for models that were distilled to few steps; it adds fresh noise at every step but the last.
    walks: whether all that it takes from the levels goes through `Levels.walk` and `at_start`, so that the step it
        starts at may be traced; a program is compiled for each start of one that reads them itself.
    """

    solve: Callable[..., jax.Array]
    about: str
    levels: Callable[[ScheduleConfig, int], Levels] = levels_of
    extra_calls: Callable[[int], int] = lambda _: 0
    stochastic: bool = False
    distilled: bool = False
    walks: bool = False

    def __call__(
        self,
        denoise: Denoise,
        latents: Float[jax.Array, " *dims"],
        levels: Levels,
        *,
        eta: float = 0.0,
        keys: Key[jax.Array, " B"] | None = None,
    ) -> Float[jax.Array, " *dims"]:
        """Latents at the first of `levels` -> the picture's latents; as they are where none is left.

        levels, eta are host values (static under `jit`). eta: 0 to 1, the part of fresh noise of a
        stochastic sampler. keys: a PRNG key per image (`noise.sampler_keys`), needed where noise is drawn.
        Raises UserError for another eta, and for eta above 0 where the sampler has none.
        """
        if not 0.0 <= eta <= 1.0:
            raise UserError(f"eta is {eta}; accepted are 0 to 1")
        if eta and not self.stochastic:
            stochastic = ", ".join(name for name, sampler in SAMPLERS.items() if sampler.stochastic)
            raise UserError(f"eta is {eta}, but this sampler takes none; those that do: {stochastic}")
        x = latents.astype(jnp.promote_types(latents.dtype, jnp.float32))
        if not len(levels):
            return x
        denoise = levels.noise(denoise)
        if not self.draws(eta):
            return self.solve(denoise, x, levels)
        if keys is None:
            raise ValueError("noise is drawn, which needs keys")
        return self.solve(denoise, x, levels, keys=keys, **({"eta": eta} if eta else {}))

    def draws(self, eta: float) -> bool:
        """Whether it adds fresh noise."""
        return eta > 0 or self.distilled

    def calls(self, steps: int) -> int:
        """How often a run of so many steps calls the model."""
        return steps + self.extra_calls(steps)


def start_at(steps: int, strength: float) -> int:
    """The step at which img2img begins: the last floor(steps * strength) steps are run (diffusers' rule).

    strength: 0 (the image itself) to 1 (all steps). Raises UserError for anything else.
    """
    if not 0.0 <= strength <= 1.0:
        raise UserError(f"the strength is {strength}; accepted are 0 (the image itself) to 1 (noise alone)")
    # 0.58 * 50 is 28.999999999999996.
    return steps - math.floor(steps * strength + 1e-9)


def _runge_kutta(steps: int) -> int:
    """F-PNDM calls the model four times in each of its Runge-Kutta steps."""
    return 3 * min(3, steps)


#: The PNDM paper takes alpha-bar one timestep after the one that the model is told.
_paper_levels = partial(levels_of, alpha_later=1)

#: `plms` is what Stable Diffusion ran and, likely, the paper; `ddim` is the default (docs/samplers.md says why).
SAMPLERS: dict[str, Sampler] = {
    "plms": Sampler(
        pndm.plms,
        "PNDM as Stable Diffusion ran it, and likely the paper",
        extra_calls=lambda _: 1,
        walks=True,
    ),
    "plms-limited": Sampler(
        pndm.plms_limited,
        "PLMS that trusts its differences as far as they shrink: the same for short steps, steadier at high guidance",
        extra_calls=lambda _: 1,
        walks=True,
    ),
    "pndm": Sampler(
        pndm.pndm,
        "F-PNDM in the PNDM paper's own indexing (luping-liu/PNDM)",
        _paper_levels,
        extra_calls=_runge_kutta,
        walks=True,
    ),
    "pndm-diffusers": Sampler(
        pndm.pndm_diffusers,
        "F-PNDM as diffusers' PNDMScheduler reads it",
        extra_calls=_runge_kutta,
        walks=True,
    ),
    "s-pndm": Sampler(
        pndm.s_pndm,
        "second-order PNDM in the paper's own indexing",
        _paper_levels,
        extra_calls=lambda _: 1,
        walks=True,
    ),
    "ddim": Sampler(
        solvers.ddim,
        "DDIM, the default; eta from 0 (deterministic) to 1 (fresh noise every step)",
        stochastic=True,
        walks=True,
    ),
    "dpm-solver++2m": Sampler(
        solvers.dpm_solver_2m,
        "DPM-Solver++(2M), the one for 15 to 25 steps",
        partial(levels_of, spacing="linspace", endpoint=True),
        walks=True,
    ),
    "euler": Sampler(
        solvers.euler,
        "Euler's method in sigma, ending at sigma 0",
        walks=True,
    ),
    "lcm": Sampler(
        solvers.lcm,
        "of a UNet distilled to few steps: 1 to 8, one call each",
        consistency_levels,
        distilled=True,
        walks=True,
    ),
}
#: The samplers of this file. Programs of these alone are kept between runs: this package's version tells what
#: they do, and nothing tells whether a sampler that a user added has changed.
OWN = dict(SAMPLERS)
