"""The samplers written again, step by step in NumPy float64 from their papers, for a scalar field.

`field(x, t)` is the model. Each returns (latents, the timesteps the model was called at). times: where the
steps of the whole run begin, in place of the sampler's own.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import numpy as np

from mvader_jax.diffusion.schedule import ScheduleConfig

Result = tuple[np.ndarray, list[int]]


def field(x: np.ndarray, t: float) -> np.ndarray:
    return np.tanh(x) * (0.5 + t / 2000)


class _Run:
    """A schedule, the model and its calls. alpha(-1) is the picture's."""

    def __init__(self, config: ScheduleConfig) -> None:
        self.table = config.alphas_cumprod()
        self.final = 1.0 if config.set_alpha_to_one else self.table[0]
        self.called: list[int] = []

    def alpha(self, t: int) -> float:
        return self.final if t < 0 else float(self.table[min(t, len(self.table) - 1)])

    def model(self, x: np.ndarray, t: int) -> np.ndarray:
        self.called.append(max(t, 0))
        return field(x, max(t, 0))

    def phi(self, x: np.ndarray, e: np.ndarray, t: int, s: int) -> np.ndarray:
        """DDIM's step (eq. 12 with sigma 0), of which PNDM eq. 11 is another form."""
        a, b = self.alpha(t), self.alpha(s)
        return math.sqrt(b) * (x - math.sqrt(1 - a) * e) / math.sqrt(a) + math.sqrt(1 - b) * e


Times = Sequence[int] | None


