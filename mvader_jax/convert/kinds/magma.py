"""MAGMA's checkpoint (Aleph-Alpha/magma): language model, adapters, image prefix and encoder in one dict.

Version 1 wraps the MLP in a sequence with its adapter; version 2 wraps attention as well.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvader_jax.convert.engine import Abstract, Alias, Link, Skip, SourceMap, links_of
from mvader_jax.convert.formats.torch_archive import write_torch
from mvader_jax.convert.kinds.base import Export, Kind, Options, Part, Source, abstract_of
from mvader_jax.convert.kinds.clip_resnet import COUNTERS, encoder_config, encoder_links
from mvader_jax.convert.kinds.gptj import gpt2_tokenizer, gptj_6b_like, gptj_with_heads
from mvader_jax.convert.layouts import LINEAR, SAME, Layout
from mvader_jax.convert.settings import Settings, count, shape_of
from mvader_jax.convert.tensors import Tensor, Weights
from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.decoder import AdaptersConfig, DecoderConfig
from mvader_jax.models.image_encoder import ImageEncoderConfig
from mvader_jax.models.image_prefix import ImagePrefixConfig

if TYPE_CHECKING:
    from mvader_jax.convert.export import Job

MAGMA_FILE = "mp_rank_00_model_states.pt"
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


#: Of magma/config.py's settings, those that are computed in one way only.
_ACCEPTED: dict[str, tuple[Any, ...]] = {
    "class_dict": (),
    "encoder_name": ("clip_resnet", "clip_resnet_large"),
    "lm_name": ("EleutherAI/gpt-j-6B",),
    "model_type": ("gptj",),
    "rational_image_encoder": (False,),
    "run_blind": (False,),
    "tokenizer_name": ("gpt2",),
    "use_image_embed_layernorm": (True,),
}
_UNUSED = {
    r"batch_size|train_\w+|(image_enc_|min_)?lr|lr_decay_iters|optimizer_name|weight_decay": "training",
    r"gradient_\w+|zero_stage|warmup_num_steps|freeze_\w+|fine_tune|load_optimizer|seq_len": "training",
    r"image_embed_dropout_prob": "dropout acts in training alone",
    r"eval_\w+|save(_every)?|load|name|log_every|wandb_project|(vqa|gqa)_dir|dataset_type": "training",
    r"from_checkpoint|pretrained_img_encoder": "what training started from",
    r"image_seq_len": "of encoders other than CLIP's ResNets",
}


class Magma(Kind):
    """Decoder, adapters, image prefix and image encoder; version 1 or 2, perhaps without its decoder."""

    name = "magma"
    signs = ((r"image_prefix\.", r"(lm\.)?transformer\."),)

    def __init__(self) -> None:
        holds = ("decoder", "biases", "adapters", "image_prefix", "image_encoder")
        self.export = Export("magma", holds, write_magma, copies=2)

    def read(self, weights: Weights, settings: Settings, options: Options) -> Source:
        decoder, adapters, encoder, prefix = magma_config(canonical(weights.tensors), settings)
        settings.done(_UNUSED)
        model = ModelConfig(
            decoder=decoder,
            adapters=adapters,
            image_encoder=encoder,
            image_prefix=prefix,
            tokenizer=gpt2_tokenizer(decoder.max_positions),
        )
        names = ["decoder", "image_prefix", "image_encoder"] + ["adapters"] * (adapters is not None)
        abstract = abstract_of(model, *names)
        return Source(self, (Part(weights, magma_map(abstract, adapters)),), model, abstract)


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
    dimensions = _dimensions(tensors, settings, width, "mlp.0" if adapters and adapters.mlp else "mlp")
    settings.require(_ACCEPTED)
    _agree_on_adapters(settings.inner("adapter_config"), adapters, width)
    if settings.get("n_head") is None:
        decoder = gptj_6b_like(dimensions, "n_head, rotary_dim and image_size")
        for key, value in (
            ("rotary_dim", decoder.rotary_dim),
            ("n_positions", decoder.max_positions),
            ("layer_norm_epsilon", decoder.norm_eps),
        ):
            settings.require({key: (value,)})
    else:
        decoder = gptj_with_heads(dimensions, settings)
    encoder = encoder_config(tensors, settings, "image_prefix.enc.")
    if in_width != encoder.token_width:
        raise UserError(
            f"the image prefix reads {in_width} channels, but the encoder gives {encoder.token_width}"
        )
    return decoder, adapters, encoder, ImagePrefixConfig(in_width=in_width, width=width)


def _dimensions(tensors: Mapping[str, Tensor], settings: Settings, width: int, mlp: str) -> dict[str, Any]:
    """The decoder's dimensions, from the shapes where it is there. mlp: where a block's MLP lies."""
    public = DecoderConfig.gptj_6b()
    layers = count(tensors, r"lm\.transformer\.h\.(\d+)\.")
    settings.agree("n_embd", width)
    settings.agree("n_layer", layers)
    dimensions: dict[str, Any] = {
        "width": width,
        "num_layers": layers,
        "vocab_size": settings.whole("vocab_size", public.vocab_size),
        "head_vocab_size": settings.whole("head_vocab_size", public.head_vocab_size),
        "mlp_width": settings.whole("n_inner", 4 * width),
    }
    if "lm.transformer.wte.weight" in tensors:
        fc_in = f"{_BLOCK.format(layer=0)}{mlp}.c_fc.weight"
        told = {
            "vocab_size": shape_of(tensors, "lm.transformer.wte.weight", 2)[0],
            "head_vocab_size": shape_of(tensors, "lm.lm_head.weight", 2)[0],
            "n_inner": shape_of(tensors, fc_in, 2)[0],
        }
        for key, value in told.items():
            settings.agree(key, value)
        dimensions |= {"mlp_width" if key == "n_inner" else key: value for key, value in told.items()}
    return dimensions


def _agree_on_adapters(settings: Settings, adapters: AdaptersConfig | None, width: int) -> None:
    """Raises UserError where magma/config.py's adapter_config is not what the weights have."""
    for place in ("mlp", "attention"):
        said = settings.inner(place)
        said.require({"adapter_type": ("normal",), "add_layernorm": (False,)})
        if said.given:
            here = adapters is not None and getattr(adapters, place)
            said.agree("downsample_factor", width // adapters.width if here and adapters else None)
        said.done({})
    settings.done({})


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


def write_magma(job: Job, out: Path) -> list[str]:
    """The checkpoint, the semantic biases laid over the language model's, and its settings beside it."""
    model, notes = job.model, []
    decoder = model.decoder
    if "image_prefix" not in job.readers or decoder is None:
        raise UserError(
            "a MAGMA checkpoint is told by its image prefix and the decoder it serves, which this bundle lacks"
        )
    if model.adapters is not None and model.adapters.parallel:
        raise UserError("MAGMA's checkpoints have sequential adapters, but this bundle's are parallel")
    if not is_gptj(decoder):
        raise UserError("MAGMA's language model is GPT-J, but this bundle's decoder has another architecture")
    if "biases" in job.readers and "decoder" not in job.readers:
        notes.append("left out: biases, as there is no language model to lay them over")
    elif "biases" in job.readers:
        notes.append("the semantic biases are written in place of the language model's own")
    trees = job.trees()
    source_map = magma_map(trees, model.adapters if "adapters" in trees else None)
    described = job.described(source_map, trees)
    write_torch(out / MAGMA_FILE, described, job.arrays(source_map, trees), "module")
    job.write_json(out / "config.json", magma_settings(decoder, model.image_encoder))
    return notes
