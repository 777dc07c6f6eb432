"""Which kind of public weights a file or folder holds, told by its content, and how each kind is read."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvader_jax.convert.engine import Abstract, SourceMap
from mvader_jax.convert.kinds import clip_resnet as clip_resnet_keys
from mvader_jax.convert.kinds import clip_text as clip_text_keys
from mvader_jax.convert.kinds import gpt_neox as gpt_neox_keys
from mvader_jax.convert.kinds import gptj as gptj_keys
from mvader_jax.convert.kinds import magma as magma_keys
from mvader_jax.convert.kinds import sd_compvis as sd_compvis_keys
from mvader_jax.convert.kinds import sd_diffusers as sd_diffusers_keys
from mvader_jax.convert.read import open_file, open_folder
from mvader_jax.convert.settings import Settings, spelled
from mvader_jax.convert.tensors import Weights
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.errors import UserError
from mvader_jax.models.components import abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.prompt.tokenizer import TokenizerConfig

KINDS = ("stable-diffusion", "gptj", "gpt-neox", "magma", "sgpt-biases", "clip-resnet", "clip-text")


@dataclasses.dataclass(frozen=True)
class Options:
    """How to read a source. config: a settings file in place of the config.json beside it; ema, variant:
    which of several sets of weights; trust_pickle: also read pickles that can run code."""

    config: Path | None = None
    ema: bool = False
    variant: str | None = None
    trust_pickle: bool = False


@dataclasses.dataclass(frozen=True)
class Part:
    """Weights and the map of what they become."""

    weights: Weights
    source_map: SourceMap


@dataclasses.dataclass(frozen=True)
class Source:
    """A source understood. tokenizer: the folder of its vocabulary, where it has one; notes: for the user."""

    kind: str
    parts: tuple[Part, ...]
    model: ModelConfig
    abstract: Abstract
    tokenizer: Path | None = None
    notes: tuple[str, ...] = ()


def recognise(path: Path, weights: Weights) -> str:
    """The kind of a source by the names of its tensors. Raises UserError for none of them."""
    names = weights.tensors

    def has(pattern: str) -> bool:
        return any(re.match(pattern, name) for name in names)

    for kind, patterns in _SIGNS:
        if all(has(pattern) for pattern in patterns):
            return kind
    some = ", ".join(list(names)[:3])
    raise UserError(
        f"{path} is none of the kinds that are known ({', '.join(KINDS)}): its tensors are named {some or 'nothing'}"
    )


_UNET = (r"down_blocks\.0\.resnets\.", r"time_embedding\.linear_1\.")
_VAE = (r"encoder\.down_blocks\.0\.resnets\.", r"post_quant_conv\.")
#: A kind is recognised by names that all match; the first that fits.
_SIGNS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("stable-diffusion", (r"model\.diffusion_model\.input_blocks\.",)),
    ("stable-diffusion", _UNET),
    ("stable-diffusion", _VAE),
    ("magma", (r"image_prefix\.", r"(lm\.)?transformer\.")),
    ("clip-resnet", (r"(visual\.)?layer1\.0\.conv1\.weight",)),
    ("clip-text", (r"transformer\.resblocks\.0\.", r"token_embedding\.weight")),
    (
        "clip-text",
        (r"(text_model\.)?encoder\.layers\.0\.self_attn\.", r"(text_model\.)?embeddings\.token_embedding\."),
    ),
    ("gpt-neox", (r"(gpt_neox\.)?layers\.0\.attention\.query_key_value\.",)),
    ("gptj", (r"transformer\.h\.0\.attn\.q_proj\.", r"lm_head\.")),
    ("sgpt-biases", (r"(transformer\.)?h\.0\.attn\.q_proj\.",)),
)


def open_source(path: Path, kind: str | None, options: Options) -> Source:
    """Opens a file or folder and says what becomes of every tensor in it, reading no numbers.

    kind: one of KINDS in place of recognising it. Raises UserError where that cannot be.
    """
    if kind is not None and kind not in KINDS:
        raise UserError(f"unknown kind {kind!r}; accepted: {', '.join(KINDS)}")
    if not path.exists():
        raise UserError(f"{path} does not exist")
    if path.is_dir() and _is_pipeline(path):
        if kind not in (None, "stable-diffusion"):
            raise UserError(f"{path} is a diffusers folder, not {kind}")
        return _diffusers(path, options)
    weights = _open(path, options)
    kind = kind or recognise(path, weights)
    settings = _settings(path, options)
    if kind == "stable-diffusion":
        for name, signs in (("unet", _UNET), ("vae", _VAE)):
            if all(any(re.match(sign, tensor) for tensor in weights.tensors) for sign in signs):
                return _diffusers_model({name: (weights, settings)})
        return _compvis(weights, settings, options)
    readers = {
        "gptj": _gptj,
        "gpt-neox": _gpt_neox,
        "magma": _magma,
        "sgpt-biases": _sgpt,
        "clip-resnet": _clip_resnet,
        "clip-text": _clip_text,
    }
    source = readers[kind](weights, settings)
    folder = path if path.is_dir() else path.parent
    if source.model.tokenizer is not None and has_vocabulary(folder):
        source = dataclasses.replace(source, tokenizer=folder)
    return source


def has_vocabulary(folder: Path) -> bool:
    """Whether a folder holds a tokenizer: tokenizer.json, or vocab.json and merges.txt."""
    return (folder / "tokenizer.json").is_file() or all(
        (folder / name).is_file() for name in ("vocab.json", "merges.txt")
    )


def _is_pipeline(folder: Path) -> bool:
    return (folder / "model_index.json").is_file() or (folder / "unet" / "config.json").is_file()


def _open(path: Path, options: Options) -> Weights:
    if path.is_dir():
        return open_folder(path, variant=options.variant, trust_pickle=options.trust_pickle)
    return open_file(path, trust_pickle=options.trust_pickle)


def _settings(path: Path, options: Options) -> Settings:
    if options.config is not None:
        return Settings.load(options.config)
    beside = (path if path.is_dir() else path.parent) / "config.json"
    return Settings.load(beside) if beside.is_file() else Settings()


def _abstract(model: ModelConfig, *components: str) -> Abstract:
    return abstract_components(model, components)[0]


def _diffusers(path: Path, options: Options) -> Source:
    """A pipeline's folder."""
    if options.config is not None:
        raise UserError("a diffusers folder brings its own config.json files; --config is for other sources")
    if options.ema:
        raise UserError("a diffusers folder has one UNet, so --ema does not apply; see --variant")
    found = {
        name: (_open(path / name, options), Settings.load(path / name / "config.json"))
        for name in ("unet", "vae", "text_encoder")
        if (path / name / "config.json").is_file()
    }
    if not found:
        raise UserError(f"{path} has none of the folders unet, vae and text_encoder with a config.json")
    source = _diffusers_model(found)
    model, notes, tokenizer = source.model, source.notes, None
    schedule = path / "scheduler" / "scheduler_config.json"
    if schedule.is_file():
        config = sd_diffusers_keys.schedule_config(Settings.load(schedule))
        model, notes = dataclasses.replace(model, schedule=config), ()
    left = [
        name for name in ("safety_checker", "feature_extractor", "image_encoder") if (path / name).is_dir()
    ]
    if left:
        notes += (f"left out, as no picture depends on it: {', '.join(left)}",)
    if "text_encoder" in found and (path / "tokenizer").is_dir() and has_vocabulary(path / "tokenizer"):
        tokenizer = path / "tokenizer"
    return dataclasses.replace(source, model=model, notes=notes, tokenizer=tokenizer)


