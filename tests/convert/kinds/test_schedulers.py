"""A source's noise schedule and timesteps are what diffusers makes of its scheduler_config.json, or refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import twins
from converting import convert, converted

from mvader_jax.convert.kinds.schedulers import _CLASSES, schedule_config, schedule_settings
from mvader_jax.convert.settings import Settings
from mvader_jax.diffusion.levels import levels_of
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.errors import UserError

#: As Stable Diffusion 1.1 to 1.5's own files have it.
SD: dict[str, Any] = {
    "_class_name": "PNDMScheduler",
    "_diffusers_version": "0.6.0",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "clip_sample": False,
    "num_train_timesteps": 1000,
    "set_alpha_to_one": False,
    "skip_prk_steps": True,
    "steps_offset": 1,
    "trained_betas": None,
}


def read(values: dict[str, Any]) -> ScheduleConfig:
    return schedule_config(Settings(values, "scheduler_config.json"))[0]


def test_stable_diffusions_own_is_the_default() -> None:
    assert read(SD) == ScheduleConfig()
    # 1.1's file lacks what its own code uses.
    assert (
        read({key: SD[key] for key in SD if key not in ("steps_offset", "clip_sample")}) == ScheduleConfig()
    )
    assert schedule_config(Settings(SD, "x"))[1] == ()


@pytest.mark.parametrize("name", sorted(_CLASSES))
def test_what_a_file_lacks_is_what_its_class_takes(name: str) -> None:
    # One of them draws its noise with a library that is not installed; its schedule needs none.
    scheduler = (
        getattr(diffusers, name) if name != "DPMSolverSDEScheduler" else diffusers.HeunDiscreteScheduler
    )
    scheduler = scheduler()
    ours = read({"_class_name": name})
    np.testing.assert_allclose(ours.alphas_cumprod(), scheduler.alphas_cumprod.numpy(), rtol=1e-4)
    expected = scheduler.config.get("timestep_spacing")
    assert expected is None or (ours.spacing or "leading") == expected
    assert ours.set_alpha_to_one == scheduler.config.get("set_alpha_to_one", False)
    # Each key of its own file is accounted for.
    written = json.loads(scheduler.to_json_string())
    if name in ("DPMSolverMultistepScheduler", "SASolverScheduler", "DEISMultistepScheduler"):
        assert "use_flow_sigmas" in written
    assert read(written).alphas_cumprod()[-1] == ours.alphas_cumprod()[-1]


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", ["DDIMScheduler", "PNDMScheduler"])
def test_timesteps_are_diffusers_own(name: str, spacing: str, tmp_path: Path) -> None:
    source = twins.save_diffusers(tmp_path / "sd", twins.unet())
    file = source / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**SD, "_class_name": name, "timestep_spacing": spacing}))
    schedule = converted(source, tmp_path / "out").model.schedule
    assert schedule is not None and schedule.spacing == spacing
    # The pipeline is what draws, and it has its say on the offset.
    scheduler = getattr(diffusers, name).from_pretrained(source / "scheduler")
    for steps in (1, 2, 7, 20, 50, 333, 1000):
        scheduler.set_timesteps(steps)
        # PNDM asks twice at its second timestep; of one step its own file repeats it too.
        theirs = np.sort(np.unique(scheduler.timesteps.numpy()))[::-1]
        ours = levels_of(schedule, steps).timesteps
        np.testing.assert_array_equal(
            np.unique(ours)[::-1], np.unique(np.clip(theirs, 0, 999))[::-1], str(steps)
        )


@pytest.mark.parametrize("said", [0, 3, None])
def test_the_offset_is_what_the_pipeline_makes_of_it(said: int | None, tmp_path: Path) -> None:
    source = twins.save_diffusers(tmp_path / "sd", twins.unet())
    file = source / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps({**SD, "steps_offset": said}))
    report = convert(source, tmp_path / "out")
    assert any(f"says steps_offset {said}: 1 is taken" in note for note in report.notes) == (said is not None)
    pipeline = diffusers.StableDiffusionPipeline(
        vae=twins.vae(),
        text_encoder=None,
        tokenizer=None,
        unet=twins.unet(),
        scheduler=diffusers.PNDMScheduler.from_pretrained(source / "scheduler"),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    ours = converted(source, tmp_path / "again").model.schedule
    assert ours is not None and ours.steps_offset == pipeline.scheduler.config.steps_offset == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"prediction_type": "sample"}, "prediction_type is 'sample'"),
        ({"thresholding": True}, "thresholding is True"),
        ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr is True"),
        ({"trained_betas": [0.1, 0.2]}, r"trained_betas is \[0\.1, 0\.2\]"),
        ({"beta_schedule": "squaredcos_cap_v2"}, "beta_schedule is 'squaredcos_cap_v2'"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas is True"),
        ({"use_exponential_sigmas": True}, "use_exponential_sigmas is True"),
        ({"use_flow_sigmas": True}, "use_flow_sigmas is True"),
        ({"timestep_spacing": "karras"}, "timestep_spacing is 'karras'"),
        ({"timestep_spacing": 3}, "timestep_spacing is 3"),
        ({"timestep_type": "continuous"}, "timestep_type is 'continuous'"),
        ({"sigma_max": 14.0}, r"sigma_max is 14\.0"),
        ({"shift": 3.0}, r"shift is 3\.0: not known here"),
        ({"snr_shift_scale": 3.0}, r"snr_shift_scale is 3\.0"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "a flow-matching model's scheduler"),
        ({"_class_name": "EDMEulerScheduler"}, "a scheduler of an EDM model"),
        ({"_class_name": "LCMScheduler", "clip_sample": True}, "clip_sample is True"),
        ({"_class_name": "LCMScheduler", "timestep_scaling": 1.0}, r"timestep_scaling is 1\.0"),
        ({"_class_name": "TCDScheduler"}, "a trajectory consistency model"),
        ({"_class_name": "IPNDMScheduler"}, "'IPNDMScheduler', which is not known"),
        ({"_class_name": None, "beta_start": None}, "has no _class_name, so nothing tells its beta_start"),
        ({"_class_name": ["PNDMScheduler"]}, "which is not known"),
        ({"beta_start": -0.1}, r"beta_start is -0\.1, not a positive number"),
        ({"beta_end": float("nan")}, "beta_end is nan, not a positive number"),
        ({"beta_end": 1.5}, "are no schedule"),
        ({"beta_end": 0.0001}, "are no schedule"),
        ({"num_train_timesteps": 0}, "num_train_timesteps is 0, not a positive whole number"),
        ({"num_train_timesteps": 10**30}, "num_train_timesteps is 1000"),
        ({"num_train_timesteps": "many"}, "not a positive whole number"),
        ({"set_alpha_to_one": "yes"}, "set_alpha_to_one is 'yes', not true or false"),
        ({"steps_offset": -1}, "steps_offset is -1, not a whole number from 0 on"),
    ],
)
def test_what_is_not_computed_here_is_refused_by_name(changes: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason) as error:
        read({**SD, **changes})
    assert len(str(error.value)) < 400


def test_out_and_in_again() -> None:
    for config in (
        ScheduleConfig(),
        ScheduleConfig(500, 0.001, 0.02, "linear", 1, True, "trailing"),
        ScheduleConfig(prediction_type="v_prediction"),
    ):
        assert read(schedule_settings(config)) == config
        scheduler = diffusers.PNDMScheduler.from_config(schedule_settings(config))
        np.testing.assert_allclose(scheduler.alphas_cumprod.numpy(), config.alphas_cumprod(), rtol=1e-4)
        assert scheduler.config.prediction_type == config.prediction_type
        assert scheduler.config.timestep_spacing == (config.spacing or "leading")
