"""Stable Diffusion as CompVis/stable-diffusion saves it: UNet, VAE and text tower in one state dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mvader_jax.convert.engine import Abstract, Link, Skip, SourceMap, links_of
from mvader_jax.convert.kinds.clip_text import clip_text_config, text_links
from mvader_jax.convert.layouts import CONV, LINEAR, POINTWISE, SAME, Layout
from mvader_jax.convert.settings import Settings, count, shape_of
from mvader_jax.convert.tensors import Tensor
from mvader_jax.errors import UserError
from mvader_jax.models.clip_text import ClipTextConfig
from mvader_jax.models.unet import UNetConfig
from mvader_jax.models.vae import VAEConfig

UNET = "model.diffusion_model."
VAE = "first_stage_model."
TEXT = "cond_stage_model.transformer."
_LAYOUTS = {1: SAME, 2: LINEAR, 4: CONV}
_EMA = Skip(r"model_ema\..*", "moving average of the UNet (--ema takes it instead)")
_REPLACED = Skip(r"model\.diffusion_model\..*", "the UNet itself: its moving average was taken")
_EMA_COUNTERS = Skip(r"model_ema\.(decay|num_updates)", "counter of the moving average")
_SKIPS = (
    Skip(
        r"(betas|alphas_cumprod(_prev)?|(sqrt|log)_one_minus_alphas_cumprod|sqrt_(recip(m1)?_)?alphas_cumprod"
        r"|sqrt_recip(m1)?_alphas_cumprod|posterior_(variance|log_variance_clipped|mean_coef[12])|lvlb_weights"
        r"|scale_factor|logvar)",
        "the schedule's tables",
    ),
    Skip(r"first_stage_model\.loss\..*", "loss networks of the VAE's training"),
    Skip(
        r"cond_stage_model\.transformer\.text_model\.embeddings\.position_ids", "position numbers, a buffer"
    ),
    Skip(r"(cond_stage_model\.)?logit_scale", "CLIP's projection: hidden states come before it"),
)
SPELLINGS = (
    (r"^cond_stage_model\.transformer\.(?!text_model\.)", "cond_stage_model.transformer.text_model."),
)
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_RESNET = {"conv_shortcut": "nin_shortcut"}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out_0": "proj_out"}


def _unet_places(config: UNetConfig) -> dict[str, str]:
    """{our module: theirs}: their blocks are one running list a way, ours are nested by level."""
    places = {
        "time_embedding/linear_1": "time_embed.0",
        "time_embedding/linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0",
        "conv_norm_out": "out.0",
        "conv_out": "out.2",
        "mid_block/resnets_0": "middle_block.0",
        "mid_block/attentions_0": "middle_block.1",
        "mid_block/resnets_1": "middle_block.2",
    }
    index, last = 1, len(config.block_out_channels) - 1
    for level, attention in enumerate(config.attention):
        for i in range(config.layers_per_block):
            places[f"down_blocks_{level}/resnets_{i}"] = f"input_blocks.{index}.0"
            if attention:
                places[f"down_blocks_{level}/attentions_{i}"] = f"input_blocks.{index}.1"
            index += 1
        if level < last:
            places[f"down_blocks_{level}/downsamplers_0/conv"] = f"input_blocks.{index}.0.op"
            index += 1
    index = 0
    for block, attention in enumerate(reversed(config.attention)):
        for i in range(config.layers_per_block + 1):
            places[f"up_blocks_{block}/resnets_{i}"] = f"output_blocks.{index}.0"
            if attention:
                places[f"up_blocks_{block}/attentions_{i}"] = f"output_blocks.{index}.1"
            if block < last and i == config.layers_per_block:
                places[f"up_blocks_{block}/upsamplers_0/conv"] = f"output_blocks.{index}.{1 + attention}.conv"
            index += 1
    return places


def _vae_places(config: VAEConfig) -> dict[str, str]:
    """{our module: theirs}: their levels on the way up are numbered from the highest resolution."""
    places = {"quant_conv": "quant_conv", "post_quant_conv": "post_quant_conv"}
    last = len(config.block_out_channels) - 1
    for half in ("encoder", "decoder"):
        places |= {
            f"{half}/conv_in": f"{half}.conv_in",
            f"{half}/conv_norm_out": f"{half}.norm_out",
            f"{half}/conv_out": f"{half}.conv_out",
            f"{half}/mid_block/resnets_0": f"{half}.mid.block_1",
            f"{half}/mid_block/attentions_0": f"{half}.mid.attn_1",
            f"{half}/mid_block/resnets_1": f"{half}.mid.block_2",
        }
    for level in range(last + 1):
        for i in range(config.layers_per_block):
            places[f"encoder/down_blocks_{level}/resnets_{i}"] = f"encoder.down.{level}.block.{i}"
        for i in range(config.layers_per_block + 1):
            places[f"decoder/up_blocks_{level}/resnets_{i}"] = f"decoder.up.{last - level}.block.{i}"
        if level < last:
            places[f"encoder/down_blocks_{level}/downsamplers_0/conv"] = (
                f"encoder.down.{level}.downsample.conv"
            )
            places[f"decoder/up_blocks_{level}/upsamplers_0/conv"] = (
                f"decoder.up.{last - level}.upsample.conv"
            )
    return places


def _placed(path: str, places: Mapping[str, str]) -> tuple[str, str, str]:
    """(their module, the rest of our path within it, bias or weight)."""
    module, leaf = path.rsplit("/", 1)
    rest: list[str] = []
    while module not in places:
        module, _, inner = module.rpartition("/")
        rest.insert(0, inner)
    return places[module], "/".join(rest), "bias" if leaf == "bias" else "weight"


def _unet_links(unet: Any, config: UNetConfig, ema: bool) -> tuple[Link, ...]:
    places = _unet_places(config)

    def rule(path: str, shape: tuple[int, ...]) -> tuple[str, Layout, int]:
        place, rest, kind = _placed(path, places)
        if "resnets" in path:
            rest = _RESNET[rest]
        rest = re.sub(r"\b(transformer_blocks|to_out|net)_(\d)", r"\1.\2", rest).replace("/", ".")
        name = ".".join(filter(None, (place, rest, kind)))
        if ema:
            # Buffers cannot have dots in their names, so ldm/modules/ema.py takes them out.
            name = "model_ema." + f"diffusion_model.{name}".replace(".", "")
            return name, _LAYOUTS[len(shape)], 0
        return UNET + name, _LAYOUTS[len(shape)], 0

    return links_of("unet", unet, rule)


def _vae_links(vae: Any, config: VAEConfig) -> tuple[Link, ...]:
    places = _vae_places(config)

    def rule(path: str, shape: tuple[int, ...]) -> tuple[str, Layout, int]:
        place, rest, kind = _placed(path, places)
        names = _VAE_ATTENTION if "attentions" in path else _VAE_RESNET
        rest = names.get(rest, rest)
        layout = POINTWISE if len(shape) == 2 else _LAYOUTS[len(shape)]
        return VAE + ".".join(filter(None, (place, rest, kind))), layout, 0

    return links_of("vae", vae, rule)


def compvis_map(
    abstract: Abstract, unet: UNetConfig | None, vae: VAEConfig | None, *, ema: bool = False
) -> SourceMap:
    """abstract: the trees of unet, vae and text_encoder, or of some of them. ema: the moving average of
    the UNet instead of the UNet itself."""
    links: tuple[Link, ...] = ()
    if unet is not None and "unet" in abstract:
        links += _unet_links(abstract["unet"], unet, ema)
    if vae is not None and "vae" in abstract:
        links += _vae_links(abstract["vae"], vae)
    if "text_encoder" in abstract:
        links += text_links(abstract["text_encoder"], TEXT)
    skips = (*_SKIPS, _EMA_COUNTERS, _REPLACED) if ema else (*_SKIPS, _EMA)
    return SourceMap(
        "CompVis' Stable Diffusion",
        links,
        skips,
        spellings=SPELLINGS,
        optional=frozenset(["vae", "text_encoder"]),
    )


def compvis_config(
    tensors: Mapping[str, Tensor], settings: Settings
) -> tuple[UNetConfig, VAEConfig | None, ClipTextConfig | None]:
    """The architectures, from names and shapes; the text tower and the VAE may be missing.

    Stable Diffusion 1.x needs no settings; another width takes from them num_heads, norm_groups,
    vae_norm_groups and num_attention_heads (of the text tower), and optionally sample_size and
    scaling_factor. Raises UserError where they lack something.
    """
    width, in_channels = shape_of(tensors, f"{UNET}input_blocks.0.0.weight", 4)[:2]
    known = width == 320
    if not known and not settings.given:
        raise UserError(
            f"a UNet of width {width} is not Stable Diffusion 1.x's, and its shapes do not tell its heads; "
            "pass --config FILE.json with num_heads and norm_groups"
        )
    widths: list[int] = []
    attention: list[bool] = []
    layers = 0
    for index in range(1, count(tensors, rf"{re.escape(UNET)}input_blocks\.(\d+)\.")):
        block = f"{UNET}input_blocks.{index}"
        if f"{block}.0.op.weight" in tensors:
            layers = layers or len(widths)
            continue
        widths.append(shape_of(tensors, f"{block}.0.out_layers.3.weight", 4)[0])
        attention.append(any(name.startswith(f"{block}.1.") for name in tensors))
    layers = layers or len(widths)
    contexts = [t.shape[1] for name, t in tensors.items() if re.match(rf"{UNET}.*attn2\.to_k\.weight", name)]
    if not contexts or len(widths) % layers:
        raise UserError(
            "its UNet has no cross-attention, or blocks of different length: not Stable Diffusion's"
        )
    unet = UNetConfig(
        in_channels=in_channels,
        out_channels=shape_of(tensors, f"{UNET}out.2.weight", 4)[0],
        block_out_channels=tuple(widths[::layers]),
        layers_per_block=layers,
        attention=tuple(attention[::layers]),
        cross_attention_dim=contexts[0],
        num_heads=settings.heads("num_heads", 8 if known else None),
        norm_groups=settings.whole("norm_groups", 32 if known else None),
        sample_size=settings.whole("sample_size", 64),
    )
    vae = None
    if f"{VAE}quant_conv.weight" in tensors:
        levels = count(tensors, rf"{re.escape(VAE)}encoder\.down\.(\d+)\.")
        vae_widths = tuple(
            shape_of(tensors, f"{VAE}encoder.down.{i}.block.0.conv2.weight", 4)[0] for i in range(levels)
        )
        vae = VAEConfig(
            in_channels=shape_of(tensors, f"{VAE}encoder.conv_in.weight", 4)[1],
            block_out_channels=vae_widths,
            layers_per_block=count(tensors, rf"{re.escape(VAE)}encoder\.down\.0\.block\.(\d+)\."),
            latent_channels=shape_of(tensors, f"{VAE}post_quant_conv.weight", 4)[0],
            norm_groups=settings.whole("vae_norm_groups", 32 if known else None),
            scaling_factor=float(settings.get("scaling_factor", 0.18215)),
            sample_size=unet.sample_size * 2 ** (levels - 1),
        )
    text = None
    if f"{TEXT}text_model.embeddings.token_embedding.weight" in tensors:
        text = clip_text_config(tensors, settings, TEXT)
    return unet, vae, text


def compvis_settings(
    unet: UNetConfig | None, vae: VAEConfig | None, text: ClipTextConfig | None
) -> dict[str, Any]:
    """What a CompVis checkpoint's shapes do not tell, written beside an exported one."""
    settings: dict[str, Any] = {}
    if unet is not None:
        settings |= {
            "num_heads": unet.num_heads,
            "norm_groups": unet.norm_groups,
            "sample_size": unet.sample_size,
        }
    if vae is not None:
        settings |= {"vae_norm_groups": vae.norm_groups, "scaling_factor": vae.scaling_factor}
    if text is not None:
        settings |= {"num_attention_heads": text.num_heads, "hidden_act": text.activation}
    return settings
