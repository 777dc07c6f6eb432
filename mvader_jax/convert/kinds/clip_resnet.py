"""CLIP's ModifiedResNet (openai/CLIP clip/model.py): an archive of the whole model, or its state dict."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from mvader_jax.convert.engine import Link, Skip, SourceMap, links_of
from mvader_jax.convert.kinds.base import Kind, Options, Part, Source, abstract_of
from mvader_jax.convert.layouts import CONV, SAME, Layout
from mvader_jax.convert.settings import Settings, count, shape_of, spelled
from mvader_jax.convert.tensors import Tensor, Weights, shown
from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.image_encoder import ImageEncoderConfig

#: A state dict of the visual tower alone has no `visual.` in front.
SPELLINGS = ((r"^(?=(conv|bn)[123]\.|layer[1-4]\.|attnpool\.)", "visual."),)
COUNTERS = Skip(r".*\.num_batches_tracked", "training counter of a batch norm")
_SKIPS = (
    COUNTERS,
    Skip(r"visual\.attnpool\..*", "attention pool: MAGMA's encoder ends before it"),
    Skip(
        r"(transformer\..*|token_embedding\.weight|positional_embedding|ln_final\..*|text_projection)",
        "CLIP's text tower",
    ),
    Skip(r"(logit_scale|input_resolution|context_length|vocab_size)", "CLIP's constants"),
)
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
#: (blocks of the stages, width) -> pixels a side, of OpenAI's models.
_PUBLIC = {
    ((3, 4, 6, 3), 64): 224,
    ((3, 4, 23, 3), 64): 224,
    ((4, 6, 10, 6), 80): 288,
    ((6, 8, 18, 8), 96): 384,
    ((3, 15, 36, 10), 128): 448,
}

#: What a config.json beside the whole of CLIP says of its other tower.
_UNUSED = {r"num_attention_heads|hidden_act": "CLIP's text tower's"}


class ClipResNet(Kind):
    """The visual tower of the whole CLIP, or alone."""

    name = "clip-resnet"
    signs = ((r"(visual\.)?layer1\.0\.conv1\.weight",),)

    def read(self, weights: Weights, settings: Settings, options: Options) -> Source:
        config = encoder_config(spelled(weights.tensors, SPELLINGS), settings, "visual.")
        settings.done(_UNUSED)
        model = ModelConfig(image_encoder=config)
        abstract = abstract_of(model, "image_encoder")
        return Source(self, (Part(weights, clip_resnet_map(abstract["image_encoder"])),), model, abstract)


def encoder_links(encoder: Any, prefix: str) -> tuple[Link, ...]:
    """encoder: the tree of our `image_encoder` component; prefix: what stands before CLIP's own names."""

    def rule(path: str, shape: tuple[int, ...]) -> tuple[str, Layout, int]:
        module, leaf = path.rsplit("/", 1)
        module = re.sub(r"\b(layer\d|downsample)_(\d+)", r"\1.\2", module).replace("/", ".")
        return f"{prefix}{module}.{_LEAVES[leaf]}", CONV if leaf == "kernel" else SAME, 0

    return links_of("image_encoder", encoder, rule)


def clip_resnet_map(encoder: Any) -> SourceMap:
    """encoder: the tree of our `image_encoder` component."""
    return SourceMap("CLIP's ResNet", encoder_links(encoder, "visual."), _SKIPS, spellings=SPELLINGS)


def encoder_config(tensors: Mapping[str, Tensor], settings: Settings, prefix: str) -> ImageEncoderConfig:
    """The architecture. The image size comes from the attention pool's positions, the settings
    ("image_size") or, for OpenAI's own models, their names in the paper. Raises UserError without it."""
    width = shape_of(tensors, f"{prefix}layer1.0.conv1.weight", 4)[0]
    blocks = tuple(count(tensors, rf"{re.escape(prefix)}layer{i}\.(\d+)\.") for i in range(1, 5))
    layers = (blocks[0], blocks[1], blocks[2], blocks[3])
    if 0 in layers:
        raise UserError(f"a ResNet of {'/'.join(map(str, layers))} blocks has a stage without any")
    size = settings.get("image_size")
    positions = tensors.get(f"{prefix}attnpool.positional_embedding")
    if positions is not None and len(positions.shape) == 2:
        told = 32 * math.isqrt(positions.shape[0] - 1)
        settings.agree("image_size", told)
        size = told
    if size is None:
        size = _PUBLIC.get((layers, width))
    if size is None:
        raise UserError(
            f"a ResNet of width {width} and {'/'.join(map(str, layers))} blocks is none of OpenAI's, so its image "
            "size cannot be told; pass --config FILE.json with image_size"
        )
    if isinstance(size, bool) or not isinstance(size, int) or not 32 <= size <= 1 << 14 or size % 32:
        raise UserError(f"image_size is {shown(size)}; accepted are positive multiples of 32")
    return ImageEncoderConfig(layers=layers, width=width, image_size=size)
