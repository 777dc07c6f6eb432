"""Few-step sampling against diffusers' LCMScheduler in float64, and the path that a student is taught along."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from diffusers.schedulers import scheduling_lcm
from sampler_recorded import field

from mvader_jax.diffusion.consistency import Path, boundary
from mvader_jax.diffusion.levels import consistency_timesteps
from mvader_jax.diffusion.noise import sampler_keys
from mvader_jax.diffusion.samplers import SAMPLERS
from mvader_jax.diffusion.schedule import Prediction, Schedule, ScheduleConfig
from mvader_jax.errors import UserError

LCM = SAMPLERS["lcm"]
START = np.array([1.0, -0.5, 2.0])
KEYS = sampler_keys(np.full(3, 7, np.uint32), np.arange(3))


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def drawn(step: int) -> np.ndarray:
    """The noise of a step, float32 as the sampler draws it."""
    keys = jax.vmap(lambda key: jax.random.fold_in(key, step))(KEYS)
    return np.asarray(jax.vmap(lambda key: jax.random.normal(key, (), jnp.float32))(keys), np.float64)


@pytest.mark.parametrize("steps", range(1, 9))
@pytest.mark.parametrize(
    ("original", "kind"), [(50, "epsilon"), (50, "v_prediction"), (20, "epsilon"), (37, "v_prediction")]
)
@pytest.mark.usefixtures("x64")
def test_lcm_is_diffusers(
    steps: int, original: int, kind: Prediction, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ScheduleConfig(original_steps=original, prediction_type=kind)
    levels = LCM.levels(config, steps)
    ours = jax.jit(lambda x: LCM(field, x, levels, keys=KEYS))(jnp.asarray(START))

    theirs = LCMScheduler(original_inference_steps=original, prediction_type=kind)
    theirs.alphas_cumprod = torch.from_numpy(config.alphas_cumprod())
    theirs.set_timesteps(steps)
    noise = iter([torch.from_numpy(drawn(step)) for step in range(steps - 1)])
    monkeypatch.setattr(scheduling_lcm, "randn_tensor", lambda *_, **__: next(noise))
    # Of a whole number they would be float32.
    scalings = theirs.get_scalings_for_boundary_condition_discrete
    monkeypatch.setattr(
        theirs, "get_scalings_for_boundary_condition_discrete", lambda t: scalings(t.double())
    )
    x = torch.from_numpy(START)
    for t in theirs.timesteps:
        x = theirs.step(torch.tanh(x) * (0.5 + t.double() / 2000), t, x).prev_sample
    assert levels.timesteps.tolist() == theirs.timesteps.tolist()
    np.testing.assert_allclose(ours, x.numpy(), rtol=1e-12)


@pytest.mark.usefixtures("x64")
def test_lcm_is_its_paper() -> None:
    table, times = ScheduleConfig().alphas_cumprod(), [999, 759, 499, 259]
    x = START
    for step, t in enumerate(times):
        eps = np.tanh(x) * (0.5 + t / 2000)
        clean = (x - np.sqrt(1 - table[t]) * eps) / np.sqrt(table[t])
        scaled = 10.0 * t
        x = 0.25 / (scaled**2 + 0.25) * x + scaled / np.sqrt(scaled**2 + 0.25) * clean
        if t != times[-1]:
            alpha = table[times[step + 1]]
            x = np.sqrt(alpha) * x + np.sqrt(1 - alpha) * drawn(step)
    levels = LCM.levels(ScheduleConfig(), 4)
    assert levels.timesteps.tolist() == times
    np.testing.assert_allclose(LCM(field, jnp.asarray(START), levels, keys=KEYS), x, rtol=1e-13)


def test_a_traced_start_is_the_start_and_calls_once_a_step() -> None:
    calls: list[int] = []

    def denoise(x: jax.Array, t: jax.Array) -> jax.Array:
        jax.debug.callback(lambda t: calls.append(int(t)), t, ordered=True)
        return field(x, t)

    levels, clean, noise = LCM.levels(ScheduleConfig(), 4), jnp.asarray(START), jnp.linspace(-1.0, 2.0, 3)

    @jax.jit
    def late(start: jax.Array) -> jax.Array:
        cut = levels.late(start)
        return LCM(denoise, cut.noised(clean, noise), cut, keys=KEYS)

    for start in range(5):
        out = np.asarray(late(start))
        jax.effects_barrier()
        assert calls == [999, 759, 499, 259][start:]
        calls.clear()
        cut = levels[start:]
        np.testing.assert_allclose(out, LCM(field, cut.noised(clean, noise), cut, keys=KEYS), rtol=1e-6)


def test_counts_and_eta() -> None:
    assert [len(LCM.levels(ScheduleConfig(), steps)) for steps in (1, 8, 50)] == [1, 8, 50]
    for steps in (0, 51):
        with pytest.raises(UserError, match=f"steps is {steps}; accepted are 1 to 50 of a model distilled"):
            LCM.levels(ScheduleConfig(), steps)
    levels = LCM.levels(ScheduleConfig(), 2)
    with pytest.raises(UserError, match="those that do: ddim"):
        LCM(field, jnp.zeros(3), levels, eta=0.5, keys=KEYS)
    with pytest.raises(ValueError, match="needs keys"):
        LCM(field, jnp.zeros(3), levels)
    with pytest.raises(UserError, match="original_steps is 1001; accepted are 1 to the schedule's 1000"):
        ScheduleConfig(original_steps=1001)


def test_at_the_picture_the_function_is_its_argument() -> None:
    skip, out = boundary(np.array([0.0, 19.0, 999.0]))
    assert skip[0] == 1 and out[0] == 0 and skip[1] < 1e-5 and out[1] > 0.999995
    path = Path(Schedule.create(ScheduleConfig()))
    x = jnp.ones((2, 3))
    np.testing.assert_array_equal(path.consistent(lambda x, t: x * 9, x, jnp.zeros(2, jnp.int32)), x)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.usefixtures("x64")
def test_a_skip_is_ddims_step(kind: Prediction) -> None:
    config = ScheduleConfig(prediction_type=kind)
    theirs = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type=kind,
    )
    theirs.alphas_cumprod = torch.from_numpy(config.alphas_cumprod())
    theirs.set_timesteps(50)
    x = np.random.default_rng(0).normal(size=(3, 4))
    for t in (999, 519, 39):
        told = torch.tanh(torch.from_numpy(x)) * (0.5 + t / 2000)
        expected = theirs.step(told, t, torch.from_numpy(x)).prev_sample

        def predict(x: jax.Array, t: jax.Array) -> jax.Array:
            return field(x, t[:, None])

        path = Path(Schedule.create(config))
        ours = path.skip(predict, jnp.asarray(x), jnp.full(3, t), jnp.full(3, t - 20))
        # What the model predicts is taken as float32.
        np.testing.assert_allclose(ours, expected, rtol=1e-5)


def exact(schedule: Schedule, variance: float) -> object:
    """The noise that is to be predicted of Gaussian pictures of this variance."""

    def predict(x: jax.Array, t: jax.Array) -> jax.Array:
        alpha = schedule.alpha(t).reshape(-1, *[1] * (x.ndim - 1))
        return x * jnp.sqrt(1 - alpha) / (alpha * variance + 1 - alpha)

    return predict


def test_heun_follows_the_path_more_closely() -> None:
    """Of Gaussian pictures the path is known: it scales the noised one to its variance at each level."""
    schedule = Schedule.create(ScheduleConfig())
    x, t, later = jnp.ones((4, 2)), jnp.array([999, 699, 399, 99]), jnp.array([979, 679, 379, 79])

    def spread(t: jax.Array) -> jax.Array:
        alpha = schedule.alpha(t)
        return jnp.sqrt(alpha * 4.0 + 1 - alpha)[:, None]

    true = x * spread(later) / spread(t)
    ddim, heun = (
        np.abs(Path(schedule, solver).skip(exact(schedule, 4.0), x, t, later) - true).max()  # type: ignore[arg-type]
        for solver in ("ddim", "heun")
    )
    assert heun < ddim / 4


def test_the_loss_of_the_function_that_leads_to_the_picture_is_small_and_of_another_large() -> None:
    """With Gaussian pictures of variance 1 every level's variance is 1, and f(x, t) = x."""
    schedule = Schedule.create(ScheduleConfig())
    teacher = exact(schedule, 1.0)

    def leads(x: jax.Array, t: jax.Array) -> jax.Array:
        alpha = schedule.alpha(t).reshape(-1, *[1] * (x.ndim - 1))
        return x * (1 - jnp.sqrt(alpha)) / jnp.sqrt(1 - alpha)

    latents = jax.random.normal(jax.random.key(1), (256, 4))
    path = Path(schedule, "heun", huber=1e-3)

    def loss(student: object, path: Path = path) -> tuple[jax.Array, jax.Array]:
        return path.loss(student, student, teacher, latents, jax.random.key(2))  # type: ignore[arg-type]

    losses, t = loss(leads)
    assert losses.shape == t.shape == (256,) and set(t.tolist()) <= set(
        consistency_timesteps(ScheduleConfig())
    )
    assert len(set(t.tolist())) > 45
    other, _ = loss(teacher)
    assert float(losses.mean()) < 0.002 and float(other.mean()) > 10 * float(losses.mean())
    _, biased = loss(leads, Path(schedule, timestep_bias=20.0))
    assert biased.mean() > t.mean() + 100


def test_no_gradient_goes_to_target_and_teacher() -> None:
    schedule = Schedule.create(ScheduleConfig())
    latents = jax.random.normal(jax.random.key(1), (8, 4))

    def loss(scales: jax.Array) -> jax.Array:
        student, target, teacher = (lambda x, t, s=s: s * x for s in scales)
        return Path(schedule).loss(student, target, teacher, latents, jax.random.key(2))[0].mean()

    gradient = jax.grad(loss)(jnp.array([0.5, 0.4, 0.3]))
    assert gradient[0] != 0 and gradient[1] == 0 and gradient[2] == 0
