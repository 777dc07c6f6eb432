"""diffusers' config.json of UNet2DConditionModel and AutoencoderKL, in and out."""

from __future__ import annotations

from typing import Any

from mvader_jax.convert.settings import Settings
from mvader_jax.errors import UserError
from mvader_jax.models.unet import UNetConfig
from mvader_jax.models.vae import VAEConfig

_SAVED = {
    r"_diffusers_version|_name_or_path|_use_default_values|_commit_hash": "how it was saved",
}
_UNET_ACCEPTED: dict[str, tuple[Any, ...]] = {
    "_class_name": ("UNet2DConditionModel",),
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (),
    "encoder_hid_dim_type": (),
    "flip_sin_to_cos": (True,),
    "freq_shift": (0,),
    "mid_block_only_cross_attention": (False,),
    "mid_block_scale_factor": (1,),
    "mid_block_type": ("UNetMidBlock2DCrossAttn",),
    "num_class_embeds": (),
    "only_cross_attention": (False,),
    "resnet_out_scale_factor": (1.0,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "reverse_transformer_layers_per_block": (),
    "time_embedding_act_fn": (),
    "time_embedding_dim": (),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (),
    "transformer_layers_per_block": (1,),
    "use_linear_projection": (False,),
}
_UNET_UNUSED = {
    **_SAVED,
    r"dropout": "acts in training alone",
    r"decay|inv_gamma|min_decay|optimization_step|power|update_after_step|use_ema_warmup": "how its average was made",
    r"upcast_attention": "the precision of half types' attention, which is always float32 here",
    r"addition_embed_type_num_heads|addition_time_embed_dim|projection_class_embeddings_input_dim": "of embeddings "
    "that are off",
}
_DOWN = ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",)


def unet_config(settings: Settings) -> UNetConfig:
    """From diffusers' config.json. Raises UserError for what the UNet here does not compute."""
    width = settings.get("cross_attention_dim")
    if settings.get("use_linear_projection") is True or settings.get("addition_embed_type") is not None:
        what = {1024: "Stable Diffusion 2.x's", 2048: "Stable Diffusion XL's"}.get(
            width if isinstance(width, int) else 0, "not Stable Diffusion 1.x's"
        )
        key = (
            "use_linear_projection"
            if settings.get("use_linear_projection") is True
            else "addition_embed_type"
        )
        raise UserError(
            f"{settings.where}: this UNet is {what} ({key} is {settings.get(key)!r}, which is not supported); "
            "only Stable Diffusion 1.x is read"
        )
    settings.require(_UNET_ACCEPTED)
    widths = settings.many("block_out_channels", [320, 640, 1280, 1280])
    key = "time_cond_proj_dim"
    guidance = None if settings.get(key) is None else settings.whole(key, least=4)
    config = UNetConfig(
        in_channels=settings.whole("in_channels", 4),
        out_channels=settings.whole("out_channels", 4),
        block_out_channels=widths,
        layers_per_block=settings.whole("layers_per_block", 2),
        attention=_attention(settings, len(widths)),
        cross_attention_dim=settings.whole("cross_attention_dim", 1280),
        # diffusers' older key names the heads of a level, whatever it is called.
        num_heads=settings.heads(
            "attention_head_dim" if settings.get("num_attention_heads") is None else "num_attention_heads", 8
        ),
        norm_groups=settings.whole("norm_num_groups", 32),
        norm_eps=settings.number("norm_eps", 1e-5),
        sample_size=settings.side("sample_size", 64),
        time_cond_proj_dim=guidance,
    )
    settings.get("attention_head_dim")
    settings.done(_UNET_UNUSED)
    return config


def _attention(settings: Settings, levels: int) -> tuple[bool, ...]:
    """Whether each level attends. Raises UserError for blocks that are not computed here."""
    down = settings.words("down_block_types", _DOWN)
    attention = tuple(kind == "CrossAttnDownBlock2D" for kind in down)
    expected = tuple("CrossAttnUpBlock2D" if here else "UpBlock2D" for here in reversed(attention))
    up = settings.words("up_block_types", ("UpBlock2D", *("CrossAttnUpBlock2D",) * 3))
    if not set(down) <= {"CrossAttnDownBlock2D", "DownBlock2D"} or up != expected or len(down) != levels:
        raise UserError(
            f"{settings.where}: its {levels} levels of blocks {', '.join(down)[:200]} and {', '.join(up)[:200]} are "
            "not Stable Diffusion's kind (CrossAttnDownBlock2D, DownBlock2D and the same on the way up)"
        )
    return attention


def unet_settings(config: UNetConfig) -> dict[str, Any]:
    """diffusers' config.json of a UNet."""
    depth = config.transformer_depth
    deep = (
        {}
        if depth == 1
        else {"transformer_layers_per_block": depth if isinstance(depth, int) else list(depth)}
    )
    linear = {"use_linear_projection": True} if config.linear_projection else {}
    guided = {"time_cond_proj_dim": config.time_cond_proj_dim} if config.distilled else {}
    return {
        **deep,
        **linear,
        **guided,
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
    "act_fn": ("silu", "swish"),
    "latents_mean": (),
    "latents_std": (),
    "mid_block_add_attention": (True,),
    "shift_factor": (),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}
_VAE_UNUSED = {**_SAVED, r"force_upcast": "precision of half types: see --dtype when drawing"}


def vae_config(settings: Settings) -> VAEConfig:
    """From diffusers' config.json. Raises UserError for what the VAE here does not compute."""
    settings.require(_VAE_ACCEPTED)
    widths = settings.many("block_out_channels", [64])
    channels = settings.whole("in_channels", 3)
    settings.agree("out_channels", channels)
    for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        settings.require({key: ([kind] * len(widths),)})
    config = VAEConfig(
        in_channels=channels,
        block_out_channels=widths,
        layers_per_block=settings.whole("layers_per_block", 1),
        latent_channels=settings.whole("latent_channels", 4),
        norm_groups=settings.whole("norm_num_groups", 32),
        scaling_factor=settings.number("scaling_factor", 0.18215),
        sample_size=settings.side("sample_size", 512),
    )
    settings.done(_VAE_UNUSED)
    return config


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