def leading(config: ScheduleConfig, steps: int, start: int, times: Times) -> list[int]:
    if times is None:
        total = config.num_train_steps
        times = [min(i * (total // steps) + config.steps_offset, total - 1) for i in range(steps)][::-1]
    return list(times[start:])


def plms(x: np.ndarray, config: ScheduleConfig, steps: int, start: int = 0, times: Times = None) -> Result:
    run, ets = _Run(config), []
    times = [*leading(config, steps, start, times), -1]
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        e = run.model(x, t)
        ets.append(e)
        if i == 0:
            e = (e + run.model(run.phi(x, e, t, s), s)) / 2
        elif i == 1:
            e = (3 * ets[-1] - ets[-2]) / 2
        elif i == 2:
            e = (23 * ets[-1] - 16 * ets[-2] + 5 * ets[-3]) / 12
        else:
            e = (55 * ets[-1] - 59 * ets[-2] + 37 * ets[-3] - 9 * ets[-4]) / 24
        x = run.phi(x, e, t, s)
    return x, run.called


def plms_limited(
    x: np.ndarray, config: ScheduleConfig, steps: int, start: int = 0, times: Times = None
) -> Result:
    """PLMS in backward differences, each component's next one at most half as trusted as it exceeds the last."""
    run, kept = _Run(config), []
    times = [*leading(config, steps, start, times), -1]
    for i, (t, s) in enumerate(itertools.pairwise(times)):
        e = run.model(x, t)
        kept.append(e)
        if i == 0:
            x = run.phi(x, (e + run.model(run.phi(x, e, t, s), s)) / 2, t, s)
            continue
        differences = [np.diff(kept[-1 - n :], n, axis=0)[-1] for n in range(min(i + 1, 4))]
        mixed, trust = differences[0].copy(), np.ones_like(e)
        for n, weight in enumerate((1 / 2, 5 / 12, 3 / 8)[: len(differences) - 1], start=1):
            before, own = np.abs(differences[n - 1]), np.abs(differences[n])
            trust *= np.minimum(1.0, 0.5 * before / np.maximum(own, 1e-300))
            mixed += weight * trust * differences[n]
        x = run.phi(x, mixed, t, s)
    return x, run.called


def _paper(config: ScheduleConfig, steps: int, start: int, times: Times) -> list[int]:
    if times is None:
        times = [i * (config.num_train_steps // steps) for i in range(steps)][::-1]
    return [*times[start:], -1]


def s_pndm(x: np.ndarray, config: ScheduleConfig, steps: int, start: int = 0, times: Times = None) -> Result:
    run, ets = _Run(config), []
    times = _paper(config, steps, start, times)

    def phi(x: np.ndarray, e: np.ndarray, t: int, s: int) -> np.ndarray:
        return run.phi(x, e, t + 1, s + 1 if s >= 0 else -1)

    for t, s in itertools.pairwise(times):
        e = run.model(x, t)
        ets.append(e)
        e = (e + run.model(phi(x, e, t, s), s)) / 2 if len(ets) == 1 else (3 * ets[-1] - ets[-2]) / 2
        x = phi(x, e, t, s)
    return x, run.called


def pndm(x: np.ndarray, config: ScheduleConfig, steps: int, start: int = 0, times: Times = None) -> Result:
    """Algorithm 2: pseudo Runge-Kutta (eq. 13) three times, then pseudo linear multistep (eq. 12)."""
    run, ets = _Run(config), []
    times = _paper(config, steps, start, times)

    def phi(x: np.ndarray, e: np.ndarray, t: int, s: int) -> np.ndarray:
        return run.phi(x, e, t + 1, s + 1 if s >= 0 else -1)

    for t, s in itertools.pairwise(times):
        middle = int((t + s) / 2)
        e1 = run.model(x, t)
        ets.append(e1)
        if len(ets) <= 3:
            e2 = run.model(phi(x, e1, t, middle), middle)
            e3 = run.model(phi(x, e2, t, middle), middle)
            e4 = run.model(phi(x, e3, t, s), s)
            e = (e1 + 2 * e2 + 2 * e3 + e4) / 6
        else:
            e = (55 * ets[-1] - 59 * ets[-2] + 37 * ets[-3] - 9 * ets[-4]) / 24
        x = phi(x, e, t, s)
    return x, run.called


def pndm_diffusers(
    x: np.ndarray, config: ScheduleConfig, steps: int, start: int = 0, times: Times = None
) -> Result:
    run, ets = _Run(config), []
    times = [*leading(config, steps, start, times), -1]
    for t, s in itertools.pairwise(times):
        half = (t - s) // 2
        e1 = run.model(x, t)
        ets.append(e1)
        if len(ets) <= 3:
            e2 = run.model(run.phi(x, e1, t, t - half), s + half)
            e3 = run.model(run.phi(x, e2, t, s + half), s + half)
            e4 = run.model(run.phi(x, e3, t, s), s)
            e = (e1 + 2 * e2 + 2 * e3 + e4) / 6
        else:
            e = (55 * ets[-1] - 59 * ets[-2] + 37 * ets[-3] - 9 * ets[-4]) / 24
        x = run.phi(x, e, t, s)
    return x, run.called


def ddim(
    x: np.ndarray,
    config: ScheduleConfig,
    steps: int,
    start: int = 0,
    eta: float = 0.0,
    noise: np.ndarray | None = None,
    times: Times = None,
) -> Result:
    """Eq. 12 and 16. noise: [steps, ...], that of every step of a whole run."""
    run = _Run(config)
    times = [*leading(config, steps, start, times), -1]
    for i, (t, s) in enumerate(itertools.pairwise(times), start):
        a, b = run.alpha(t), run.alpha(s)
        sigma = eta * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
        e = run.model(x, t)
        clean = (x - math.sqrt(1 - a) * e) / math.sqrt(a)
        x = math.sqrt(b) * clean + math.sqrt(1 - b - sigma**2) * e
        if noise is not None:
            x = x + sigma * noise[i]
    return x, run.called


def euler(x: np.ndarray, config: ScheduleConfig, steps: int, start: int = 0, times: Times = None) -> Result:
    """Karras et al. algorithm 1 (no churn) on k-diffusion's wrapping of an eps model."""
    run = _Run(config)
    times = leading(config, steps, start, times)
    sigmas = [math.sqrt((1 - run.alpha(t)) / run.alpha(t)) for t in times] + [0.0]
    x = x * math.sqrt(sigmas[0] ** 2 + 1)
    for i, t in enumerate(times):
        denoised = x - sigmas[i] * run.model(x / math.sqrt(sigmas[i] ** 2 + 1), t)
        slope = (x - denoised) / sigmas[i]
        x = x + (sigmas[i + 1] - sigmas[i]) * slope
    return x, run.called


def dpm_solver_2m(
    x: np.ndarray, config: ScheduleConfig, steps: int, start: int = 0, times: Times = None
) -> Result:
    """DPM-Solver++ algorithm 2: x_i = sigma_i / sigma_{i-1} x - alpha_i (e^{-h_i} - 1) D_i."""
    run = _Run(config)
    if times is None:
        times = [round(v) for v in np.linspace(0, config.num_train_steps - 1, steps + 1)][:0:-1]
    times = times[start:]
    levels = [run.alpha(t) for t in [*times, -1]]
    alphas, sigmas = [math.sqrt(a) for a in levels], [math.sqrt(1 - a) for a in levels]
    lambdas = [math.log(a / s) if s else math.inf for a, s in zip(alphas, sigmas, strict=True)]
    data: list[np.ndarray] = []
    for i, t in enumerate(times):
        data.append((x - sigmas[i] * run.model(x, t)) / alphas[i])
        h = lambdas[i + 1] - lambdas[i]
        last = i == len(times) - 1 and (steps < 15 or math.isinf(h))
        if i == 0 or last or lambdas[i] == lambdas[i - 1]:
            mix = data[-1]
        elif h == 0:
            continue
        else:
            r = (lambdas[i] - lambdas[i - 1]) / h
            mix = (1 + 1 / (2 * r)) * data[-1] - 1 / (2 * r) * data[-2]
        x = sigmas[i + 1] / sigmas[i] * x - alphas[i + 1] * math.expm1(-h) * mix
    return x, run.called


REFERENCES = {
    "plms": plms,
    "plms-limited": plms_limited,
    "pndm": pndm,
    "pndm-diffusers": pndm_diffusers,
    "s-pndm": s_pndm,
    "ddim": ddim,
    "dpm-solver++2m": dpm_solver_2m,
    "euler": euler,
}
