"""Every sampler in float64 against diffusers and against NumPy written from the papers; eta."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler, PNDMScheduler
from diffusers.schedulers import scheduling_dpmsolver_multistep, scheduling_euler_discrete
from sampler_recorded import GUIDED, RECORDED, START, field, measure
from sampler_references import REFERENCES, ddim

from mvader_jax.diffusion.levels import Levels, levels_of
from mvader_jax.diffusion.noise import sampler_keys
from mvader_jax.diffusion.samplers import SAMPLERS
from mvader_jax.diffusion.schedule import Prediction, ScheduleConfig, Spacing
from mvader_jax.errors import UserError

SD14 = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}


@pytest.fixture
def x64() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def run(
    name: str,
    steps: int,
    start: int = 0,
    *,
    to_one: bool = False,
    spacing: Spacing | None = None,
    prediction_type: Prediction = "epsilon",
    **more: Any,
) -> np.ndarray:
    sampler = SAMPLERS[name]
    config = ScheduleConfig(set_alpha_to_one=to_one, spacing=spacing, prediction_type=prediction_type)
    levels = sampler.levels(config, steps)[start:]
    return np.asarray(jax.jit(lambda x: sampler(field, x, levels, **more))(jnp.asarray(START)))


# Against diffusers.


@pytest.fixture
def doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    """diffusers' Euler and DPM-Solver cast the latents to torch.float32 every step; here that is float64."""
    patched = types.SimpleNamespace(**{**vars(torch), "float32": torch.float64})
    for module in (scheduling_euler_discrete, scheduling_dpmsolver_multistep):
        monkeypatch.setattr(module, "torch", patched)


def diffusers(
    kind: Callable[..., Any], steps: int, start: int = 0, *, to_one: bool = False, **settings: Any
) -> tuple[np.ndarray, int]:
    """(latents, model calls) of a diffusers scheduler in float64 from step `start` on."""
    theirs = kind(**SD14, **settings)
    alphas = torch.from_numpy(ScheduleConfig().alphas_cumprod())
    theirs.alphas_cumprod = alphas
    theirs.final_alpha_cumprod = torch.tensor(1.0, dtype=torch.float64) if to_one else alphas[0]
    theirs.set_timesteps(steps)
    times = theirs.timesteps[start:]
    scale = 1.0
    if hasattr(theirs, "sigmas"):
        exact = ((1 - alphas) / alphas).sqrt()
        last = alphas.new_zeros(1) if theirs.config.final_sigmas_type == "zero" else exact[:1]
        theirs.sigmas = torch.cat([exact[theirs.timesteps.long()], last])
        theirs.set_begin_index(start)
        if kind is EulerDiscreteScheduler:
            scale = float((theirs.sigmas[start] ** 2 + 1) ** 0.5)
    elif kind is PNDMScheduler and start:
        # Its own img2img drops the repeated call and with it a step; PLMS from a later step repeats it.
        ladder = theirs.timesteps.unique().flip(0)[start:]
        times = torch.cat([ladder[:2], ladder[1:]])
    x = torch.from_numpy(START) * scale
    for t in times:
        given = theirs.scale_model_input(x, t)
        eps = torch.tanh(given) * (0.5 + t.double() / 2000)
        x = theirs.step(eps, t, x).prev_sample
    return x.numpy(), len(times)


@pytest.mark.parametrize(("steps", "start"), [(10, 0), (37, 0), (50, 0), (100, 40), (999, 0)])
@pytest.mark.usefixtures("x64")
def test_plms_is_diffusers(steps: int, start: int) -> None:
    theirs, calls = diffusers(PNDMScheduler, steps, start, skip_prk_steps=True)
    np.testing.assert_allclose(run("plms", steps, start), theirs, rtol=1e-12)
    assert calls == SAMPLERS["plms"].calls(steps - start)


@pytest.mark.parametrize(("steps", "to_one"), [(4, False), (27, False), (36, True), (50, False), (100, True)])
@pytest.mark.usefixtures("x64")
def test_pndm_diffusers_is_diffusers(steps: int, to_one: bool) -> None:
    theirs, calls = diffusers(PNDMScheduler, steps, to_one=to_one, skip_prk_steps=False)
    np.testing.assert_allclose(run("pndm-diffusers", steps, to_one=to_one), theirs, rtol=1e-12)
    assert calls == SAMPLERS["pndm-diffusers"].calls(steps) == steps + 9


