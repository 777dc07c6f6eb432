"""Pseudo numerical methods for diffusion models (PNDM; Liu et al. 2022), in the readings that exist.

Each is written as the list of its model calls; `_run` scans over them. A step goes from a noise level to
the next by `transfer` along a mix of noise predictions: Runge-Kutta's or Adams-Bashforth's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mvader_jax.diffusion.schedule import ScheduleConfig, check_steps, leading_timesteps

Denoise = Callable[[jax.Array, jax.Array], jax.Array]

#: Where the last step ends: below every timestep (see `Schedule.alpha`).
PICTURE = -1

#: Adams-Bashforth coefficients by order, newest first (PNDM eq. 12).
_ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
#: Predictions are kept in slots: a ring of four for the history, three for a step's own.
_HISTORY, _SLOTS = 4, 7


class _Call(NamedTuple):
    """One model call at timestep t, whose prediction goes into `slot`; then a step.

    The step leads from noise level `source` to `target` along sum(weight * prediction); from where the
    call before started, if `again`, else from where it ended.
    """

    t: int
    source: int
    target: int
    slot: int
    weights: dict[int, float]
    again: bool = False


def plms(denoise: Denoise, latents: jax.Array, config: ScheduleConfig, steps: int, start: int) -> jax.Array:
    """PNDM as Stable Diffusion ran it (PLMS; CompVis plms.py): one model call more than steps.

    The first step is taken twice: an Euler step, then again from its beginning with the mean of the
    predictions at both ends; the second prediction is not kept. Later steps are Adams-Bashforth of
    order 2, 3, then 4.
    """
    levels = [*leading_timesteps(config, steps)[start:], PICTURE]
    return _run(denoise, latents, config, _multistep(levels, levels, order=4))


def s_pndm(denoise: Denoise, latents: jax.Array, config: ScheduleConfig, steps: int, start: int) -> jax.Array:
    """S-PNDM (PNDM appendix; luping-liu/PNDM gen_order_2): as `plms` of order 2, in the paper's indexing."""
    times, levels = _paper_times(config, steps, start)
    return _run(denoise, latents, config, _multistep(times, levels, order=2))


def pndm(denoise: Denoise, latents: jax.Array, config: ScheduleConfig, steps: int, start: int) -> jax.Array:
    """F-PNDM (PNDM algorithm 2; luping-liu/PNDM gen_order_4): 9 model calls more than steps.

    Three Runge-Kutta steps (as many as there are, below three), then Adams-Bashforth of order 4. The
    model is called at t = 0, d, 2d, ...; alpha-bar is taken at t + 1, and the last step ends at t = -1.
    """
    times, levels = _paper_times(config, steps, start)
    calls = []
    for i in range(len(times) - 1):
        middle = int((times[i] + times[i + 1]) / 2)
        calls += _step(i, times, levels, (middle, middle + 1, middle + 1))
    return _run(denoise, latents, config, calls)


def pndm_diffusers(
    denoise: Denoise, latents: jax.Array, config: ScheduleConfig, steps: int, start: int
) -> jax.Array:
    """F-PNDM as diffusers' PNDMScheduler reads it (skip_prk_steps off): on the timesteps of `plms`.

    Where the stride d is odd, its first half step ends at t - d // 2 but the model is called at
    t - d + d // 2, as there.
    """
    levels = [*leading_timesteps(config, steps)[start:], PICTURE]
    calls = []
    for i in range(len(levels) - 1):
        half = (levels[i] - levels[i + 1]) // 2
        middle = levels[i + 1] + half
        calls += _step(i, levels, levels, (middle, levels[i] - half, middle))
    return _run(denoise, latents, config, calls)


