"""Where CompVis' Stable Diffusion keeps what our UNet and VAE hold: their blocks are numbered otherwise."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mvader_jax.convert.engine import Link, links_of
from mvader_jax.convert.layouts import CONV, LINEAR, POINTWISE, SAME, Layout
from mvader_jax.models.unet import UNetConfig
from mvader_jax.models.vae import VAEConfig

UNET = "model.diffusion_model."
VAE = "first_stage_model."
_LAYOUTS = {1: SAME, 2: LINEAR, 4: CONV}
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


def unet_links(unet: Any, config: UNetConfig, ema: bool) -> tuple[Link, ...]:
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


def vae_links(vae: Any, config: VAEConfig) -> tuple[Link, ...]:
    places = _vae_places(config)

    def rule(path: str, shape: tuple[int, ...]) -> tuple[str, Layout, int]:
        place, rest, kind = _placed(path, places)
        names = _VAE_ATTENTION if "attentions" in path else _VAE_RESNET
        rest = names.get(rest, rest)
        layout = POINTWISE if len(shape) == 2 else _LAYOUTS[len(shape)]
        return VAE + ".".join(filter(None, (place, rest, kind))), layout, 0

    return links_of("vae", vae, rule)