@pytest.mark.parametrize(
    ("steps", "start", "to_one"), [(1, 0, False), (9, 0, True), (50, 0, False), (50, 20, True)]
)
@pytest.mark.usefixtures("x64")
def test_ddim_is_diffusers(steps: int, start: int, to_one: bool) -> None:
    theirs, calls = diffusers(DDIMScheduler, steps, start, to_one=to_one, clip_sample=False)
    np.testing.assert_allclose(run("ddim", steps, start, to_one=to_one), theirs, rtol=1e-12)
    assert calls == SAMPLERS["ddim"].calls(steps - start)


@pytest.mark.parametrize(("steps", "start"), [(1, 0), (20, 0), (50, 20)])
@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("ddim", DDIMScheduler, {"clip_sample": False}),
        ("euler", EulerDiscreteScheduler, {"timestep_spacing": "leading"}),
        ("dpm-solver++2m", DPMSolverMultistepScheduler, {"final_sigmas_type": "sigma_min"}),
    ],
)
@pytest.mark.usefixtures("x64", "doubles")
def test_a_model_of_v_is_sampled_as_by_diffusers(
    name: str, kind: Any, settings: dict[str, Any], steps: int, start: int
) -> None:
    theirs, _ = diffusers(kind, steps, start, prediction_type="v_prediction", **settings)
    ours = run(name, steps, start, prediction_type="v_prediction")
    np.testing.assert_allclose(ours, theirs, rtol=1e-11)
    # One step begins, and ends, at timestep 1, where v is the noise.
    assert np.allclose(ours, run(name, steps, start), rtol=1e-2) == (steps == 1 and name != "dpm-solver++2m")


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.usefixtures("x64")
def test_every_sampler_of_v_is_that_of_the_noise_it_means(name: str) -> None:
    levels = SAMPLERS[name].levels(ScheduleConfig(), 20)
    table = jnp.asarray(levels.table)

    def meant(x: jax.Array, t: jax.Array) -> jax.Array:
        return jnp.sqrt(table[t]) * field(x, t) + jnp.sqrt(1 - table[t]) * x

    expected = SAMPLERS[name](meant, jnp.asarray(START), levels)
    np.testing.assert_allclose(run(name, 20, prediction_type="v_prediction"), expected, rtol=1e-12)


@pytest.mark.parametrize(("steps", "start"), [(1, 0), (20, 0), (50, 0), (50, 20)])
@pytest.mark.usefixtures("x64", "doubles")
def test_euler_is_diffusers(steps: int, start: int) -> None:
    theirs, calls = diffusers(EulerDiscreteScheduler, steps, start, timestep_spacing="leading")
    np.testing.assert_allclose(run("euler", steps, start), theirs, rtol=1e-12)
    assert calls == SAMPLERS["euler"].calls(steps - start)


@pytest.mark.parametrize(
    ("steps", "start", "to_one"),
    [(1, 0, False), (10, 0, False), (15, 0, False), (20, 0, True), (20, 8, False), (999, 0, False)],
)
@pytest.mark.usefixtures("x64", "doubles")
def test_dpm_solver_is_diffusers(steps: int, start: int, to_one: bool) -> None:
    final = "zero" if to_one else "sigma_min"
    theirs, calls = diffusers(DPMSolverMultistepScheduler, steps, start, final_sigmas_type=final)
    np.testing.assert_allclose(run("dpm-solver++2m", steps, start, to_one=to_one), theirs, rtol=1e-12)
    assert calls == SAMPLERS["dpm-solver++2m"].calls(steps - start)


# Spaced otherwise. diffusers' PNDM and DDIM step T // n timesteps down wherever the next step begins, so that
# only counts whose steps lie so far apart tell something of them.

_PLMS, _DPM = {"skip_prk_steps": True}, {"final_sigmas_type": "sigma_min"}


