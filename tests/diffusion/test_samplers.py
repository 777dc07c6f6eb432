"""PLMS against recorded vectors and diffusers, in float64; guidance, noise and eq. 1."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import PNDMScheduler

from mvader_jax.condition import PADDING, Condition, pad
from mvader_jax.diffusion.guidance import guided
from mvader_jax.diffusion.noise import initial_noise
from mvader_jax.diffusion.objective import diffusion_loss
from mvader_jax.diffusion.samplers import SAMPLERS
from mvader_jax.diffusion.schedule import Schedule, ScheduleConfig, leading_timesteps
from mvader_jax.errors import UserError

plms = SAMPLERS["plms"]


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def field(x: jax.Array, t: jax.Array) -> jax.Array:
    return jnp.tanh(x) * (0.5 + t.astype(x.dtype) / 2000)


@pytest.mark.parametrize(
    ("to_one", "expected"),
    [
        (False, [3.2814674785, -0.6884117060, 14.8372661965]),
        (True, [3.2684530814, -0.6802411637, 14.8291237306]),
    ],
)
@pytest.mark.usefixtures("x64")
def test_plms_vectors(to_one: bool, expected: list[float]) -> None:
    schedule = Schedule.create(ScheduleConfig(set_alpha_to_one=to_one))
    assert schedule.alphas_cumprod.dtype == jnp.float64
    out = jax.jit(lambda x: plms(field, x, schedule, 50))(jnp.array([1.0, -0.5, 2.0]))
    np.testing.assert_allclose(out, expected, rtol=1e-9)


@pytest.mark.parametrize("steps", [10, 20, 25, 40, 50, 100])
@pytest.mark.usefixtures("x64")
def test_plms_is_diffusers(steps: int) -> None:
    theirs = PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    theirs.alphas_cumprod = torch.from_numpy(ScheduleConfig().alphas_cumprod())
    theirs.final_alpha_cumprod = theirs.alphas_cumprod[0]
    theirs.set_timesteps(steps)
    x = torch.tensor([[1.0, -0.5, 2.0]], dtype=torch.float64)
    for t in theirs.timesteps:
        x = theirs.step(torch.tanh(x) * (0.5 + t.double() / 2000), t, x).prev_sample
    schedule = Schedule.create(ScheduleConfig())
    out = jax.jit(lambda x: plms(field, x, schedule, steps))(jnp.array([[1.0, -0.5, 2.0]]))
    np.testing.assert_allclose(out, x.numpy(), rtol=1e-9)


def test_plms_calls_the_model_once_more_than_its_steps() -> None:
    called: list[int] = []

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        jax.debug.callback(lambda t: called.append(int(t)), t, ordered=True)
        return jnp.zeros_like(x)

    jax.block_until_ready(plms(denoise, jnp.ones(3), Schedule.create(ScheduleConfig()), 50))
    assert called == [981, 961, 961, *range(941, 0, -20)]
    assert len(called) == 51


@pytest.mark.parametrize("steps", [1, 2, 3, 9, 27, 36, 37, 999, 1000])
def test_every_count_stays_on_the_schedule(steps: int) -> None:
    ladder = leading_timesteps(ScheduleConfig(), steps)
    assert len(ladder) == steps and ladder.max() <= 999 and ladder.min() >= 0
    if steps < 40:
        out = plms(field, jnp.ones(3), Schedule.create(ScheduleConfig()), steps)
        assert bool(jnp.all(jnp.isfinite(out)))


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_other_counts_are_refused(steps: int) -> None:
    with pytest.raises(UserError, match="1 to 1000"):
        leading_timesteps(ScheduleConfig(), steps)


def test_guidance_pads_the_shorter_condition_and_extrapolates() -> None:
    def eps(x: jax.Array, t: jax.Array, condition: Condition) -> jax.Array:
        present = (condition.log_weights > PADDING / 2)[..., None]
        return x * 0 + jnp.sum(condition.hidden * present, axis=(1, 2)).reshape(-1, 1, 1, 1)

    condition = Condition(jnp.full((2, 3, 1), 1.0), jnp.zeros((2, 3)))
    null = Condition(jnp.full((2, 5, 1), 2.0), jnp.zeros((2, 5)))
    denoise = guided(eps, condition, null, jnp.array([8.0, 1.0]))
    out = denoise(jnp.zeros((2, 4, 4, 1)), jnp.int32(3))
    # 10 + s (3 - 10).
    np.testing.assert_allclose(out[:, 0, 0, 0], [-46.0, 3.0])
    assert pad(condition, 5).log_weights[0, 4] == PADDING


def test_noise_depends_on_seed_and_index_alone() -> None:
    seeds, indices = np.array([7, 7, 9], np.uint32), np.array([0, 1, 0], np.int32)
    together = initial_noise(seeds, indices, (4, 6, 2))
    alone = initial_noise(seeds[1:2], indices[1:2], (4, 6, 2))
    np.testing.assert_array_equal(together[1], alone[0])
    assert not np.allclose(together[0], together[1])
    assert not np.allclose(together[0], together[2])


def test_loss_of_the_true_noise_is_zero_and_of_zero_is_one() -> None:
    schedule = Schedule.create(ScheduleConfig())
    latents = jax.random.normal(jax.random.key(1), (64, 8, 8, 4))

    def perfect(x: jax.Array, t: jax.Array) -> jax.Array:
        alpha = schedule.alpha(t)[:, None, None, None]
        return (x - jnp.sqrt(alpha) * latents) / jnp.sqrt(1 - alpha)

    losses, t = diffusion_loss(perfect, latents, jax.random.key(2), schedule)
    assert losses.shape == (64,) and float(losses.max()) < 1e-3
    assert int(t.min()) >= 0 and int(t.max()) < 1000 and len(set(t.tolist())) > 50
    losses, _ = diffusion_loss(lambda x, t: jnp.zeros_like(x), latents, jax.random.key(2), schedule)
    assert float(losses.mean()) == pytest.approx(1.0, abs=0.05)
