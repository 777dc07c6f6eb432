"""GPT-J of transformers (GPTJForCausalLM)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from mvader_jax.convert.engine import Skip, SourceMap, links_of
from mvader_jax.convert.kinds import transformers
from mvader_jax.convert.kinds.base import Kind, Options, Part, Source, abstract_of
from mvader_jax.convert.layouts import LINEAR, SAME, Layout
from mvader_jax.convert.settings import Settings, count, divide, shape_of, spelled
from mvader_jax.convert.tensors import Tensor, Weights
from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.decoder import DecoderConfig
from mvader_jax.prompt.tokenizer import TokenizerConfig

#: A bare GPTJModel's names have no `transformer.` in front.
SPELLINGS = ((r"^(?=h\.\d+\.|wte\.|ln_f\.)", "transformer."),)
SKIPS = (
    Skip(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)", "causal mask, a buffer"),
    Skip(r"transformer\.h\.\d+\.attn\.embed_positions", "rotary table, a buffer"),
)
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
_ACCEPTED: dict[str, tuple[Any, ...]] = {
    **transformers.ACCEPTED,
    "activation_function": ("gelu_new", "gelu_pytorch_tanh", "gelu_fast"),
    "model_type": ("gptj",),
    "rotary": (True,),
    "scale_attn_weights": (True,),
    "tie_word_embeddings": (False,),
}
_UNUSED = {
    **transformers.UNUSED,
    r"(attn|embd|resid)_pdrop": "dropout acts in training alone",
    r"n_ctx": "an older name of n_positions, which transformers does not read",
}


class GptJ(Kind):
    """A decoder, with the vocabulary beside it."""

    name = "gptj"
    signs = ((r"transformer\.h\.0\.attn\.q_proj\.", r"lm_head\."),)

    def read(self, weights: Weights, settings: Settings, options: Options) -> Source:
        config = gptj_config(spelled(weights.tensors, SPELLINGS), settings)
        eos = settings.whole("eos_token_id", TokenizerConfig.gpt2().eos_id, least=0)
        settings.done(_UNUSED)
        model = ModelConfig(decoder=config, tokenizer=gpt2_tokenizer(config.max_positions, eos))
        abstract = abstract_of(model, "decoder")
        return Source(self, (Part(weights, gptj_map(abstract["decoder"])),), model, abstract)


def gpt2_tokenizer(positions: int, eos_id: int | None = None) -> TokenizerConfig:
    """GPT-2's, for a decoder of so many positions."""
    config = dataclasses.replace(TokenizerConfig.gpt2(), max_positions=positions)
    return config if eos_id is None else dataclasses.replace(config, eos_id=eos_id)


def gptj_rule(path: str, shape: tuple[int, ...]) -> tuple[str, Layout, int]:
    """Our path of a decoder's leaf -> (transformers' name, layout, part)."""
    *module, leaf = path.split("/")
    if module[0] == "layers":
        module[0:1] = ["transformer", "h", "{layer}"]
    elif module[0] != "lm_head":
        module.insert(0, "transformer")
    return ".".join([*module, _LEAVES[leaf]]), LINEAR if leaf == "kernel" else SAME, 0


def gptj_map(decoder: Any) -> SourceMap:
    """decoder: the tree of our `decoder` component."""
    return SourceMap("GPT-J", links_of("decoder", decoder, gptj_rule), SKIPS, spellings=SPELLINGS)


def gptj_config(tensors: Mapping[str, Tensor], settings: Settings) -> DecoderConfig:
    """The architecture, from the shapes and what they do not tell from the settings (transformers' keys).

    tensors: by the map's names. GPT-J-6B needs no settings. Raises UserError where they lack something.
    """
    vocabulary, width = shape_of(tensors, "transformer.wte.weight", 2)
    layers = count(tensors, r"transformer\.h\.(\d+)\.")
    mlp_width, _ = shape_of(tensors, "transformer.h.0.mlp.fc_in.weight", 2)
    head = shape_of(tensors, "lm_head.weight", 2)[0] if "lm_head.weight" in tensors else vocabulary
    dimensions: dict[str, Any] = {
        "vocab_size": vocabulary,
        "head_vocab_size": head,
        "width": width,
        "num_layers": layers,
        "mlp_width": mlp_width,
        "head_bias": "lm_head.weight" not in tensors or "lm_head.bias" in tensors,
    }
    if not settings.given:
        return gptj_6b_like(dimensions, "n_head and rotary_dim")
    for key, value in (
        ("n_embd", width),
        ("n_layer", layers),
        ("n_inner", mlp_width),
        ("vocab_size", vocabulary),
    ):
        settings.agree(key, value)
    settings.require(_ACCEPTED)
    return gptj_with_heads(dimensions, settings)


def gptj_with_heads(dimensions: Mapping[str, Any], settings: Settings) -> DecoderConfig:
    """The decoder of these dimensions with what the settings say of its heads."""
    heads = settings.whole("n_head")
    head_dim = divide(dimensions["width"], heads, settings.where)
    return DecoderConfig(
        **dimensions,
        num_heads=heads,
        head_dim=head_dim,
        rotary_dim=rotary_width(settings.whole("rotary_dim"), head_dim, f"{settings.where}: rotary_dim"),
        max_positions=settings.whole("n_positions", 2048),
        norm_eps=settings.number("layer_norm_epsilon", 1e-5),
    )


def rotary_width(width: int, head_dim: int, what: str) -> int:
    """The dimensions of a head that rotate. Raises UserError where they are no pairs, or more than it has."""
    if width % 2 or not 2 <= width <= head_dim:
        raise UserError(f"{what} is {width}; accepted are even numbers from 2 to a head's width, {head_dim}")
    return width


def gptj_6b_like(dimensions: Mapping[str, Any], needed: str) -> DecoderConfig:
    """GPT-J-6B with the vocabulary of `dimensions`. Raises UserError where it is another model."""
    public = DecoderConfig.gptj_6b()
    for key in ("width", "num_layers", "mlp_width"):
        if dimensions[key] != getattr(public, key):
            raise UserError(
                f"a decoder of width {dimensions['width']} and {dimensions['num_layers']} layers is not GPT-J-6B, "
                f"and its shapes do not tell everything; pass --config FILE.json with {needed}"
            )
    return DecoderConfig(**dimensions)