@pytest.mark.parametrize(
    ("name", "kind", "settings", "trailing", "linspace"),
    [
        ("plms", PNDMScheduler, _PLMS, (10, 40, 1000), (1000,)),
        ("pndm-diffusers", PNDMScheduler, {"skip_prk_steps": False}, (10, 40), (1000,)),
        ("ddim", DDIMScheduler, {"clip_sample": False}, (1, 10, 40), (1000,)),
        # Its timesteps are whole at these alone.
        ("euler", EulerDiscreteScheduler, {}, (1, 37, 50), (10, 28)),
        ("dpm-solver++2m", DPMSolverMultistepScheduler, _DPM, (1, 15, 37, 50), (10, 37)),
    ],
)
@pytest.mark.usefixtures("x64", "doubles")
def test_spacing_is_diffusers(
    name: str, kind: Callable[..., Any], settings: dict[str, Any], trailing: Any, linspace: Any
) -> None:
    for spacing, counts in (("trailing", trailing), ("linspace", linspace)):
        for steps in counts:
            theirs, calls = diffusers(kind, steps, timestep_spacing=spacing, **settings)
            ours = run(name, steps, spacing=spacing)
            np.testing.assert_allclose(ours, theirs, rtol=1e-12, err_msg=f"{spacing}, {steps}")
            assert calls == SAMPLERS[name].calls(steps)
    # The two differ from each other and from what the sampler takes by default.
    assert len({tuple(run(name, 10, spacing=s)) for s in ("trailing", "linspace", "leading")}) == 3


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize(("steps", "start"), [(1, 0), (7, 0), (37, 12), (50, 0)])
@pytest.mark.usefixtures("x64")
def test_spaced_sampler_is_its_paper(name: str, spacing: Spacing, steps: int, start: int) -> None:
    kind = DPMSolverMultistepScheduler if name.startswith("dpm") else DDIMScheduler
    # The PNDM paper has no offset.
    theirs = kind(**{**SD14, "steps_offset": int(name not in ("pndm", "s-pndm"))})
    theirs.register_to_config(timestep_spacing=spacing)
    theirs.set_timesteps(steps)
    times = theirs.timesteps.tolist()
    to_one = steps % 2 == 0
    config = ScheduleConfig(set_alpha_to_one=to_one)
    expected, called = REFERENCES[name](START, config, steps, start, times=times)
    np.testing.assert_allclose(run(name, steps, start, to_one=to_one, spacing=spacing), expected, rtol=1e-12)
    assert len(called) == SAMPLERS[name].calls(steps - start)


# Against NumPy, at the counts where others crash, at the edges and from later steps.


@pytest.mark.parametrize("name", GUIDED)
@pytest.mark.parametrize(
    ("steps", "start"), [(1, 0), (2, 0), (3, 0), (9, 0), (27, 24), (36, 0), (37, 36), (999, 0), (1000, 0)]
)
@pytest.mark.usefixtures("x64")
def test_sampler_is_its_paper(name: str, steps: int, start: int) -> None:
    to_one = steps % 2 == 0
    expected, called = REFERENCES[name](START, ScheduleConfig(set_alpha_to_one=to_one), steps, start)
    np.testing.assert_allclose(run(name, steps, start, to_one=to_one), expected, rtol=1e-12)
    assert len(called) == SAMPLERS[name].calls(steps - start)


def test_recorded_vectors() -> None:
    rows = list(measure(RECORDED))
    assert {row.recorded.sampler for row in rows} == set(GUIDED)
    for row in rows:
        assert row.error < 1e-11, row
        assert row.calls == SAMPLERS[row.recorded.sampler].calls(row.recorded.steps)
    calls = {(row.recorded.sampler, row.recorded.steps): row.calls for row in rows}
    assert calls["plms", 50] == 51 and calls["pndm", 50] == calls["pndm-diffusers", 50] == 59
    assert calls["s-pndm", 50] == 51 and calls["ddim", 50] == calls["euler", 50] == 50
    assert calls["dpm-solver++2m", 20] == 20


# PLMS, limited.