def _diffusers_model(found: Mapping[str, tuple[Weights, Settings]]) -> Source:
    """Components of a pipeline, each with its config.json."""
    text = None
    if "text_encoder" in found:
        weights, settings = found["text_encoder"]
        text = clip_text_keys.clip_text_config(spelled(weights.tensors, clip_text_keys.SPELLINGS), settings)
    for name in ("unet", "vae"):
        if name in found and not found[name][1].given:
            raise UserError(
                f"the {name} of diffusers needs its config.json beside it; pass --config FILE.json"
            )
    model = ModelConfig(
        embedder="clip_text" if text is not None else "s_magma",
        text_encoder=text,
        unet=sd_diffusers_keys.unet_config(found["unet"][1]) if "unet" in found else None,
        vae=sd_diffusers_keys.vae_config(found["vae"][1]) if "vae" in found else None,
        schedule=ScheduleConfig() if "unet" in found else None,
        tokenizer=_clip_tokenizer(text.vocab_size, text.max_positions) if text is not None else None,
    )
    abstract = _abstract(model, *found)
    maps = {
        "unet": sd_diffusers_keys.unet_map,
        "vae": sd_diffusers_keys.vae_map,
        "text_encoder": clip_text_keys.clip_text_map,
    }
    parts = tuple(Part(weights, maps[name](abstract[name])) for name, (weights, _) in found.items())
    notes = ("no scheduler folder: Stable Diffusion 1.4's schedule was taken",) if "unet" in found else ()
    return Source("stable-diffusion", parts, model, abstract, None, notes)


def _clip_tokenizer(vocabulary: int, positions: int) -> TokenizerConfig:
    """CLIP's: its last two tokens start and end a text, and the end pads it."""
    return dataclasses.replace(
        TokenizerConfig.clip(),
        bos_id=vocabulary - 2,
        eos_id=vocabulary - 1,
        pad_id=vocabulary - 1,
        length=positions,
        max_positions=positions,
    )