def paper_levels(config: ScheduleConfig, steps: int) -> np.ndarray:
    """Noise levels in the PNDM paper's indexing: t + 1 for t = 0, d, 2d, ..., descending int64 [steps]."""
    check_steps(config, steps)
    times = np.arange(steps, dtype=np.int64)[::-1] * (config.num_train_steps // steps)
    return np.minimum(times + 1, config.num_train_steps - 1)


def _paper_times(config: ScheduleConfig, steps: int, start: int) -> tuple[list[int], list[int]]:
    """Model timesteps and noise levels from step `start` on, and where the last step ends."""
    times = np.arange(steps)[::-1] * (config.num_train_steps // steps)
    return [*times[start:], -1], [*paper_levels(config, steps)[start:], PICTURE]


def _multistep(times: Sequence[int], levels: Sequence[int], order: int) -> list[_Call]:
    """Improved Euler, then Adams-Bashforth up to `order`."""
    first = (levels[0], levels[1])
    calls = [
        _Call(times[0], *first, 0, {0: 1.0}),
        _Call(times[1], *first, _HISTORY, {0: 0.5, _HISTORY: 0.5}, again=True),
    ]
    for i in range(1, len(levels) - 1):
        weights = _adams_bashforth(i, min(i + 1, order))
        calls.append(_Call(times[i], levels[i], levels[i + 1], i % _HISTORY, weights))
    return calls


def _step(i: int, times: Sequence[int], levels: Sequence[int], middle: tuple[int, int, int]) -> list[_Call]:
    """Step i of F-PNDM. middle: the timestep half way, and the levels that the two half steps end at."""
    source, target, kept = levels[i], levels[i + 1], i % _HISTORY
    if i >= 3:
        return [_Call(times[i], source, target, kept, _adams_bashforth(i, 4))]
    t, first, second = middle
    a, b, c = _HISTORY, _HISTORY + 1, _HISTORY + 2
    mean = {kept: 1 / 6, a: 1 / 3, b: 1 / 3, c: 1 / 6}
    return [
        _Call(times[i], source, first, kept, {kept: 1.0}),
        _Call(t, source, second, a, {a: 1.0}, again=True),
        _Call(t, source, target, b, {b: 1.0}, again=True),
        _Call(times[i + 1], source, target, c, mean, again=True),
    ]


def _adams_bashforth(i: int, order: int) -> dict[int, float]:
    """Weights of the slots of predictions i, i - 1, ..."""
    return {(i - age) % _HISTORY: weight for age, weight in enumerate(_ADAMS_BASHFORTH[order - 1])}


def transfer(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """phi of PNDM eq. 11 from alpha-bar a to b, as coefficients: x' = first * x + second * eps."""
    return np.sqrt(b / a), -(b - a) / (a * np.sqrt(1 - b) + np.sqrt(a * (1 - a) * b))


def _run(denoise: Denoise, latents: jax.Array, config: ScheduleConfig, calls: list[_Call]) -> jax.Array:
    dtype = latents.dtype
    source = config.alphas(np.array([call.source for call in calls]))
    target = config.alphas(np.array([call.target for call in calls]))
    on_latents, on_eps = transfer(source, target)
    mix = np.zeros((len(calls), _SLOTS))
    for row, call in zip(mix, calls, strict=True):
        row[list(call.weights)] = list(call.weights.values())
    table = (
        jnp.asarray([max(int(call.t), 0) for call in calls], jnp.int32),
        jnp.asarray([call.slot for call in calls], jnp.int32),
        jnp.asarray([call.again for call in calls]),
        jnp.asarray(on_latents, dtype),
        jnp.asarray(mix * on_eps[:, None], dtype),
    )

    def body(carry: tuple[jax.Array, jax.Array, jax.Array], call: tuple[jax.Array, ...]) -> tuple:
        x, origin, predictions = carry
        t, slot, again, scale, weights = call
        predictions = predictions.at[slot].set(denoise(x, t).astype(dtype))
        base = jnp.where(again, origin, x)
        return (scale * base + jnp.tensordot(weights, predictions, axes=1), base, predictions), None

    predictions = jnp.zeros((_SLOTS, *latents.shape), dtype)
    (x, _, _), _ = jax.lax.scan(body, (latents, latents, predictions), table)
    return x
