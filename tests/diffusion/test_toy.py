"""A sampler is one file and one line: this file is the one, `registered` is the other.

Heun's method in sigma (Karras et al. 2022, algorithm 1): Euler's step, taken again with the mean of the slopes
at both of its ends.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import micro
import numpy as np
import pytest
from sampler_recorded import field

from mvader_jax.cli.samplers import samplers
from mvader_jax.diffusion.levels import Levels
from mvader_jax.diffusion.pndm import Denoise
from mvader_jax.diffusion.samplers import SAMPLERS, Sampler
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.sampling.pipeline import Pipeline


def heun(denoise: Denoise, latents: jax.Array, levels: Levels) -> jax.Array:
    sigma = np.append(np.sqrt(1 / levels.alphas[:-1] - 1), 0.0)
    x, slope = latents * np.sqrt(sigma[0] ** 2 + 1), None
    for t, s, now, after in zip(
        levels.timesteps, [*levels.timesteps[1:], 0], sigma[:-1], sigma[1:], strict=True
    ):
        first = denoise(x / np.sqrt(now**2 + 1), jnp.int32(t))
        euler = x + (after - now) * first
        slope = (first + denoise(euler / np.sqrt(after**2 + 1), jnp.int32(s))) / 2
        x = x + (after - now) * slope
    return x


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "heun", Sampler(heun, "Heun's method in sigma", extra_calls=lambda n: n))


def test_it_is_of_second_order() -> None:
    """Halved steps quarter its distance from the solution; Euler's is halved."""
    with jax.enable_x64(True):

        def ends(name: str, steps: int) -> np.ndarray:
            config = ScheduleConfig(spacing="trailing", set_alpha_to_one=True)
            sampler = SAMPLERS[name]
            return np.asarray(sampler(field, jnp.array([1.0, -0.5, 2.0]), sampler.levels(config, steps)))

        exact = ends("heun", 1000)
        error = {n: np.abs(ends("heun", n) - exact).max() for n in (25, 50)}
        assert error[25] / error[50] > 3
        assert error[50] < np.abs(ends("euler", 50) - exact).max() / 10


def test_it_draws_and_is_listed(capsys: pytest.CaptureFixture[str]) -> None:
    pipe = Pipeline(micro.bundle(micro.NANO))
    heun, euler = (np.asarray(pipe("a red circle", steps=3, sampler=name)[0]) for name in ("heun", "euler"))
    assert heun.shape == euler.shape == (8, 8, 3) and not np.array_equal(heun, euler)
    samplers()
    listed = capsys.readouterr().out
    assert "heun                100  Heun's method in sigma\n" in listed
    assert "plms                 51  PNDM as Stable Diffusion ran it, and likely the paper\n" in listed
