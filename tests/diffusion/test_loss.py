"""Guidance, noise and eq. 1."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvader_jax.condition import PADDING, Condition, pad
from mvader_jax.diffusion.guidance import guided
from mvader_jax.diffusion.loss import diffusion_loss, timestep_odds
from mvader_jax.diffusion.noise import initial_noise
from mvader_jax.diffusion.schedule import Schedule, ScheduleConfig


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


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0, 2.0])
def test_strength_of_a_negative_prompt(strength: float) -> None:
    def eps(x: jax.Array, t: jax.Array, condition: Condition) -> jax.Array:
        return x + condition.hidden[:, :1, :1, None]

    null, negative, positive = (
        Condition(jnp.full((2, n, 1), value), jnp.zeros((2, n)))
        for n, value in ((1, 1.0), (4, 3.0), (2, 10.0))
    )
    x, t = jnp.zeros((2, 1, 1, 1)), jnp.int32(3)
    out = guided(eps, positive, null, 8.0, negative, jnp.array([strength, 0.0]))(x, t)
    base = 1 + strength * (3 - 1)
    np.testing.assert_allclose(out.ravel(), [base + 8 * (10 - base), 1 + 8 * 9], rtol=1e-6)
    if strength in (0.0, 1.0):
        instead = guided(eps, positive, negative if strength else null, 8.0)(x, t)
        np.testing.assert_allclose(out[0], instead[0], rtol=1e-6)


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


def test_the_target_of_v_prediction_is_diffusers_velocity() -> None:
    import torch
    from diffusers import DDPMScheduler

    with jax.enable_x64(True):
        config = ScheduleConfig(prediction_type="v_prediction")
        schedule = Schedule.create(config)
        latents, noise = np.random.default_rng(0).normal(size=(2, 5, 3, 3, 4))
        t = np.array([0, 1, 300, 700, 999])
        theirs = DDPMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        theirs.alphas_cumprod = torch.from_numpy(config.alphas_cumprod())
        said = theirs.get_velocity(*(torch.from_numpy(x) for x in (latents, noise, t))).numpy()
        np.testing.assert_allclose(
            schedule.target(*(jnp.asarray(x) for x in (latents, noise, t))), said, rtol=1e-12, atol=1e-14
        )


def test_loss_of_the_true_velocity_is_zero() -> None:
    schedule = Schedule.create(ScheduleConfig(prediction_type="v_prediction"))
    latents = jax.random.normal(jax.random.key(1), (64, 8, 8, 4))

    def perfect(x: jax.Array, t: jax.Array) -> jax.Array:
        alpha = schedule.alpha(t)[:, None, None, None]
        return (jnp.sqrt(alpha) * x - latents) / jnp.sqrt(1 - alpha)

    losses, _ = diffusion_loss(perfect, latents, jax.random.key(2), schedule)
    assert float(losses.max()) < 1e-3
    losses, _ = diffusion_loss(lambda x, t: x * 0, latents, jax.random.key(2), schedule)
    assert float(losses.mean()) == pytest.approx(1.0, abs=0.05)


def test_uncapped_odds_make_the_loss_that_of_the_velocity() -> None:
    schedule = Schedule.create(ScheduleConfig())
    odds = timestep_odds(schedule, 1e9)
    alpha = schedule.alphas_cumprod.astype(jnp.float32)
    latents, noise, wrong = jax.random.normal(jax.random.key(0), (3, 1000))
    noisy = jnp.sqrt(alpha) * latents + jnp.sqrt(1 - alpha) * noise

    def velocity(eps: jax.Array) -> jax.Array:
        return (eps - jnp.sqrt(1 - alpha) * noisy) / jnp.sqrt(alpha)

    ratio = jnp.square(velocity(noise) - velocity(wrong)) / jnp.square(noise - wrong)
    np.testing.assert_allclose(odds, ratio, rtol=5e-2)


@pytest.mark.parametrize("bias", [1.0, 5.0, 50.0])
def test_timesteps_are_drawn_by_their_odds(bias: float) -> None:
    schedule = Schedule.create(ScheduleConfig())
    latents = jnp.zeros((40_000, 1, 1, 1))
    _, t = diffusion_loss(lambda x, t: x, latents, jax.random.key(0), schedule, bias)
    assert t.dtype == jnp.int32
    odds = np.asarray(timestep_odds(schedule, bias), np.float64)
    assert odds[0] == pytest.approx(1.0, rel=1e-3) and odds[-1] == pytest.approx(bias)
    shares = np.histogram(t, bins=10, range=(0, 1000))[0] / 40_000
    np.testing.assert_allclose(shares, (odds / odds.sum()).reshape(10, 100).sum(1), atol=0.01)
