"""MAGMA's checkpoint (Aleph-Alpha/magma): language model, adapters, image prefix and encoder in one dict.

Version 1 wraps the MLP in a sequence with its adapter; version 2 wraps attention as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from mvader_jax.convert.engine import Abstract, Alias, Link, Skip, SourceMap, links_of
from mvader_jax.convert.kinds.clip_resnet import COUNTERS, encoder_config, encoder_links
from mvader_jax.convert.kinds.gptj import gptj_6b_like
from mvader_jax.convert.layouts import LINEAR, SAME, Layout
from mvader_jax.convert.settings import Settings, count, divide, shape_of
from mvader_jax.convert.tensors import Tensor
from mvader_jax.errors import UserError
from mvader_jax.models.decoder import AdaptersConfig, DecoderConfig
from mvader_jax.models.image_encoder import ImageEncoderConfig
from mvader_jax.models.image_prefix import ImagePrefixConfig

_BLOCK = "lm.transformer.h.{layer}."
_SKIPS = (
    COUNTERS,
    Skip(
        r"lm\.transformer\.h\.\d+\.attn\.(attn_block\.)?attention\.(bias|masked_bias|scale_attn|sin|cos)",
        "buffer of attention: mask, scale or rotary table",
    ),
)
_ALIASES = (
    Alias(r"word_embedding\.(weight)", r"lm.transformer.wte.\1"),
    Alias(r"transformer\.(\d+\..*)", r"lm.transformer.h.\1"),
)
#: GPT-Neo's names of GPT-J's two layers.
_MLP = {"fc_in": "c_fc", "fc_out": "c_proj"}


def magma_map(abstract: Abstract, adapters: AdaptersConfig | None) -> SourceMap:
    """abstract: the trees of our decoder, adapters, image_prefix and image_encoder."""
    attention = "attn.attn_block.attention" if adapters and adapters.attention else "attn.attention"
    mlp = "mlp.0" if adapters and adapters.mlp else "mlp"

    def decoder(path: str, shape: tuple[int, ...]) -> tuple[str, Layout, int]:
        module, leaf = path.rsplit("/", 1)
        kind = "bias" if leaf == "bias" else "weight"
        layout = LINEAR if leaf == "kernel" else SAME
        if module in ("wte", "ln_f"):
            return f"lm.transformer.{module}.{kind}", layout, 0
        if module == "lm_head":
            return f"lm.lm_head.{kind}", layout, 0
        within = module.removeprefix("layers/").split("/")
        if within[0] == "attn":
            within[0] = attention
        elif within[0] == "mlp":
            within = [mlp, _MLP[within[1]]]
        return f"{_BLOCK}{'.'.join(within)}.{kind}", layout, 0

    def adapter(path: str, shape: tuple[int, ...]) -> tuple[str, Layout, int]:
        _, where, which, leaf = path.split("/")
        home = "mlp.1" if where == "adapter_mlp" else "attn"
        index = {"down": 0, "up": 2}[which]
        kind = "bias" if leaf == "bias" else "weight"
        return f"{_BLOCK}{home}.adapter.{index}.{kind}", LINEAR if leaf == "kernel" else SAME, 0

    def prefix(path: str, shape: tuple[int, ...]) -> tuple[str, Layout, int]:
        module, leaf = path.split("/")
        kind = "bias" if leaf == "bias" else "weight"
        return f"image_prefix.{module}.{kind}", LINEAR if leaf == "kernel" else SAME, 0

    links: tuple[Link, ...] = ()
    if "decoder" in abstract:
        links += links_of("decoder", abstract["decoder"], decoder)
    if "adapters" in abstract:
        links += links_of("adapters", abstract["adapters"], adapter)
    if "image_prefix" in abstract:
        links += links_of("image_prefix", abstract["image_prefix"], prefix)
    if "image_encoder" in abstract:
        links += encoder_links(abstract["image_encoder"], "image_prefix.enc.")
    return SourceMap("MAGMA", links, _SKIPS, _ALIASES, optional=frozenset(["decoder"]))


def canonical(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by the names that the links use, aliases resolved."""
    result = dict(tensors)
    for alias in _ALIASES:
        for name, tensor in tensors.items():
            if re.fullmatch(alias.pattern, name):
                result.setdefault(re.sub(alias.pattern, alias.target, name), tensor)
    return result


