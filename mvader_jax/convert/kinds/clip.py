"""The whole of a CLIP whose image tower is a transformer: OpenAI's archives, and transformers' folders."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from mvader_jax.convert.engine import Abstract, Skip, SourceMap, links_of
from mvader_jax.convert.kinds.base import Kind, Options, Part, Source, abstract_of
from mvader_jax.convert.kinds.clip_text import (
    ACCEPTED,
    UNUSED,
    clip_text_config,
    clip_tokenizer,
    openai_layer,
    openai_text_config,
    openai_text_map,
    text_links,
)
from mvader_jax.convert.layouts import CONV, LINEAR, SAME, Layout
from mvader_jax.convert.settings import Settings, count, divide, shape_of
from mvader_jax.convert.tensors import Tensor, Weights
from mvader_jax.models.clip_text import ClipTextConfig
from mvader_jax.models.clip_vision import ClipProjectionsConfig, ClipVisionConfig
from mvader_jax.models.config import ModelConfig

_SCALE = Skip(r"logit_scale", "the scale of training's logits; scores do not use it")
_SKIPS = (_SCALE, Skip(r"(text|vision)_model\.embeddings\.position_ids", "position numbers, a buffer"))
_OPENAI_SKIPS = (_SCALE, Skip(r"(input_resolution|context_length|vocab_size)", "CLIP's constants"))
_PARTS = ("text_encoder", "vision_encoder", "clip_projections")
#: Keys of the whole's config.json beside its two towers'.
_UNUSED_WHOLE = {
    **UNUSED,
    r"(text|vision)_config_dict": "copies of text_config and vision_config",
    r"logit_scale_init_value": "the scale of training's logits",
}


class Clip(Kind):
    """Both towers and both projections. A CLIP of a ResNet is `clip-resnet`, its text tower alone `clip-text`."""

    name = "clip"
    signs = (
        (
            r"visual\.transformer\.resblocks\.0\.",
            r"transformer\.resblocks\.0\.",
            r"visual\.proj$",
            r"text_projection$",
        ),
        (
            r"vision_model\.encoder\.layers\.0\.",
            r"text_model\.encoder\.layers\.0\.",
            r"visual_projection\.weight",
            r"text_projection\.weight",
        ),
    )

    def read(self, weights: Weights, settings: Settings, options: Options) -> Source:
        tensors = weights.tensors
        openai = any(name.startswith("visual.transformer.") for name in tensors)
        if openai:
            text = openai_text_config(tensors, settings)
            vision = _openai_vision(tensors, settings)
            shared = shape_of(tensors, "text_projection", 2)[1]
            settings.done({})
        else:
            text, vision = _transformers_towers(tensors, settings)
            shared = shape_of(tensors, "text_projection.weight", 2)[0]
            settings.agree("projection_dim", shared)
            settings.require({**ACCEPTED, "model_type": ("clip",)})
            settings.done(_UNUSED_WHOLE)
        model = ModelConfig(
            embedder="clip_text",
            text_encoder=text,
            vision_encoder=vision,
            clip_projections=ClipProjectionsConfig(shared, text.width, vision.width),
            tokenizer=clip_tokenizer(text),
        )
        abstract = abstract_of(model, *_PARTS)
        make = openai_clip_map if openai else clip_map
        return Source(self, (Part(weights, make(abstract)),), model, abstract)


def clip_map(trees: Abstract) -> SourceMap:
    """transformers' names. trees: of the three components."""

    def vision(path: str, shape: tuple[int, ...]) -> tuple[str, Layout, int]:
        root = "vision_model"
        if path == "class_embedding":
            return f"{root}.embeddings.class_embedding", SAME, 0
        if path == "position_embedding":
            return f"{root}.embeddings.position_embedding.weight", SAME, 0
        module, leaf = path.rsplit("/", 1)
        if module == "patch_embedding":
            return f"{root}.embeddings.patch_embedding.weight", CONV, 0
        # transformers spells the first norm so.
        module = {"pre_norm": "pre_layrnorm", "post_norm": "post_layernorm"}.get(module, module)
        module = re.sub("^layers", "encoder/layers/{layer}", module).replace("/", ".")
        kind = "bias" if leaf == "bias" else "weight"
        return f"{root}.{module}.{kind}", LINEAR if leaf == "kernel" else SAME, 0

    def projection(path: str, shape: tuple[int, ...]) -> tuple[str, Layout, int]:
        name = {"text": "text_projection", "image": "visual_projection"}[path.split("/")[0]]
        return f"{name}.weight", LINEAR, 0

    links = (
        *text_links(trees["text_encoder"]),
        *links_of("vision_encoder", trees["vision_encoder"], vision),
        *links_of("clip_projections", trees["clip_projections"], projection),
    )
    return SourceMap("the whole CLIP", links, _SKIPS)


