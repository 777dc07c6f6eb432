"""CLIP's text tower: transformers' CLIPTextModel (with and without `text_model.`), and OpenAI's own."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from mvader_jax.convert.engine import Link, Skip, SourceMap, links_of
from mvader_jax.convert.kinds import transformers
from mvader_jax.convert.kinds.base import Kind, Options, Part, Source, abstract_of
from mvader_jax.convert.layouts import LINEAR, SAME, Layout, fused_linear, fused_vector
from mvader_jax.convert.settings import Settings, count, divide, shape_of, spelled
from mvader_jax.convert.tensors import Tensor, Weights
from mvader_jax.errors import UserError
from mvader_jax.models.clip_text import ClipTextConfig
from mvader_jax.models.config import ModelConfig
from mvader_jax.prompt.tokenizer import TokenizerConfig

SPELLINGS = ((r"^(?=embeddings\.|encoder\.layers\.|final_layer_norm\.)", "text_model."),)
_SKIPS = (
    Skip(r"(text_model\.)?embeddings\.position_ids", "position numbers, a buffer"),
    Skip(r"(vision_model\..*|visual_projection\.weight)", "CLIP's vision tower"),
    Skip(r"(text_projection\.weight|logit_scale)", "CLIP's projection: hidden states come before it"),
)
_OPENAI_SKIPS = (
    Skip(r"visual\..*", "CLIP's vision tower"),
    Skip(r"(text_projection|logit_scale)", "CLIP's projection: hidden states come before it"),
    Skip(r"(input_resolution|context_length|vocab_size)", "CLIP's constants"),
)
ACCEPTED: dict[str, tuple[Any, ...]] = {
    **transformers.ACCEPTED,
    "hidden_act": ("quick_gelu", "gelu"),
    "model_type": ("clip_text_model",),
    "tie_word_embeddings": (True, False),
}
UNUSED = {
    **transformers.UNUSED,
    r"eos_token_id": "the tokenizer says it; public files say 2",
    r"(attention_)?dropout": "dropout acts in training alone",
    r"projection_dim|logit_scale_init_value": "CLIP's projection: hidden states come before it",
}
#: The text tower is one of two in transformers' whole CLIP.
_UNUSED_WHOLE = {
    **UNUSED,
    r"vision_config(_dict)?|text_config_dict": "CLIP's vision tower, and copies",
}
_OPENAI_MODULES = {
    "layers/layer_norm1": "ln_1",
    "layers/layer_norm2": "ln_2",
    "layers/self_attn/out_proj": "attn.out_proj",
    "layers/mlp/fc1": "mlp.c_fc",
    "layers/mlp/fc2": "mlp.c_proj",
}
_FUSED = {"layers/self_attn/q_proj": 0, "layers/self_attn/k_proj": 1, "layers/self_attn/v_proj": 2}


class ClipText(Kind):
    """The text tower alone or of a whole CLIP, of transformers or OpenAI's."""

    name = "clip-text"
    signs = (
        (r"transformer\.resblocks\.0\.", r"token_embedding\.weight"),
        (r"(text_model\.)?encoder\.layers\.0\.self_attn\.", r"(text_model\.)?embeddings\.token_embedding\."),
    )

    def read(self, weights: Weights, settings: Settings, options: Options) -> Source:
        openai = "transformer.resblocks.0.ln_1.weight" in weights.tensors
        if openai:
            config = openai_text_config(weights.tensors, settings)
            settings.done({r"image_size": "CLIP's image tower's"})
        else:
            config = transformers_text_config(weights, settings)
        model = ModelConfig(embedder="clip_text", text_encoder=config, tokenizer=clip_tokenizer(config))
        abstract = abstract_of(model, "text_encoder")
        make = openai_text_map if openai else clip_text_map
        return Source(self, (Part(weights, make(abstract["text_encoder"])),), model, abstract)


def transformers_text_config(weights: Weights, settings: Settings) -> ClipTextConfig:
    """The architecture by transformers' names, each key of its config.json accounted for."""
    if "text_config" in settings.values:
        inner = settings.inner("text_config")
        settings.require({**ACCEPTED, "model_type": ("clip",)})
        settings.done(_UNUSED_WHOLE)
        settings = inner
    config = clip_text_config(spelled(weights.tensors, SPELLINGS), settings)
    settings.require(ACCEPTED)
    settings.done(UNUSED)
    return config


def clip_tokenizer(text: ClipTextConfig) -> TokenizerConfig:
    """CLIP's: two tokens, the last of its own vocabulary, start and end a text, and the end pads it."""
    # Rows beyond the public vocabulary are tokens learnt later.
    eos = min(text.vocab_size, ClipTextConfig.sd14().vocab_size) - 1
    return dataclasses.replace(
        TokenizerConfig.clip(),
        bos_id=eos - 1,
        eos_id=eos,
        pad_id=eos,
        length=text.max_positions,
        max_positions=text.max_positions,
    )


def text_links(text_encoder: Any, prefix: str = "") -> tuple[Link, ...]:
    """text_encoder: the tree of our component; prefix: what stands before `text_model.`."""

    def rule(path: str, shape: tuple[int, ...]) -> tuple[str, Layout, int]:
        root = f"{prefix}text_model."
        if path == "position_embedding":
            return f"{root}embeddings.position_embedding.weight", SAME, 0
        module, leaf = path.rsplit("/", 1)
        kind = "bias" if leaf == "bias" else "weight"
        module = module.replace("token_embedding", "embeddings/token_embedding")
        module = re.sub("^layers", "encoder/layers/{layer}", module).replace("/", ".")
        return f"{root}{module}.{kind}", LINEAR if leaf == "kernel" else SAME, 0

    return links_of("text_encoder", text_encoder, rule)


