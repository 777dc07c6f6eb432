"""What the samplers' originals give on a small problem, recorded; and how far ours are from it.

The problem: float64 latents [1, -0.5, 2] on Stable Diffusion 1.4's schedule under `field`. The numbers come
from the originals themselves: diffusers 0.42 and luping-liu/PNDM (runner/method.py, commit e771949), made to
run in float64 from beginning to end; what is this package's own comes from `sampler_references.py`. The tests
beside this file compute diffusers' again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
import numpy as np

from mvader_jax.diffusion.samplers import SAMPLERS
from mvader_jax.diffusion.schedule import ScheduleConfig

#: Those that no distilled model is needed for; lcm has a page of its own, test_consistency.py.
GUIDED = [name for name, sampler in SAMPLERS.items() if not sampler.distilled]
#: The latents of the problem.
START = np.array([1.0, -0.5, 2.0])


@dataclasses.dataclass(frozen=True)
class Recorded:
    """The latents that `source` arrives at."""

    sampler: str
    steps: int
    expected: tuple[float, float, float]
    source: str
    set_alpha_to_one: bool = False


@dataclasses.dataclass(frozen=True)
class Measured:
    """error: the largest relative difference of a component; calls: of the model, counted as they happen."""

    recorded: Recorded
    error: float
    calls: int


def field(x: jax.Array, t: jax.Array) -> jax.Array:
    """The model: eps = tanh(x) (1/2 + t / 2000)."""
    return jnp.tanh(x) * (0.5 + t.astype(x.dtype) / 2000)


def measure(rows: Iterable[Recorded]) -> Iterator[Measured]:
    """Runs each recorded sampler in float64."""
    with jax.enable_x64(True):
        for row in rows:
            sampler, config = SAMPLERS[row.sampler], ScheduleConfig(set_alpha_to_one=row.set_alpha_to_one)
            called: list[int] = []

            def denoise(x: jax.Array, t: jax.Array, called: list[int] = called) -> jax.Array:
                jax.debug.callback(lambda t: called.append(int(t)), t)
                return field(x, t)

            out = sampler(denoise, jnp.asarray(START), sampler.levels(config, row.steps))
            expected = np.array(row.expected)
            error = np.max(np.abs(np.asarray(out) - expected) / np.abs(expected))
            jax.effects_barrier()
            yield Measured(row, float(error), len(called))


_PLMS = "diffusers PNDMScheduler, skip_prk_steps"
_OURS = "no original: sampler_references.py"
_PRK = "diffusers PNDMScheduler"
_PAPER_F = "luping-liu/PNDM, F-PNDM"
_PAPER_S = "luping-liu/PNDM, S-PNDM"
_DDIM = "diffusers DDIMScheduler"
_DPM = "diffusers DPMSolverMultistepScheduler"
_EULER = "diffusers EulerDiscreteScheduler"

RECORDED = (
    Recorded("plms", 50, (3.2814674784673667, -0.6884117059731435, 14.837266196495676), _PLMS),
    Recorded("plms", 37, (3.185078474611785, -0.6840105588602593, 14.224790332526982), _PLMS),
    Recorded("plms", 20, (2.9394605233442297, -0.6716228844409745, 12.703582492131995), _PLMS),
    Recorded("plms", 50, (3.2684530813741497, -0.6802411637316363, 14.829123730586423), _PLMS, True),
    Recorded("plms-limited", 50, (3.28129186143245, -0.6884217692614633, 14.837268457684779), _OURS),
    Recorded("plms-limited", 20, (2.9375671367649723, -0.6714779605876279, 12.704143070484651), _OURS),
    Recorded("pndm", 50, (3.286291431727011, -0.6896683602060789, 14.844229984687892), _PAPER_F),
    Recorded("pndm", 20, (2.9450261291177995, -0.672658321121158, 12.711904834273088), _PAPER_F),
    Recorded("pndm-diffusers", 50, (3.281549252511355, -0.6883884467695731, 14.837786474978206), _PRK),
    Recorded("pndm-diffusers", 27, (3.0711735120293038, -0.6784352002067883, 13.507732449076345), _PRK),
    Recorded("s-pndm", 50, (3.284715597497024, -0.689438050573981, 14.84145056996386), _PAPER_S),
    Recorded("s-pndm", 20, (2.936881926626995, -0.6714103712318534, 12.703375107244927), _PAPER_S),
    Recorded("ddim", 50, (3.281741264598711, -0.6842821553700263, 14.791987051702801), _DDIM),
    Recorded("ddim", 20, (2.937339566142855, -0.6618251895717646, 12.60992771813282), _DDIM),
    Recorded("dpm-solver++2m", 20, (3.5344976779654025, -0.7095979134795605, 16.347097998583145), _DPM),
    Recorded("dpm-solver++2m", 10, (3.5240761233244036, -0.6884177465450262, 16.283716967235975), _DPM),
    Recorded("dpm-solver++2m", 20, (3.503154225762923, -0.6862038756886436, 16.321052838091145), _DPM, True),
    Recorded("euler", 50, (3.2685794880030494, -0.6758661418094252, 14.783679494089736), _EULER),
    Recorded("euler", 20, (2.924071595147633, -0.6536144325274648, 12.600692193682537), _EULER),
)
