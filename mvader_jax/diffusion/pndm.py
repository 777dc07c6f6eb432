"""Pseudo numerical methods for diffusion models (PNDM; Liu et al. 2022), in the readings that exist.

Each is written as the list of its model calls; `_run` walks over them. A step goes from a noise level to
the next by `transfer` along a mix of noise predictions: Runge-Kutta's or Adams-Bashforth's. Levels are told by
their timesteps, those half way between two steps too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mvader_jax.diffusion.levels import PICTURE, Levels, Rows

Denoise = Callable[[jax.Array, jax.Array], jax.Array]

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

    The step leads from the level of timestep `source` to that of `target` along sum(weight * prediction);
    from where the call before started, if `again`, else from where it ended.
    """

    t: int
    source: int
    target: int
    slot: int
    weights: dict[int, float]
    again: bool = False


def plms(denoise: Denoise, latents: jax.Array, levels: Levels) -> jax.Array:
    """PNDM as Stable Diffusion ran it (PLMS; CompVis plms.py): one model call more than steps.

    The first step is taken twice: an Euler step, then again from its beginning with the mean of the
    predictions at both ends; the second prediction is not kept. Later steps are Adams-Bashforth of
    order 2, 3, then 4.
    """
    return _run(denoise, latents, levels, lambda times: _multistep(times, order=4))


def s_pndm(denoise: Denoise, latents: jax.Array, levels: Levels) -> jax.Array:
    """S-PNDM (PNDM appendix; luping-liu/PNDM gen_order_2): as `plms` of order 2.

    The paper's alpha-bar is taken at t + 1 where the model is told t: `levels` has that in its table.
    """
    return _run(denoise, latents, levels, lambda times: _multistep(times, order=2))


def pndm(denoise: Denoise, latents: jax.Array, levels: Levels) -> jax.Array:
    """F-PNDM (PNDM algorithm 2; luping-liu/PNDM gen_order_4): 9 model calls more than steps.

    Three Runge-Kutta steps (as many as there are, below three), then Adams-Bashforth of order 4. Of
    `levels`, see `s_pndm`.
    """

    def calls(times: Sequence[int]) -> list[_Call]:
        middles = [int((a + b) / 2) for a, b in itertools.pairwise(times)]
        return [call for i, t in enumerate(middles) for call in _step(i, times, (t, t, t))]

    return _run(denoise, latents, levels, calls)


def pndm_diffusers(denoise: Denoise, latents: jax.Array, levels: Levels) -> jax.Array:
    """F-PNDM as diffusers' PNDMScheduler reads it (skip_prk_steps off): on the timesteps of `plms`.

    Where the stride d is odd, its first half step ends at t - d // 2 but the model is called at
    t - d + d // 2, as there.
    """

    def calls(times: Sequence[int]) -> list[_Call]:
        listed = []
        for i, (t, after) in enumerate(itertools.pairwise(times)):
            half = (t - after) // 2
            listed += _step(i, times, (after + half, t - half, after + half))
        return listed

    return _run(denoise, latents, levels, calls)


def _multistep(times: Sequence[int], order: int) -> list[_Call]:
    """Improved Euler, then Adams-Bashforth up to `order`."""
    first = (times[0], times[1])
    calls = [
        _Call(times[0], *first, 0, {0: 1.0}),
        _Call(times[1], *first, _HISTORY, {0: 0.5, _HISTORY: 0.5}, again=True),
    ]
    for i in range(1, len(times) - 1):
        weights = _adams_bashforth(i, min(i + 1, order))
        calls.append(_Call(times[i], times[i], times[i + 1], i % _HISTORY, weights))
    return calls


def _step(i: int, times: Sequence[int], middle: tuple[int, int, int]) -> list[_Call]:
    """Step i of F-PNDM. middle: the timestep half way, and those whose levels the two half steps end at."""
    source, target, kept = times[i], times[i + 1], i % _HISTORY
    if i >= 3:
        return [_Call(source, source, target, kept, _adams_bashforth(i, 4))]
    t, first, second = middle
    a, b, c = _HISTORY, _HISTORY + 1, _HISTORY + 2
    mean = {kept: 1 / 6, a: 1 / 3, b: 1 / 3, c: 1 / 6}
    return [
        _Call(source, source, first, kept, {kept: 1.0}),
        _Call(t, source, second, a, {a: 1.0}, again=True),
        _Call(t, source, target, b, {b: 1.0}, again=True),
        _Call(target, source, target, c, mean, again=True),
    ]


def _adams_bashforth(i: int, order: int) -> dict[int, float]:
    """Weights of the slots of predictions i, i - 1, ..."""
    return {(i - age) % _HISTORY: weight for age, weight in enumerate(_ADAMS_BASHFORTH[order - 1])}


def transfer(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """phi of PNDM eq. 11 from alpha-bar a to b, as coefficients: x' = first * x + second * eps."""
    return np.sqrt(b / a), -(b - a) / (a * np.sqrt(1 - b) + np.sqrt(a * (1 - a) * b))


def _run(
    denoise: Denoise, latents: jax.Array, levels: Levels, calls: Callable[[Sequence[int]], list[_Call]]
) -> jax.Array:
    """calls: of the timesteps at which the steps begin, and PICTURE, where the last one ends."""
    dtype = latents.dtype

    def rows(levels: Levels) -> Rows:
        listed = calls([*levels.timesteps.tolist(), PICTURE])
        source = levels.alpha(np.array([call.source for call in listed]))
        target = levels.alpha(np.array([call.target for call in listed]))
        on_latents, on_eps = transfer(source, target)
        mix = np.zeros((len(listed), _SLOTS))
        for row, call in zip(mix, listed, strict=True):
            row[list(call.weights)] = list(call.weights.values())
        return (
            np.array([max(call.t, 0) for call in listed], np.int32),
            np.array([call.slot for call in listed], np.int32),
            np.array([call.again for call in listed]),
            on_latents.astype(dtype),
            (mix * on_eps[:, None]).astype(dtype),
        )

    def body(
        carry: tuple[jax.Array, jax.Array, jax.Array], call: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        x, origin, predictions = carry
        t, slot, again, scale, weights = call
        predictions = predictions.at[slot].set(denoise(x, t).astype(dtype))
        base = jnp.where(again, origin, x)
        return scale * base + jnp.tensordot(weights, predictions, axes=1), base, predictions

    predictions = jnp.zeros((_SLOTS, *latents.shape), dtype)
    return levels.walk(rows, body, (latents, latents, predictions))[0]
