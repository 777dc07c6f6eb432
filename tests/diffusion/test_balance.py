"""Automatic theta on scores that stand still: shares become what is wanted, whatever sampler makes the calls."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvader_jax.condition import PADDING, SUPPRESSED, Condition
from mvader_jax.diffusion import balance
from mvader_jax.diffusion.balance import balanced, move, nothing_moved, under
from mvader_jax.diffusion.guidance import alone, guided
from mvader_jax.diffusion.samplers import SAMPLERS
from mvader_jax.diffusion.savings import guided_within
from mvader_jax.diffusion.schedule import ScheduleConfig

RNG = np.random.default_rng(0)
#: Three elements over eight positions, the first position of none.
MARKS = np.zeros((2, 8, 4), np.float32)
MARKS[:, 1:3, 0] = MARKS[:, 3:6, 1] = MARKS[:, 6:, 2] = 1
WANTED = np.array([[0.5, 0.3, 0.2, 0], [0.1, 0.9, 0, 0]], np.float32)
LOGS = np.zeros((2, 8), np.float32)
LOGS[1, 6:] = SUPPRESSED
#: Of two pictures at five queries.
SCORES = jnp.asarray(RNG.normal(size=(2, 5, 8)) * 2, jnp.float32)
CONDITION = Condition(
    jnp.zeros((2, 8, 3)), jnp.asarray(LOGS), elements=jnp.asarray(MARKS), wanted=jnp.asarray(WANTED)
)
NULL = Condition(jnp.zeros((2, 8, 3)), jnp.zeros((2, 8)))


def got(condition: Condition, scores: jax.Array = SCORES) -> jax.Array:
    probs = jax.nn.softmax(scores + condition.log_weights[:, None, :], axis=-1)
    return jnp.einsum("bqs,bse->be", probs, condition.elements) / scores.shape[1]


def shares(condition: Condition) -> np.ndarray:
    found = np.asarray(got(condition))
    return found / found.sum(1, keepdims=True)


def moved(calls: int) -> jax.Array:
    logs = jnp.zeros((2, 4))
    for _ in range(calls):
        logs = move(logs, got(under(CONDITION, logs)), CONDITION.wanted)
    return logs


def test_shares_become_what_is_wanted() -> None:
    before, after = shares(CONDITION), shares(under(CONDITION, moved(20)))
    assert np.abs(before - WANTED).max() > 0.1
    np.testing.assert_allclose(after, WANTED, atol=1e-3)
    assert np.abs(shares(under(CONDITION, moved(3))) - WANTED).max() < 0.03


def test_elements_move_against_each_other_alone() -> None:
    """What wants nothing stays, and so does the mean: nothing is taken from positions of no element at large."""
    logs = np.asarray(moved(20))
    np.testing.assert_allclose(logs.sum(1), 0, atol=1e-5)
    assert logs[1, 2:].tolist() == [0, 0] and logs[0, 3] == 0
    assert np.abs(logs[:, :2]).min() > 0.05
    # One element alone has all there is to have.
    alone = move(jnp.zeros((1, 2)), jnp.array([[0.3, 0.1]]), jnp.array([[1.0, 0.0]]))
    assert alone.tolist() == [[0, 0]]


def test_what_is_suppressed_or_not_there_is_not_brought_back() -> None:
    condition = CONDITION.replace(log_weights=CONDITION.log_weights.at[:, 0].set(PADDING))
    added = under(condition, jnp.full((2, 4), balance.LIMIT)).log_weights
    assert added[0].tolist() == [np.float32(PADDING), *[np.float32(balance.LIMIT)] * 7]
    assert added[1, 6:].tolist() == [SUPPRESSED] * 2


def test_no_theta_leaves_its_bounds_or_the_numbers() -> None:
    logs = jnp.zeros((2, 2))
    for _ in range(50):
        logs = move(logs, jnp.array([[1.0, 0.0], [0.0, 0.0]]), jnp.full((2, 2), 0.5))
    np.testing.assert_allclose(logs, [[-balance.LIMIT, balance.LIMIT], [0, 0]], atol=1e-6)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_sampler_carries_thetas_from_call_to_call(name: str) -> None:
    """As many moves as calls, of the prompts alone and not of the null prompt; also from a traced start."""
    calls: list[int] = []

    def observed(x: jax.Array, t: jax.Array, condition: Condition) -> tuple[jax.Array, jax.Array]:
        jax.debug.callback(lambda: calls.append(1))
        found = got(condition, jnp.concatenate([SCORES, SCORES]))
        return 0.1 * x + found[:, :1, None, None], found

    sampler = SAMPLERS[name]
    levels = sampler.levels(ScheduleConfig(), 6)

    @jax.jit
    def run(start: jax.Array) -> tuple[jax.Array, jax.Array]:
        kept = nothing_moved([CONDITION, NULL])
        assert kept is not None
        denoise = guided(balanced(observed, kept), CONDITION, NULL, 2.0)
        late = dataclasses.replace(levels.late(start), kept=kept)
        keys = jax.random.split(jax.random.key(0), 2)
        return sampler(denoise, jnp.ones((2, 2, 2, 1)), late, keys=keys), kept.value

    for start in (0, 4):
        calls.clear()
        latents, logs = run(jnp.asarray(start))
        jax.effects_barrier()
        assert len(calls) == sampler.calls(6 - start) and np.isfinite(latents).all()
        np.testing.assert_allclose(logs[1], moved(len(calls)), atol=1e-5)
        assert np.all(np.asarray(logs[0]) == 0)


def test_calls_without_guidance_move_the_prompts_thetas_too() -> None:
    """A branch of the compiled program calls the prompt's half alone; the negative prompt has more elements."""
    negative = CONDITION.replace(
        elements=jnp.pad(CONDITION.elements, ((0, 0), (0, 0), (0, 4))),
        wanted=jnp.pad(CONDITION.wanted, ((0, 0), (0, 4))),
    )

    def observed(x: jax.Array, t: jax.Array, condition: Condition) -> tuple[jax.Array, jax.Array]:
        found = got(condition, jnp.concatenate([SCORES] * (len(x) // 2)))
        return 0.1 * x + found[:, :1, None, None], found

    sampler = SAMPLERS["ddim"]
    levels = sampler.levels(ScheduleConfig(), 6)

    @jax.jit
    def run() -> jax.Array:
        kept = nothing_moved([NULL, negative, CONDITION])
        assert kept is not None
        eps = balanced(observed, kept)
        denoise = guided_within(
            guided(eps, CONDITION, NULL, 2.0, negative, 0.5),
            alone(eps, CONDITION),
            np.arange(1000) >= levels.timesteps[1],
            kept,
        )
        sampler(denoise, jnp.ones((2, 2, 2, 1)), dataclasses.replace(levels, kept=kept))
        return kept.value

    logs = run()
    np.testing.assert_allclose(logs[2, :, :4], moved(6), atol=1e-5)
    np.testing.assert_allclose(logs[1, :, :4], moved(2), atol=1e-5)
    assert not logs[0].any() and not logs[:, :, 4:].any()


def test_where_nobody_wants_shares_nothing_is_kept() -> None:
    assert nothing_moved([NULL, CONDITION.replace(wanted=None)]) is None
