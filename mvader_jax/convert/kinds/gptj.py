"""GPT-J of transformers (GPTJForCausalLM), and SGPT's BitFit finetunes of it (Muennighoff/sgpt)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mvader_jax.convert.engine import Skip, SourceMap, links_of
from mvader_jax.convert.layouts import LINEAR, SAME, Layout
from mvader_jax.convert.settings import Settings, count, divide, shape_of
from mvader_jax.convert.tensors import Tensor
from mvader_jax.errors import UserError
from mvader_jax.models.decoder import DecoderConfig

#: SGPT saves a bare GPTJModel, whose names have no `transformer.` in front.
SPELLINGS = ((r"^(?=h\.\d+\.|wte\.|ln_f\.)", "transformer."),)
SKIPS = (
    Skip(r"transformer\.h\.\d+\.attn\.(bias|masked_bias)", "causal mask, a buffer"),
    Skip(r"transformer\.h\.\d+\.attn\.embed_positions", "rotary table, a buffer"),
)
_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight", "bias": "bias"}
_ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")


def _rule(path: str, shape: tuple[int, ...]) -> tuple[str, Layout, int]:
    *module, leaf = path.split("/")
    if module[0] == "layers":
        module[0:1] = ["transformer", "h", "{layer}"]
    elif module[0] != "lm_head":
        module.insert(0, "transformer")
    return ".".join([*module, _LEAVES[leaf]]), LINEAR if leaf == "kernel" else SAME, 0


def gptj_map(decoder: Any) -> SourceMap:
    """decoder: the tree of our `decoder` component."""
    return SourceMap("GPT-J", links_of("decoder", decoder, _rule), SKIPS, spellings=SPELLINGS)


def sgpt_map(biases: Any) -> SourceMap:
    """The biases alone; every other tensor is left out, to be compared with the base's.

    biases: the tree of our `biases` component.
    """
    links = links_of("biases", biases, _rule)
    others = Skip(r"(.*\.weight|lm_head\.bias)", "not among the biases: compared with the base's")
    return SourceMap("an SGPT bias finetune of GPT-J", links, (*SKIPS, others), spellings=SPELLINGS)


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
    settings.require({"activation_function": _ACTIVATIONS, "tie_word_embeddings": (False,)})
    heads = settings.whole("n_head")
    return DecoderConfig(
        **dimensions,
        num_heads=heads,
        head_dim=divide(width, heads, settings.where),
        rotary_dim=settings.whole("rotary_dim"),
        max_positions=settings.whole("n_positions", 2048),
        norm_eps=float(settings.get("layer_norm_epsilon", 1e-5)),
    )


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


def gptj_settings(config: DecoderConfig) -> dict[str, Any]:
    """transformers' config.json of a decoder that GPTJForCausalLM can be."""
    return {
        "model_type": "gptj",
        "architectures": ["GPTJForCausalLM"],
        "n_embd": config.width,
        "n_layer": config.num_layers,
        "n_head": config.num_heads,
        "n_inner": config.mlp_width,
        "n_positions": config.max_positions,
        "rotary_dim": config.rotary_dim,
        "vocab_size": config.vocab_size,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": config.norm_eps,
        "tie_word_embeddings": False,
    }
