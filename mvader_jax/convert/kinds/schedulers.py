"""diffusers' scheduler_config.json: the noise schedule in it, whichever sampler it names, and ours as PNDM's."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

from mvader_jax.convert.settings import Settings
from mvader_jax.convert.tensors import shown
from mvader_jax.diffusion.schedule import Prediction, ScheduleConfig, Spacing
from mvader_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class _Class:
    """What a scheduler of diffusers takes for keys that its file lacks."""

    betas: tuple[float, float] = (0.0001, 0.02)
    beta_schedule: str = "linear"
    spacing: Spacing | None = "linspace"
    alpha_to_one: bool = False


#: Theirs is "leading", which is Stable Diffusion's, so that other samplers keep their own.
_LEADING = _Class(spacing=None)
_KARRAS = _Class(betas=(0.00085, 0.012))
#: Those whose noise is Stable Diffusion's: the schedule below, at whole timesteps. What draws is chosen later.
_CLASSES = {
    "DDIMScheduler": dataclasses.replace(_LEADING, alpha_to_one=True),
    "DDIMParallelScheduler": dataclasses.replace(_LEADING, alpha_to_one=True),
    "DDPMScheduler": _LEADING,
    "DDPMParallelScheduler": _LEADING,
    "DEISMultistepScheduler": _Class(),
    "DPMSolverMultistepScheduler": _Class(),
    "DPMSolverSDEScheduler": _KARRAS,
    "DPMSolverSinglestepScheduler": _Class(),
    "EulerAncestralDiscreteScheduler": _Class(),
    "EulerDiscreteScheduler": _Class(),
    "HeunDiscreteScheduler": _KARRAS,
    "KDPM2AncestralDiscreteScheduler": _KARRAS,
    "KDPM2DiscreteScheduler": _KARRAS,
    "LCMScheduler": _Class(_KARRAS.betas, "scaled_linear", spacing=None, alpha_to_one=True),
    "LMSDiscreteScheduler": _Class(),
    "PNDMScheduler": _LEADING,
    "SASolverScheduler": _Class(),
    "UniPCMultistepScheduler": _Class(),
}
#: Classes of other kinds of model, by a part of their name.
_OTHERS = {
    "FlowM": "a flow-matching model's scheduler (Stable Diffusion 3, FLUX)",
    "EDM": "a scheduler of an EDM model",
    "TCD": "a scheduler of a trajectory consistency model, distilled to a few steps",
    "CMStochastic": "a consistency model's scheduler",
    "UnCLIP": "unCLIP's scheduler",
    "Karras": "a scheduler of a score-based model",
    "ScoreSde": "a scheduler of a score-based model",
    "VQDiffusion": "VQ-Diffusion's scheduler",
    "CogVideoX": "CogVideoX's scheduler",
}
_ACCEPTED: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear"),
    "interpolation_type": ("linear",),
    "prediction_type": get_args(Prediction),
    "rescale_betas_zero_snr": (False,),
    "shift_terminal": (),
    "sigma_max": (),
    "sigma_min": (),
    "thresholding": (False,),
    "timestep_spacing": get_args(Spacing),
    "timestep_type": ("discrete",),
    "trained_betas": (),
    "use_beta_sigmas": (False,),
    "use_dynamic_shifting": (False,),
    "use_exponential_sigmas": (False,),
    "use_flow_sigmas": (False,),
    "use_karras_sigmas": (False,),
    "use_lu_lambdas": (False,),
}
#: What LCMScheduler heeds, of a UNet that was distilled to few steps.
FEW_STEPS = "LCMScheduler"
_FEW_STEPS: dict[str, tuple[Any, ...]] = {"clip_sample": (False,), "timestep_scaling": (10.0,)}
_SAMPLER = "a sampler's own setting; samplers are chosen when drawing"
_UNUSED = {
    r"_diffusers_version|_use_default_values|_name_or_path|_commit_hash": "how it was saved",
    r"skip_prk_steps|solver_(order|type|p)|algorithm_type|lower_order_final|euler_at_final": _SAMPLER,
    r"predict_x0|disable_corrector|(predictor|corrector)_order|tau_func|noise_sampler_seed": _SAMPLER,
    r"final_sigmas_type|lambda_min_clipped|variance_type": _SAMPLER,
    r"clip_sample": "StableDiffusionPipeline sets it to false",
    r"clip_sample_range|dynamic_thresholding_ratio|sample_max_value": "of clipping, which is off",
    r"flow_shift|time_shift_type": "of flow matching, which is off",
}


def schedule_config(settings: Settings) -> tuple[ScheduleConfig, tuple[str, ...]]:
    """(the schedule of a scheduler_config.json, notes). Raises UserError for what is not computed here.

    Keys that the file lacks are what its class takes for them. steps_offset is what Stable Diffusion's
    pipeline makes of it: 1, whatever the file says.
    """
    name = settings.get("_class_name")
    kind = _class(settings, name)
    settings.require(_ACCEPTED)
    if name == FEW_STEPS:
        settings.require(_FEW_STEPS)
    beta_start, beta_end = (
        settings.number(key, default)
        for key, default in zip(("beta_start", "beta_end"), kind.betas, strict=True)
    )
    if not beta_start <= beta_end < 1:
        raise UserError(f"{settings.where}: beta_start {beta_start} and beta_end {beta_end} are no schedule")
    notes = []
    if name not in (None, "PNDMScheduler", FEW_STEPS):
        notes.append(f"its sampler is {name}'s; `mvader sample --sampler` chooses one (mvader samplers)")
    offset = settings.whole("steps_offset", 1, least=0)
    if offset != 1 and name != FEW_STEPS:  # which has none
        notes.append(
            f"{settings.where} says steps_offset {offset}: 1 is taken, as diffusers' StableDiffusionPipeline does"
        )
    config = ScheduleConfig(
        num_train_steps=settings.whole("num_train_timesteps", 1000),
        beta_start=beta_start,
        beta_end=beta_end,
        beta_schedule=settings.get("beta_schedule", kind.beta_schedule),
        steps_offset=1,
        set_alpha_to_one=settings.flag("set_alpha_to_one", kind.alpha_to_one),
        spacing=settings.get("timestep_spacing", kind.spacing),
        prediction_type=settings.get("prediction_type", "epsilon"),
        original_steps=settings.whole("original_inference_steps", 50),
    )
    settings.done(_UNUSED)
    return config, tuple(notes)


def _class(settings: Settings, name: Any) -> _Class:
    """The class's defaults. Raises UserError for a class of another kind of model."""
    if name is None:
        missing = [key for key in ("beta_start", "beta_end", "beta_schedule") if settings.get(key) is None]
        if missing:
            raise UserError(
                f"{settings.where} has no _class_name, so nothing tells its {' and '.join(missing)}"
            )
        return _LEADING
    if isinstance(name, str) and name in _CLASSES:
        return _CLASSES[name]
    what = next((text for part, text in _OTHERS.items() if isinstance(name, str) and part in name), None)
    raise UserError(
        f"{settings.where}: _class_name is {shown(name)}, {what or 'which is not known'}; accepted are schedulers of "
        "Stable Diffusion 1.x, such as PNDMScheduler"
    )


def schedule_settings(config: ScheduleConfig, distilled: bool = False) -> dict[str, Any]:
    """diffusers' scheduler_config.json. distilled: of a UNet that was distilled to few steps."""
    spacing = {} if config.spacing is None else {"timestep_spacing": config.spacing}
    own: dict[str, Any] = {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "skip_prk_steps": True,
    }
    if distilled:
        own = {
            "_class_name": FEW_STEPS,
            "_diffusers_version": "0.22.0",
            "original_inference_steps": config.original_steps,
        }
    return {
        **own,
        "beta_end": config.beta_end,
        "beta_schedule": config.beta_schedule,
        "beta_start": config.beta_start,
        "num_train_timesteps": config.num_train_steps,
        "prediction_type": config.prediction_type,
        "set_alpha_to_one": config.set_alpha_to_one,
        "steps_offset": config.steps_offset,
        "trained_betas": None,
        **spacing,
    }
