"""Stable Diffusion as a diffusers folder: UNet2DConditionModel, AutoencoderKL, PNDMScheduler."""

from __future__ import annotations

import re
from typing import Any

from mvader_jax.convert.engine import SourceMap, links_of
from mvader_jax.convert.layouts import CONV, LINEAR, SAME, Layout
from mvader_jax.convert.settings import Settings
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.errors import UserError
from mvader_jax.models.unet import UNetConfig
from mvader_jax.models.vae import VAEConfig

_INDEXED = re.compile(
    r"\b(down_blocks|up_blocks|resnets|attentions|transformer_blocks|downsamplers|upsamplers|to_out|net)_(\d+)"
)
_LAYOUTS = {1: SAME, 2: LINEAR, 4: CONV}
#: AutoencoderKL's attention before diffusers 0.15: other names, the same linear layers.
VAE_SPELLINGS = (
    (r"\.attentions\.0\.query\.", ".attentions.0.to_q."),
    (r"\.attentions\.0\.key\.", ".attentions.0.to_k."),
    (r"\.attentions\.0\.value\.", ".attentions.0.to_v."),
    (r"\.attentions\.0\.proj_attn\.", ".attentions.0.to_out.0."),
)


def diffusers_name(path: str) -> str:
    """Our module names follow diffusers', with `_` where it has a dot before an index."""
    module, leaf = path.rsplit("/", 1)
    name = _INDEXED.sub(r"\1.\2", module).replace("/", ".")
    return f"{name}.{'bias' if leaf == 'bias' else 'weight'}"


def _rule(path: str, shape: tuple[int, ...]) -> tuple[str, Layout, int]:
    return diffusers_name(path), _LAYOUTS[len(shape)], 0


def unet_map(unet: Any) -> SourceMap:
    """unet: the tree of our component."""
    return SourceMap("diffusers' UNet2DConditionModel", links_of("unet", unet, _rule))


def vae_map(vae: Any) -> SourceMap:
    """vae: the tree of our component."""
    return SourceMap("diffusers' AutoencoderKL", links_of("vae", vae, _rule), spellings=VAE_SPELLINGS)


_UNET_ACCEPTED: dict[str, tuple[Any, ...]] = {
    "_class_name": ("UNet2DConditionModel",),
    "act_fn": ("silu",),
    "addition_embed_type": (),
    "center_input_sample": (False,),
    "class_embed_type": (),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (),
    "encoder_hid_dim_type": (),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_class_embeds": (),
    "only_cross_attention": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_embedding_type": ("positional",),
    "transformer_layers_per_block": (1,),
    "use_linear_projection": (False,),
}


def unet_config(settings: Settings) -> UNetConfig:
    """From diffusers' config.json. Raises UserError for what the UNet here does not compute."""
    settings.require(_UNET_ACCEPTED)
    down = settings.get("down_block_types", ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"])
    widths = settings.get("block_out_channels", [320, 640, 1280, 1280])
    attention = tuple(kind == "CrossAttnDownBlock2D" for kind in down)
    up = settings.get("up_block_types")
    kinds = {"CrossAttnDownBlock2D", "DownBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"}
    mirrored = up is None or tuple(kind == "CrossAttnUpBlock2D" for kind in reversed(up)) == attention
    if set(down) | set(up or ()) > kinds or not mirrored or len(down) != len(widths):
        raise UserError(
            f"{settings.where}: its blocks {down} and {up} are not Stable Diffusion's kind (CrossAttnDownBlock2D, "
            "DownBlock2D and the same on the way up)"
        )
    return UNetConfig(
        in_channels=settings.whole("in_channels", 4),
        out_channels=settings.whole("out_channels", 4),
        block_out_channels=tuple(widths),
        layers_per_block=settings.whole("layers_per_block", 2),
        attention=attention,
        cross_attention_dim=settings.whole("cross_attention_dim", 1280),
        # diffusers' older key names the heads of a level, whatever it is called.
        num_heads=settings.heads(
            "attention_head_dim" if settings.get("num_attention_heads") is None else "num_attention_heads", 8
        ),
        norm_groups=settings.whole("norm_num_groups", 32),
        norm_eps=float(settings.get("norm_eps", 1e-5)),
        sample_size=settings.whole("sample_size", 64),
    )


def unet_settings(config: UNetConfig) -> dict[str, Any]:
    """diffusers' config.json of a UNet."""
    return {
        "_class_name": "UNet2DConditionModel",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "attention_head_dim": config.num_heads
        if isinstance(config.num_heads, int)
        else list(config.num_heads),
        "block_out_channels": list(config.block_out_channels),
        "center_input_sample": False,
        "cross_attention_dim": config.cross_attention_dim,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention],
        "downsample_padding": 1,
        "flip_sin_to_cos": True,
        "freq_shift": 0,
        "in_channels": config.in_channels,
        "layers_per_block": config.layers_per_block,
        "mid_block_scale_factor": 1,
        "norm_eps": config.norm_eps,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.out_channels,
        "sample_size": config.sample_size,
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention)],
    }


