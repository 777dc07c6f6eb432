"""Pseudo numerical methods for diffusion models (PNDM; Liu et al. 2022), in the readings that exist.

Each is written as the list of its model calls; `_run` walks over them. A step goes from a noise level to
the next by `transfer` along a mix of noise predictions: Runge-Kutta's or Adams-Bashforth's. Levels are told by
their timesteps, those half way between two steps too.
"""

from __future__ import annotations

import itertools
import math
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


def plms_limited(denoise: Denoise, latents: jax.Array, levels: Levels, limit: float = 0.5) -> jax.Array:
    """`plms` that trusts its differences as far as they shrink.

    Adams-Bashforth of order 4 is e + 1/2 De + 5/12 DDe + 3/8 DDDe, D the difference of predictions one step apart. Of
    smooth predictions each difference is smaller than the one before. At high guidance they grow: the method is stable
    for a sixth of the step that Euler's is. Here a picture's term counts by min(1, limit |difference before| / |its
    own|) times what the term before it counts by. Where steps are short that is 1, so the order is that of `plms`.
    """
    return _run(denoise, latents, levels, lambda times: _multistep(times, order=4), limit)


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
    denoise: Denoise,
    latents: jax.Array,
    levels: Levels,
    calls: Callable[[Sequence[int]], list[_Call]],
    limit: float | None = None,
) -> jax.Array:
    """calls: of the timesteps at which the steps begin, and PICTURE, where the last one ends. limit: see `plms_limited`."""
    dtype = latents.dtype

    def rows(levels: Levels) -> Rows:
        listed = calls([*levels.timesteps.tolist(), PICTURE])
        source = levels.alpha(np.array([call.source for call in listed]))
        target = levels.alpha(np.array([call.target for call in listed]))
        on_latents, on_eps = transfer(source, target)
        mix = np.zeros((len(listed), _SLOTS))
        for row, call in zip(mix, listed, strict=True):
            row[list(call.weights)] = list(call.weights.values())
        columns: Rows = (
            np.array([max(call.t, 0) for call in listed], np.int32),
            np.array([call.slot for call in listed], np.int32),
            np.array([call.again for call in listed]),
            on_latents.astype(dtype),
            (mix * on_eps[:, None]).astype(dtype),
        )
        if limit is not None:
            columns += (on_eps.astype(dtype), np.stack([_differences(call) for call in listed]).astype(dtype))
        return columns

    def body(
        carry: tuple[jax.Array, jax.Array, jax.Array], call: tuple[jax.Array, ...]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        x, origin, predictions = carry
        t, slot, again, scale, weights, *differences = call
        predictions = predictions.at[slot].set(denoise(x, t).astype(dtype))
        base = jnp.where(again, origin, x)
        if limit is not None:
            on_eps, mixes = differences
            change = on_eps * _limited(jnp.tensordot(mixes, predictions, axes=1), limit)
        else:
            change = jnp.tensordot(weights, predictions, axes=1)
        return scale * base + change, base, predictions

    predictions = jnp.zeros((_SLOTS, *latents.shape), dtype)
    return levels.walk(rows, body, (latents, latents, predictions))[0]


def _differences(call: _Call) -> np.ndarray:
    """The call's mix as a sum of differences of rising order, in slots: [4, slots]."""
    mixes = np.zeros((_HISTORY, _SLOTS))
    if call.again or len(call.weights) == 1:
        mixes[0, list(call.weights)] = list(call.weights.values())
        return mixes
    newest_first = list(call.weights)
    for order in range(len(newest_first)):
        for age in range(order + 1):
            mixes[order, newest_first[age]] = (-1) ** age * math.comb(order, age)
    return mixes


#: Of the differences of order 0 to 3: their sums are `_ADAMS_BASHFORTH`.
_OF_DIFFERENCES = (1.0, 1 / 2, 5 / 12, 3 / 8)


def _limited(differences: jax.Array, limit: float) -> jax.Array:
    """Adams-Bashforth's mix of differences [4, B, ...], each limited by the one before."""
    norms = jnp.sqrt(jnp.sum(jnp.square(differences), axis=tuple(range(2, differences.ndim)), keepdims=True))
    shrink = jnp.minimum(1.0, limit * norms[:-1] / jnp.maximum(norms[1:], jnp.finfo(norms.dtype).tiny))
    shares = jnp.concatenate([jnp.ones_like(norms[:1]), jnp.cumprod(shrink, axis=0)])
    factors = jnp.asarray(_OF_DIFFERENCES, norms.dtype).reshape(-1, *(1,) * (norms.ndim - 1))
    return jnp.sum(factors * shares * differences, axis=0)
