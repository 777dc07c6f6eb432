"""GPT-NeoX of transformers (GPTNeoXForCausalLM): fused query, key and value, head by head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mvader_jax.convert.engine import Skip, SourceMap, links_of
from mvader_jax.convert.kinds import transformers
from mvader_jax.convert.kinds.base import Kind, Options, Part, Source, abstract_of
from mvader_jax.convert.kinds.gptj import gpt2_tokenizer, rotary_width
from mvader_jax.convert.layouts import LINEAR, SAME, Layout, fused_linear, fused_vector
from mvader_jax.convert.settings import Settings, count, divide, shape_of, spelled
from mvader_jax.convert.tensors import Tensor, Weights
from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.decoder import DecoderConfig

#: A bare GPTNeoXModel has no `gpt_neox.` in front; newer releases of transformers say lm_head.
SPELLINGS = (
    (r"^(?=layers\.\d+\.|embed_in\.|final_layer_norm\.)", "gpt_neox."),
    (r"^lm_head\.", "embed_out."),
)
_SKIPS = (
    Skip(r"gpt_neox\.layers\.\d+\.attention\.(bias|masked_bias)", "causal mask, a buffer"),
    Skip(r"gpt_neox\.(layers\.\d+\.attention\.)?rotary_emb\.inv_freq", "rotary table, a buffer"),
)
_MODULES = {
    "wte": "gpt_neox.embed_in",
    "ln_f": "gpt_neox.final_layer_norm",
    "lm_head": "embed_out",
    "layers/ln_1": "gpt_neox.layers.{layer}.input_layernorm",
    "layers/ln_2": "gpt_neox.layers.{layer}.post_attention_layernorm",
    "layers/attn/out_proj": "gpt_neox.layers.{layer}.attention.dense",
    "layers/mlp/fc_in": "gpt_neox.layers.{layer}.mlp.dense_h_to_4h",
    "layers/mlp/fc_out": "gpt_neox.layers.{layer}.mlp.dense_4h_to_h",
}
_FUSED = {"layers/attn/q_proj": 0, "layers/attn/k_proj": 1, "layers/attn/v_proj": 2}
_ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_new",
    "gelu_fast": "gelu_new",
    "gelu_pytorch_tanh": "gelu_new",
}
_ACCEPTED: dict[str, tuple[Any, ...]] = {
    **transformers.ACCEPTED,
    "hidden_act": tuple(_ACTIVATIONS),
    "model_type": ("gpt_neox",),
    "tie_word_embeddings": (False,),
}
_UNUSED = {
    **transformers.UNUSED,
    r"(attention|hidden|attention_probs|embd|resid)_?(dropout|pdrop)(_prob)?": "dropout acts in training alone",
}


class GptNeoX(Kind):
    """A decoder, with the vocabulary beside it."""

    name = "gpt-neox"
    signs = ((r"(gpt_neox\.)?layers\.0\.attention\.query_key_value\.",),)

    def read(self, weights: Weights, settings: Settings, options: Options) -> Source:
        config = gpt_neox_config(spelled(weights.tensors, SPELLINGS), settings)
        # GPT-NeoX's vocabulary ends a text with token 0.
        eos = settings.whole("eos_token_id", 0, least=0)
        settings.done(_UNUSED)
        model = ModelConfig(decoder=config, tokenizer=gpt2_tokenizer(config.max_positions, eos))
        abstract = abstract_of(model, "decoder")
        source_map = gpt_neox_map(abstract["decoder"], config)
        return Source(self, (Part(weights, source_map),), model, abstract)


def gpt_neox_map(decoder: Any, config: DecoderConfig) -> SourceMap:
    """decoder: the tree of our `decoder` component."""

    def rule(path: str, shape: tuple[int, ...]) -> tuple[str, Layout, int]:
        module, leaf = path.rsplit("/", 1)
        kind = "bias" if leaf == "bias" else "weight"
        if module in _FUSED:
            fused = fused_linear if leaf == "kernel" else fused_vector
            name = f"gpt_neox.layers.{{layer}}.attention.query_key_value.{kind}"
            return name, fused(3, config.num_heads), _FUSED[module]
        return f"{_MODULES[module]}.{kind}", LINEAR if leaf == "kernel" else SAME, 0

    return SourceMap("GPT-NeoX", links_of("decoder", decoder, rule), _SKIPS, spellings=SPELLINGS)


def gpt_neox_config(tensors: Mapping[str, Tensor], settings: Settings) -> DecoderConfig:
    """The architecture, from the shapes and transformers' config.json. Raises UserError where it lacks something."""
    vocabulary, width = shape_of(tensors, "gpt_neox.embed_in.weight", 2)
    layers = count(tensors, r"gpt_neox\.layers\.(\d+)\.")
    mlp_width, _ = shape_of(tensors, "gpt_neox.layers.0.mlp.dense_h_to_4h.weight", 2)
    attention_bias = "gpt_neox.layers.0.attention.query_key_value.bias" in tensors
    if not settings.given:
        raise UserError(
            "the shapes of GPT-NeoX do not tell its heads; pass --config FILE.json with num_attention_heads and rotary_pct"
        )
    for key, value in (
        ("hidden_size", width),
        ("num_hidden_layers", layers),
        ("intermediate_size", mlp_width),
        ("vocab_size", vocabulary),
        ("attention_bias", attention_bias),
    ):
        settings.agree(key, value)
    settings.require(_ACCEPTED)
    heads = settings.whole("num_attention_heads")
    head_dim = divide(width, heads, settings.where)
    rotary_dim, rotary_base = _rotary(settings, head_dim)
    parallel = settings.flag("use_parallel_residual", True)
    head = shape_of(tensors, "embed_out.weight", 2)[0] if "embed_out.weight" in tensors else vocabulary
    return DecoderConfig(
        vocab_size=vocabulary,
        head_vocab_size=head,
        width=width,
        num_layers=layers,
        num_heads=heads,
        head_dim=head_dim,
        mlp_width=mlp_width,
        max_positions=settings.whole("max_position_embeddings", 2048),
        block="parallel_two_norms" if parallel else "sequential",
        rotary="half",
        rotary_dim=rotary_dim,
        rotary_base=rotary_base,
        activation="gelu" if _ACTIVATIONS[settings.get("hidden_act", "gelu")] == "gelu" else "gelu_new",
        attention_bias=attention_bias,
        out_bias="gpt_neox.layers.0.attention.dense.bias" in tensors,
        head_bias=False,
        norm_eps=settings.number("layer_norm_eps", 1e-5),
    )


def _rotary(settings: Settings, head_dim: int) -> tuple[int, float]:
    """(dimensions of a head that rotate, their base), by the keys of transformers 4 or of 5."""
    rope = settings.inner("rope_parameters")
    scaling = settings.inner("rope_scaling")
    for one in (rope, scaling):
        one.require({"rope_type": ("default",), "type": ("default",)})
    share = rope.number("partial_rotary_factor", settings.number("rotary_pct", 0.25))
    older = settings.number("rope_theta", settings.number("rotary_emb_base", 10000))
    base = rope.number("rope_theta", older)
    for one in (rope, scaling):
        one.done({})
    width = int(head_dim * share) if share <= 1 else head_dim + 1
    what = f"{settings.where}: rotary_pct (partial_rotary_factor) {share}, of a head {head_dim} wide,"
    return rotary_width(width, head_dim, what), base