@pytest.mark.parametrize(
    ("name", "error_of_32"), [("plms", 2.0e-4), ("plms-limited", 2.0e-4), ("ddim", 2.6e-2)]
)
@pytest.mark.usefixtures("x64")
def test_the_limit_keeps_the_order_of_plms(name: str, error_of_32: float) -> None:
    """The error over the steps, away from sigma 0, where no method in timesteps has its order: PLMS, a pseudo linear
    multistep method, is of order 2 (PNDM, Liu et al. 2022), DDIM of 1."""
    total = 6400
    table = np.linspace(0.95**0.5, 0.05**0.5, total + 1) ** 2

    def end(name: str, steps: int) -> np.ndarray:
        levels = Levels(np.arange(steps, 0, -1) * (total // steps), table, float(table[0]))
        return np.asarray(
            jax.jit(lambda x: SAMPLERS[name](lambda x, t: field(x, t / 6.4), x, levels))(jnp.asarray(START))
        )

    exact = end("plms", total)
    errors = [float(np.abs(end(name, steps) - exact).max()) for steps in (32, 64, 128)]
    assert errors[0] == pytest.approx(error_of_32, rel=0.05)
    order = np.log2(errors[0] / errors[2]) / 2
    assert order == pytest.approx(1.0 if name == "ddim" else 1.75, abs=0.1)


@pytest.mark.usefixtures("x64")
def test_the_limit_steadies_steps_that_are_too_long() -> None:
    """Predictions that fall steeply, as at high guidance: PLMS swings out, DDIM and the limited one come to rest."""
    levels = SAMPLERS["plms"].levels(ScheduleConfig(), 20)

    def largest(name: str) -> float:
        return float(jnp.abs(SAMPLERS[name](lambda x, t: 6.0 * x, jnp.asarray(START), levels)).max())

    assert largest("plms") > 1e3
    assert largest("plms-limited") < 1.0 and largest("ddim") < 1.0


# Noise of its own.


@pytest.mark.parametrize(("eta", "start"), [(1.0, 0), (0.4, 3)])
@pytest.mark.usefixtures("x64")
def test_ddim_with_eta_is_its_paper(eta: float, start: int) -> None:
    keys = sampler_keys(np.full(3, 7, np.uint32), np.arange(3))
    draw = jax.vmap(lambda i, k: jax.random.normal(jax.random.fold_in(k, i), (), jnp.float32), (None, 0))
    noise = np.asarray(jax.vmap(draw, (0, None))(jnp.arange(10), keys))
    expected, _ = ddim(START, ScheduleConfig(), 10, start, eta, noise)
    out = run("ddim", 10, start, eta=eta, keys=keys)
    np.testing.assert_allclose(out, expected, rtol=1e-6)
    theirs = DDIMScheduler(**SD14, clip_sample=False, set_alpha_to_one=False)
    theirs.set_timesteps(10)
    x = torch.from_numpy(START)
    for i, t in enumerate(theirs.timesteps[start:], start):
        eps = torch.tanh(x) * (0.5 + t.double() / 2000)
        x = theirs.step(eps, t, x, eta=eta, variance_noise=torch.tensor(noise[i])).prev_sample
    np.testing.assert_allclose(out, x.numpy(), rtol=1e-5)


def test_eta_noise_depends_on_seed_and_index_alone() -> None:
    seeds, indices = np.array([7, 7, 9], np.uint32), np.array([0, 1, 0], np.int32)
    keys, x = sampler_keys(seeds, indices), jnp.ones((3, 2))
    levels = SAMPLERS["ddim"].levels(ScheduleConfig(), 5)
    sample = jax.jit(lambda x, keys: SAMPLERS["ddim"](field, x, levels, eta=1.0, keys=keys))
    together, alone = sample(x, keys), sample(x[1:2], keys[1:2])
    np.testing.assert_array_equal(together[1], alone[0])
    assert len(np.unique(together)) == 6
    # No key of the sampler's noise is that of an image's first noise.
    first = jax.vmap(lambda s, i: jax.random.fold_in(jax.random.key(s), i))(seeds, indices)
    assert len(np.unique(jax.random.key_data(jnp.concatenate([keys, first])), axis=0)) == 6


def test_eta_is_refused_where_it_means_nothing() -> None:
    x, levels = jnp.zeros(3), levels_of(ScheduleConfig(), 5)
    with pytest.raises(UserError, match="those that do: ddim"):
        SAMPLERS["plms"](field, x, levels, eta=0.5)
    with pytest.raises(UserError, match="accepted are 0 to 1"):
        SAMPLERS["ddim"](field, x, levels, eta=1.5)
    with pytest.raises(ValueError, match="keys"):
        SAMPLERS["ddim"](field, x, levels, eta=0.5)


@pytest.mark.parametrize("name", GUIDED)
def test_state_is_float32_under_a_bfloat16_model(name: str) -> None:
    def half(x: jax.Array, t: jax.Array) -> jax.Array:
        assert x.dtype == jnp.float32
        return jnp.full(x.shape, 0.5, jnp.bfloat16)

    # 0.5 is a bfloat16, so that all rounding is the sampler's own.
    x = jnp.asarray(START, jnp.bfloat16)
    levels = SAMPLERS[name].levels(ScheduleConfig(), 50)
    out = SAMPLERS[name](half, x, levels)
    assert out.dtype == jnp.float32
    with jax.enable_x64(True):
        exact = SAMPLERS[name](lambda x, t: jnp.full(x.shape, 0.5), jnp.asarray(START), levels)
    np.testing.assert_allclose(out, exact, rtol=3e-6)