def openai_clip_map(trees: Abstract) -> SourceMap:
    """OpenAI's names."""

    def vision(path: str, shape: tuple[int, ...]) -> tuple[str, Layout, int]:
        if path == "class_embedding":
            return "visual.class_embedding", SAME, 0
        if path == "position_embedding":
            return "visual.positional_embedding", SAME, 0
        module, leaf = path.rsplit("/", 1)
        if module == "patch_embedding":
            return "visual.conv1.weight", CONV, 0
        if module in ("pre_norm", "post_norm"):
            kind = "bias" if leaf == "bias" else "weight"
            return f"visual.ln_{module.removesuffix('_norm')}.{kind}", SAME, 0
        return openai_layer(module, leaf, "visual.transformer")

    def projection(path: str, shape: tuple[int, ...]) -> tuple[str, Layout, int]:
        # They multiply from the right there, as here.
        return {"text": "text_projection", "image": "visual.proj"}[path.split("/")[0]], SAME, 0

    links = (
        *openai_text_map(trees["text_encoder"]).links,
        *links_of("vision_encoder", trees["vision_encoder"], vision),
        *links_of("clip_projections", trees["clip_projections"], projection),
    )
    return SourceMap("OpenAI's CLIP", links, _OPENAI_SKIPS)


def _openai_vision(tensors: Mapping[str, Tensor], settings: Settings) -> ClipVisionConfig:
    """OpenAI's image towers have a head of 64 each (clip/model.py `build_model`)."""
    width, _, patch, _ = shape_of(tensors, "visual.conv1.weight", 4)
    side = patch * _grid(shape_of(tensors, "visual.positional_embedding", 2)[0])
    settings.agree("image_size", side)
    return ClipVisionConfig(
        image_size=side,
        patch_size=patch,
        width=width,
        num_layers=count(tensors, r"visual\.transformer\.resblocks\.(\d+)\."),
        num_heads=max(1, width // 64),
        mlp_width=shape_of(tensors, "visual.transformer.resblocks.0.mlp.c_fc.weight", 2)[0],
    )


def _grid(positions: int) -> int:
    return math.isqrt(max(positions - 1, 1))


def _transformers_towers(
    tensors: Mapping[str, Tensor], settings: Settings
) -> tuple[ClipTextConfig, ClipVisionConfig]:
    """The architectures by shapes and config.json; what that leaves out is as transformers has it by default."""
    text_settings = settings.inner("text_config")
    width = shape_of(tensors, "text_model.embeddings.token_embedding.weight", 2)[1]
    heads = 8 if text_settings.given else max(1, width // 64)
    text_settings = Settings({"num_attention_heads": heads, **text_settings.values}, text_settings.where)
    text = clip_text_config(tensors, text_settings)
    text_settings.require(ACCEPTED)
    text_settings.done(UNUSED)
    inner = settings.inner("vision_config")
    root = "vision_model"
    width, _, patch, _ = shape_of(tensors, f"{root}.embeddings.patch_embedding.weight", 4)
    layers = count(tensors, rf"{root}\.encoder\.layers\.(\d+)\.")
    mlp_width = shape_of(tensors, f"{root}.encoder.layers.0.mlp.fc1.weight", 2)[0]
    side = patch * _grid(shape_of(tensors, f"{root}.embeddings.position_embedding.weight", 2)[0])
    for key, value in (
        ("hidden_size", width),
        ("num_hidden_layers", layers),
        ("intermediate_size", mlp_width),
        ("patch_size", patch),
        ("image_size", side),
        ("num_channels", 3),
    ):
        inner.agree(key, value)
    inner.require({**ACCEPTED, "model_type": ("clip_vision_model",)})
    heads = inner.whole("num_attention_heads", 12 if inner.given else max(1, width // 64))
    divide(width, heads, inner.where or "the image tower")
    vision = ClipVisionConfig(
        image_size=side,
        patch_size=patch,
        width=width,
        num_layers=layers,
        num_heads=heads,
        mlp_width=mlp_width,
        activation=inner.get("hidden_act", "quick_gelu"),
        norm_eps=inner.number("layer_norm_eps", 1e-5),
    )
    inner.done(UNUSED)
    return text, vision