def _compvis(weights: Weights, settings: Settings, options: Options) -> Source:
    tensors = spelled(weights.tensors, sd_compvis_keys.SPELLINGS)
    unet, vae, text = sd_compvis_keys.compvis_config(tensors, settings)
    if options.ema and not any(name.startswith("model_ema.diffusion_model") for name in tensors):
        raise UserError("this checkpoint has no moving average of its UNet; leave out --ema")
    model = ModelConfig(
        embedder="clip_text" if text is not None else "s_magma",
        text_encoder=text,
        unet=unet,
        vae=vae,
        schedule=ScheduleConfig(),
        tokenizer=_clip_tokenizer(text.vocab_size, text.max_positions) if text is not None else None,
    )
    names = [name for name, config in (("unet", unet), ("vae", vae), ("text_encoder", text)) if config]
    abstract = _abstract(model, *names)
    source_map = sd_compvis_keys.compvis_map(abstract, unet, vae, ema=options.ema)
    notes = ("this kind of file has no tokenizer; add CLIP's with --tokenizer",) if text is not None else ()
    return Source("stable-diffusion", (Part(weights, source_map),), model, abstract, None, notes)


def _gptj(weights: Weights, settings: Settings) -> Source:
    config = gptj_keys.gptj_config(spelled(weights.tensors, gptj_keys.SPELLINGS), settings)
    model = ModelConfig(decoder=config, tokenizer=_gpt2_tokenizer(config.max_positions))
    abstract = _abstract(model, "decoder")
    return Source("gptj", (Part(weights, gptj_keys.gptj_map(abstract["decoder"])),), model, abstract)


def _gpt2_tokenizer(positions: int) -> TokenizerConfig:
    return dataclasses.replace(TokenizerConfig.gpt2(), max_positions=positions)


def _gpt_neox(weights: Weights, settings: Settings) -> Source:
    config = gpt_neox_keys.gpt_neox_config(spelled(weights.tensors, gpt_neox_keys.SPELLINGS), settings)
    # GPT-NeoX's vocabulary ends a text with token 0.
    tokenizer = dataclasses.replace(
        _gpt2_tokenizer(config.max_positions), eos_id=int(settings.get("eos_token_id", 0))
    )
    model = ModelConfig(decoder=config, tokenizer=tokenizer)
    abstract = _abstract(model, "decoder")
    source_map = gpt_neox_keys.gpt_neox_map(abstract["decoder"], config)
    return Source("gpt-neox", (Part(weights, source_map),), model, abstract)


def _sgpt(weights: Weights, settings: Settings) -> Source:
    tensors = spelled(weights.tensors, gptj_keys.SPELLINGS)
    model = ModelConfig(decoder=gptj_keys.gptj_config(tensors, settings))
    abstract = _abstract(model, "biases")
    return Source("sgpt-biases", (Part(weights, gptj_keys.sgpt_map(abstract["biases"])),), model, abstract)


def _magma(weights: Weights, settings: Settings) -> Source:
    tensors = magma_keys.canonical(weights.tensors)
    decoder, adapters, encoder, prefix = magma_keys.magma_config(tensors, settings)
    model = ModelConfig(
        decoder=decoder,
        adapters=adapters,
        image_encoder=encoder,
        image_prefix=prefix,
        tokenizer=_gpt2_tokenizer(decoder.max_positions),
    )
    names = ["decoder", "image_prefix", "image_encoder"] + ["adapters"] * (adapters is not None)
    abstract = _abstract(model, *names)
    return Source("magma", (Part(weights, magma_keys.magma_map(abstract, adapters)),), model, abstract)


def _clip_resnet(weights: Weights, settings: Settings) -> Source:
    tensors = spelled(weights.tensors, clip_resnet_keys.SPELLINGS)
    model = ModelConfig(image_encoder=clip_resnet_keys.encoder_config(tensors, settings, "visual."))
    abstract = _abstract(model, "image_encoder")
    source_map = clip_resnet_keys.clip_resnet_map(abstract["image_encoder"])
    return Source("clip-resnet", (Part(weights, source_map),), model, abstract)


def _clip_text(weights: Weights, settings: Settings) -> Source:
    openai = "transformer.resblocks.0.ln_1.weight" in weights.tensors
    if openai:
        config = clip_text_keys.openai_text_config(weights.tensors, settings)
    else:
        config = clip_text_keys.clip_text_config(spelled(weights.tensors, clip_text_keys.SPELLINGS), settings)
    model = ModelConfig(
        embedder="clip_text",
        text_encoder=config,
        tokenizer=_clip_tokenizer(config.vocab_size, config.max_positions),
    )
    abstract = _abstract(model, "text_encoder")
    make: Any = clip_text_keys.openai_text_map if openai else clip_text_keys.clip_text_map
    return Source("clip-text", (Part(weights, make(abstract["text_encoder"])),), model, abstract)