def clip_text_map(text_encoder: Any) -> SourceMap:
    """transformers' names. text_encoder: the tree of our component."""
    return SourceMap("CLIP's text model", text_links(text_encoder), _SKIPS, spellings=SPELLINGS)


def openai_text_map(text_encoder: Any) -> SourceMap:
    """OpenAI's names, in an archive or state dict of the whole CLIP."""

    def rule(path: str, shape: tuple[int, ...]) -> tuple[str, Layout, int]:
        if path == "position_embedding":
            return "positional_embedding", SAME, 0
        module, leaf = path.rsplit("/", 1)
        kind = "bias" if leaf == "bias" else "weight"
        if module == "token_embedding":
            return "token_embedding.weight", SAME, 0
        if module == "final_layer_norm":
            return f"ln_final.{kind}", SAME, 0
        return openai_layer(module, leaf, "transformer")

    return SourceMap("CLIP's text tower", links_of("text_encoder", text_encoder, rule), _OPENAI_SKIPS)


def openai_layer(module: str, leaf: str, tower: str) -> tuple[str, Layout, int]:
    """(name, layout, part) of a leaf of a tower's layers by OpenAI's names. tower: "transformer", or the image's."""
    kind, block = "bias" if leaf == "bias" else "weight", f"{tower}.resblocks.{{layer}}"
    if module in _FUSED:
        layout = fused_linear(3) if leaf == "kernel" else fused_vector(3)
        return f"{block}.attn.in_proj_{kind}", layout, _FUSED[module]
    return f"{block}.{_OPENAI_MODULES[module]}.{kind}", LINEAR if leaf == "kernel" else SAME, 0


def clip_text_config(tensors: Mapping[str, Tensor], settings: Settings, prefix: str = "") -> ClipTextConfig:
    """The architecture from shapes and transformers' config.json. ViT-L/14's tower needs no settings.

    tensors: by the map's names. Raises UserError where the settings lack something.
    """
    root = f"{prefix}text_model."
    vocabulary, width = shape_of(tensors, f"{root}embeddings.token_embedding.weight", 2)
    return _config(
        settings,
        vocabulary,
        width,
        layers=count(tensors, rf"{re.escape(root)}encoder\.layers\.(\d+)\."),
        mlp_width=shape_of(tensors, f"{root}encoder.layers.0.mlp.fc1.weight", 2)[0],
        positions=shape_of(tensors, f"{root}embeddings.position_embedding.weight", 2)[0],
        heads=None,
    )


def openai_text_config(tensors: Mapping[str, Tensor], settings: Settings) -> ClipTextConfig:
    """The same from OpenAI's names; their text towers have a head of 64 each."""
    vocabulary, width = shape_of(tensors, "token_embedding.weight", 2)
    return _config(
        settings,
        vocabulary,
        width,
        layers=count(tensors, r"transformer\.resblocks\.(\d+)\."),
        mlp_width=shape_of(tensors, "transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
        positions=shape_of(tensors, "positional_embedding", 2)[0],
        heads=width // 64 if vocabulary == 49408 else None,
    )


def _config(
    settings: Settings,
    vocabulary: int,
    width: int,
    *,
    layers: int,
    mlp_width: int,
    positions: int,
    heads: int | None,
) -> ClipTextConfig:
    public = ClipTextConfig.sd14()
    if heads is None and (width, layers, vocabulary) == (public.width, public.num_layers, public.vocab_size):
        heads = public.num_heads
    if heads is None and settings.get("num_attention_heads") is None:
        raise UserError(
            f"a text tower of width {width} and {layers} layers is not ViT-L/14's, and its shapes do not tell "
            "its heads; pass --config FILE.json with num_attention_heads and hidden_act"
        )
    for key, value in (
        ("hidden_size", width),
        ("num_hidden_layers", layers),
        ("intermediate_size", mlp_width),
        ("vocab_size", vocabulary),
        ("max_position_embeddings", positions),
    ):
        settings.agree(key, value)
    settings.require({"hidden_act": ACCEPTED["hidden_act"]})
    heads = settings.whole("num_attention_heads", heads)
    divide(width, heads, settings.where or "the text tower")
    return ClipTextConfig(
        vocab_size=vocabulary,
        width=width,
        num_layers=layers,
        num_heads=heads,
        mlp_width=mlp_width,
        max_positions=positions,
        activation=settings.get("hidden_act", "quick_gelu"),
        norm_eps=settings.number("layer_norm_eps", 1e-5),
    )


def clip_text_settings(config: ClipTextConfig, eos_id: int, bos_id: int) -> dict[str, Any]:
    """transformers' config.json of the text tower."""
    return {
        "model_type": "clip_text_model",
        "architectures": ["CLIPTextModel"],
        "vocab_size": config.vocab_size,
        "hidden_size": config.width,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "intermediate_size": config.mlp_width,
        "max_position_embeddings": config.max_positions,
        "hidden_act": config.activation,
        "layer_norm_eps": config.norm_eps,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
    }