def magma_adapters(tensors: Mapping[str, Tensor]) -> AdaptersConfig | None:
    """Which adapters a checkpoint has, None for none. Raises UserError for a kind unknown here."""
    mlp = "lm.transformer.h.0.mlp.1.adapter.0.weight"
    attention = "lm.transformer.h.0.attn.adapter.0.weight"
    strange = [name for name in tensors if re.search(r"\.(adapter_scale|module\.)", name)]
    if strange:
        raise UserError(f"its adapters are parallel ones ({strange[0]}), which no public MAGMA has")
    if mlp not in tensors and attention not in tensors:
        return None
    width = shape_of(tensors, mlp if mlp in tensors else attention, 2)[0]
    return AdaptersConfig(width=width, mlp=mlp in tensors, attention=attention in tensors)


def magma_config(
    tensors: Mapping[str, Tensor], settings: Settings
) -> tuple[DecoderConfig, AdaptersConfig | None, ImageEncoderConfig, ImagePrefixConfig]:
    """The four architectures. The public checkpoints need no settings; others give those of GPT-J
    (n_head, rotary_dim, n_positions) and image_size. Raises UserError where they lack something.

    tensors: with aliases resolved. Without a copy of the language model its vocabulary is GPT-J-6B's,
    or the settings' vocab_size and head_vocab_size.
    """
    adapters = magma_adapters(tensors)
    width, in_width = shape_of(tensors, "image_prefix.proj.weight", 2)
    layers = count(tensors, r"lm\.transformer\.h\.(\d+)\.")
    public = DecoderConfig.gptj_6b()
    fc_in = f"{_BLOCK.format(layer=0)}{'mlp.0' if adapters and adapters.mlp else 'mlp'}.c_fc.weight"
    whole = "lm.transformer.wte.weight" in tensors
    dimensions: dict[str, Any] = {
        "width": width,
        "num_layers": layers,
        "vocab_size": settings.whole("vocab_size", public.vocab_size),
        "head_vocab_size": settings.whole("head_vocab_size", public.head_vocab_size),
        "mlp_width": settings.whole("n_inner", 4 * width),
    }
    if whole:
        dimensions["vocab_size"] = shape_of(tensors, "lm.transformer.wte.weight", 2)[0]
        dimensions["head_vocab_size"] = shape_of(tensors, "lm.lm_head.weight", 2)[0]
        dimensions["mlp_width"] = shape_of(tensors, fc_in, 2)[0]
    if settings.get("n_head") is None:
        decoder = gptj_6b_like(dimensions, "n_head, rotary_dim and image_size")
    else:
        heads = settings.whole("n_head")
        decoder = DecoderConfig(
            **dimensions,
            num_heads=heads,
            head_dim=divide(width, heads, settings.where),
            rotary_dim=settings.whole("rotary_dim"),
            max_positions=settings.whole("n_positions", 2048),
        )
    encoder = encoder_config(tensors, settings, "image_prefix.enc.")
    if in_width != encoder.token_width:
        raise UserError(
            f"the image prefix reads {in_width} channels, but the encoder gives {encoder.token_width}"
        )
    return decoder, adapters, encoder, ImagePrefixConfig(in_width=in_width, width=width)


def is_gptj(config: DecoderConfig) -> bool:
    """Whether a decoder is of GPT-J's architecture, at any size."""
    own = DecoderConfig.gptj_6b()
    kept = (
        "block",
        "rotary",
        "rotary_base",
        "activation",
        "attention_bias",
        "out_bias",
        "head_bias",
        "norm_eps",
    )
    return all(getattr(config, name) == getattr(own, name) for name in kept)


def magma_settings(decoder: DecoderConfig | None, encoder: ImageEncoderConfig | None) -> dict[str, Any]:
    """What a MAGMA checkpoint's shapes do not tell, written beside an exported one."""
    settings: dict[str, Any] = {}
    if decoder is not None:
        settings |= {
            "n_head": decoder.num_heads,
            "rotary_dim": decoder.rotary_dim,
            "n_positions": decoder.max_positions,
            "n_inner": decoder.mlp_width,
            "vocab_size": decoder.vocab_size,
            "head_vocab_size": decoder.head_vocab_size,
        }
    if encoder is not None:
        settings["image_size"] = encoder.image_size
    return settings