_VAE_ACCEPTED: dict[str, tuple[Any, ...]] = {
    "_class_name": ("AutoencoderKL",),
    "act_fn": ("silu",),
    "latents_mean": (),
    "latents_std": (),
    "mid_block_add_attention": (True,),
    "shift_factor": (),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}


def vae_config(settings: Settings) -> VAEConfig:
    """From diffusers' config.json. Raises UserError for what the VAE here does not compute."""
    settings.require(_VAE_ACCEPTED)
    widths = settings.get("block_out_channels", [128, 256, 512, 512])
    channels = settings.whole("in_channels", 3)
    settings.agree("out_channels", channels)
    for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        settings.require({key: ([kind] * len(widths),)})
    return VAEConfig(
        in_channels=channels,
        block_out_channels=tuple(widths),
        layers_per_block=settings.whole("layers_per_block", 2),
        latent_channels=settings.whole("latent_channels", 4),
        norm_groups=settings.whole("norm_num_groups", 32),
        scaling_factor=float(settings.get("scaling_factor", 0.18215)),
        sample_size=settings.whole("sample_size", 512),
    )


def vae_settings(config: VAEConfig) -> dict[str, Any]:
    """diffusers' config.json of a VAE."""
    levels = len(config.block_out_channels)
    return {
        "_class_name": "AutoencoderKL",
        "_diffusers_version": "0.6.0",
        "act_fn": "silu",
        "block_out_channels": list(config.block_out_channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.in_channels,
        "sample_size": config.sample_size,
        "scaling_factor": config.scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def schedule_config(settings: Settings) -> ScheduleConfig:
    """From diffusers' scheduler_config.json, of whichever sampler. Raises UserError for another prediction."""
    settings.require({"prediction_type": ("epsilon",), "beta_schedule": ("linear", "scaled_linear")})
    if settings.get("trained_betas") is not None:
        raise UserError(f"{settings.where}: a list of trained_betas is not supported")
    return ScheduleConfig(
        num_train_steps=settings.whole("num_train_timesteps", 1000),
        beta_start=float(settings.get("beta_start", 0.00085)),
        beta_end=float(settings.get("beta_end", 0.012)),
        beta_schedule=settings.get("beta_schedule", "scaled_linear"),
        # Stable Diffusion 1.1's file lacks the offset that its own code uses.
        steps_offset=int(settings.get("steps_offset", 1)),
        set_alpha_to_one=bool(settings.get("set_alpha_to_one", False)),
    )


def schedule_settings(config: ScheduleConfig) -> dict[str, Any]:
    """diffusers' scheduler_config.json."""
    return {
        "_class_name": "PNDMScheduler",
        "_diffusers_version": "0.6.0",
        "beta_end": config.beta_end,
        "beta_schedule": config.beta_schedule,
        "beta_start": config.beta_start,
        "num_train_timesteps": config.num_train_steps,
        "prediction_type": "epsilon",
        "set_alpha_to_one": config.set_alpha_to_one,
        "skip_prk_steps": True,
        "steps_offset": config.steps_offset,
        "trained_betas": None,
    }
