"""How many steps a sampler takes, where it calls the model, and runs that begin late."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sampler_recorded import GUIDED, START, field

from mvader_jax.diffusion.levels import Levels
from mvader_jax.diffusion.samplers import SAMPLERS, start_at
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.errors import UserError


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize(
    "counts",
    [
        pytest.param([*range(1, 41), 99, 100, 333, 334, 500, 501, 998, 999, 1000], id="some"),
        pytest.param(range(1, 1001), id="all", marks=pytest.mark.slow),
    ],
)
def test_counts_have_finite_tables(name: str, counts: Iterable[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """As many calls as stated, within the schedule, every coefficient finite."""
    tables: list[Any] = []

    def walk(levels: Levels, rows: Any, body: Any, carry: Any) -> Any:
        tables.append(rows(levels))
        return carry

    monkeypatch.setattr(Levels, "walk", walk)
    x, configs = jnp.zeros(1), (ScheduleConfig(), ScheduleConfig(set_alpha_to_one=True))
    for steps in counts:
        SAMPLERS[name](field, x, SAMPLERS[name].levels(configs[steps % 2], steps))
        times, *rest = tables.pop()
        assert len(times) == SAMPLERS[name].calls(steps)
        assert np.min(times) >= 0 and np.max(times) <= 999
        assert all(np.all(np.isfinite(column)) for column in rest)


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_other_counts_are_refused(name: str, steps: int) -> None:
    with pytest.raises(UserError, match=f"steps is {steps}; accepted are 1 to 1000"):
        SAMPLERS[name].levels(ScheduleConfig(), steps)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("plms", [981, 961, 961, *range(941, 0, -20)]),
        ("plms-limited", [981, 961, 961, *range(941, 0, -20)]),
        ("pndm", [980, 970, 970, 960, 960, 950, 950, 940, 940, 930, 930, 920, *range(920, -1, -20)]),
        ("pndm-diffusers", [981, 971, 971, 961, 961, 951, 951, 941, 941, 931, 931, 921, *range(921, 0, -20)]),
        ("s-pndm", [980, 960, 960, *range(940, -1, -20)]),
        ("ddim", list(range(981, 0, -20))),
        ("euler", list(range(981, 0, -20))),
    ],
)
def test_model_is_called_at(name: str, expected: list[int]) -> None:
    called: list[int] = []

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        jax.debug.callback(lambda t: called.append(int(t)), t, ordered=True)
        return jnp.zeros_like(x)

    levels = SAMPLERS[name].levels(ScheduleConfig(), 50)
    jax.block_until_ready(SAMPLERS[name](denoise, jnp.ones(3), levels))
    assert called == expected


@pytest.mark.parametrize("name", GUIDED)
def test_partial_runs(name: str) -> None:
    clean, noise = jnp.full((2, 3), 5.0), jnp.ones((2, 3))
    sampler = SAMPLERS[name]
    levels = sampler.levels(ScheduleConfig(set_alpha_to_one=True), 20)
    # Nothing to do: the image as it is.
    np.testing.assert_array_equal(levels[20:].noised(clean, noise), clean)
    np.testing.assert_array_equal(sampler(field, clean, levels[20:]), clean)
    # A model that knows the noise gives the image back from any step.
    start = start_at(20, 0.6)
    assert start == 8
    later = levels[start:]
    noisy = later.noised(clean, noise)
    alpha = levels.alphas[8]
    np.testing.assert_allclose(noisy, np.sqrt(alpha) * 5 + np.sqrt(1 - alpha), rtol=1e-6)
    back = sampler(lambda x, t: jnp.ones_like(x), noisy, later)
    np.testing.assert_allclose(back, clean, rtol=1e-5)


@pytest.mark.parametrize("name", GUIDED)
def test_a_traced_start_is_the_start(name: str) -> None:
    """One program for every start; it calls the model as often as the run that begins there."""
    sampler, clean, noise = SAMPLERS[name], jnp.asarray(START), jnp.linspace(-1.0, 2.0, len(START))
    levels = sampler.levels(ScheduleConfig(), 15)
    late = jax.jit(
        lambda start: sampler(denoise, levels.late(start).noised(clean, noise), levels.late(start))
    )
    calls: list[int] = []

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        jax.debug.callback(lambda _: calls.append(0), t)
        return field(x, t)

    for start in (0, 4, 13, 15):
        out = np.asarray(late(start))
        jax.effects_barrier()
        assert len(calls) == (sampler.calls(15 - start) if start < 15 else 0)
        calls.clear()
        cut = levels[start:]
        expected = jax.jit(lambda cut=cut: sampler(field, cut.noised(clean, noise), cut))()
        np.testing.assert_allclose(out, expected, rtol=1e-6)
    assert late._cache_size() == 1  # type: ignore[attr-defined]


def test_strength() -> None:
    assert [start_at(50, s) for s in (0.0, 0.01, 0.02, 0.3, 0.58, 0.98, 1.0)] == [50, 50, 49, 35, 21, 1, 0]
    with pytest.raises(UserError, match="the strength is"):
        start_at(50, 1.5)
