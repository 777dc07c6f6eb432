"""Stable Diffusion as a diffusers folder: UNet2DConditionModel, AutoencoderKL, CLIP's text model, a scheduler."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvader_jax.convert.engine import SourceMap, links_of
from mvader_jax.convert.files import lone
from mvader_jax.convert.formats.safetensors import write_safetensors
from mvader_jax.convert.kinds import schedulers
from mvader_jax.convert.kinds.base import (
    Export,
    Kind,
    Options,
    Part,
    Source,
    abstract_of,
    fits,
    has_vocabulary,
    open_weights,
)
from mvader_jax.convert.kinds.clip_text import (
    clip_text_map,
    clip_text_settings,
    transformers_text_config,
)
from mvader_jax.convert.kinds.sd_configs import unet_config, unet_settings, vae_config, vae_settings
from mvader_jax.convert.kinds.sd_parts import sd_model
from mvader_jax.convert.layouts import CONV, LINEAR, SAME, Layout
from mvader_jax.convert.read import variants
from mvader_jax.convert.settings import Settings
from mvader_jax.convert.tensors import Weights, plain, shown
from mvader_jax.diffusion.schedule import ScheduleConfig
from mvader_jax.errors import UserError
from mvader_jax.models.clip_text import ClipTextConfig
from mvader_jax.models.unet import UNetConfig
from mvader_jax.models.vae import VAEConfig
from mvader_jax.prompt.tokenizer import Tokenizer, write_vocabulary

if TYPE_CHECKING:
    from mvader_jax.convert.export import Job

PARTS = ("unet", "vae", "text_encoder")
_SIGNS = {
    "unet": (r"down_blocks\.0\.resnets\.", r"time_embedding\.linear_1\.", r"up_blocks\.0\.resnets\."),
    "vae": (r"encoder\.down_blocks\.0\.resnets\.", r"post_quant_conv\."),
}
_PIPELINES = (
    "StableDiffusionPipeline",
    "StableDiffusionImg2ImgPipeline",
    "StableDiffusionPipelineSafe",
    "LatentConsistencyModelPipeline",
    "LatentConsistencyModelImg2ImgPipeline",
)


class Diffusers(Kind):
    """A pipeline's folder, or its unet or vae alone."""

    name = "stable-diffusion"
    signs = tuple(_SIGNS.values())

    def __init__(self) -> None:
        self.export = Export("diffusers", PARTS, write_diffusers, tokenizer=True)

    def read(self, weights: Weights, settings: Settings, options: Options) -> Source:
        name = next((name for name, sign in _SIGNS.items() if fits(sign, weights.tensors)), None)
        if name is None:
            raise UserError(
                "these weights are neither a UNet nor a VAE of diffusers, nor CompVis' Stable Diffusion"
            )
        if not settings.given:
            raise UserError(
                f"the {name} of diffusers needs its config.json beside it; pass --config FILE.json"
            )
        return self._source({name: (weights, settings)}, None)

    def recognises_folder(self, folder: Path) -> bool:
        return (folder / "model_index.json").is_file() or (folder / "unet" / "config.json").is_file()

    def read_folder(self, folder: Path, options: Options) -> Source:
        if options.config is not None:
            raise UserError(
                "a diffusers folder brings its own config.json files; --config is for other sources"
            )
        if options.ema:
            raise UserError("a diffusers folder has one UNet, so --ema does not apply; see --variant")
        notes = _check_index(folder)
        found = {name: _open(folder / name, options) for name in PARTS if _is_there(folder / name)}
        if not found:
            raise UserError(f"{folder} has none of the folders unet, vae and text_encoder with a config.json")
        if options.variant is not None:
            notes += _variant_notes(folder, tuple(found), options.variant)
        source = self._source(found, folder / "scheduler" / "scheduler_config.json")
        tokenizer = folder / "tokenizer"
        here = "text_encoder" in found and tokenizer.is_dir() and has_vocabulary(tokenizer)
        notes = (*source.notes, *notes, *_left_out(folder, tuple(found)))
        return dataclasses.replace(source, notes=notes, tokenizer=tokenizer if here else None)

    def _source(self, found: Mapping[str, tuple[Weights, Settings]], scheduler: Path | None) -> Source:
        """Components of a pipeline, each with its config.json, and its scheduler's file."""
        unet = unet_config(found["unet"][1]) if "unet" in found else None
        vae = vae_config(found["vae"][1]) if "vae" in found else None
        text = transformers_text_config(*found["text_encoder"]) if "text_encoder" in found else None
        notes: tuple[str, ...]
        schedule, notes = (
            ScheduleConfig(),
            ("no scheduler folder: Stable Diffusion 1.4's schedule was taken",),
        )
        if unet is None:
            notes = ()
        elif scheduler is not None and scheduler.is_file():
            said = Settings.load(scheduler)
            schedule, notes = schedulers.schedule_config(said)
            if said.get("_class_name") == schedulers.FEW_STEPS and not unet.distilled:
                raise UserError(
                    f"{scheduler} is an LCMScheduler's, but its UNet takes no guidance scale as an input (it has no "
                    "time_cond_proj_dim); of latent consistency models only those that do are drawn with"
                )
        model = sd_model(unet, vae, text, schedule)
        abstract = abstract_of(model, *found)
        parts = tuple(Part(weights, _MAPS[name](abstract[name])) for name, (weights, _) in found.items())
        return Source(self, parts, model, abstract, None, notes)


def _is_there(folder: Path) -> bool:
    """Whether a part's folder can be read. Raises UserError for weights without their config.json."""
    if (folder / "config.json").is_file():
        return True
    if folder.is_dir() and lone(path.name for path in folder.iterdir()):
        raise UserError(f"{folder} has weights but no config.json: a partial download; fetch the rest of it")
    return False


def _open(folder: Path, options: Options) -> tuple[Weights, Settings]:
    """A part's weights, of the variant where it has one, and its config."""
    if options.variant not in variants(folder):
        options = dataclasses.replace(options, variant=None)
    return open_weights(folder, options), Settings.load(folder / "config.json")


def _variant_notes(folder: Path, names: tuple[str, ...], variant: str) -> tuple[str, ...]:
    """Which parts lack the variant, as diffusers takes their plain weights too. Raises UserError if all do."""
    lacking = [name for name in names if variant not in variants(folder / name)]
    if len(lacking) == len(names):
        known = sorted({one for name in names for one in variants(folder / name) if one is not None})
        raise UserError(
            f"no part of {folder} has weights of variant {variant!r}; "
            + (f"pass --variant with one of: {', '.join(known)}" if known else "leave out --variant")
        )
    return (f"no {variant} weights, so the plain ones were taken: {', '.join(lacking)}",) if lacking else ()


def _check_index(folder: Path) -> tuple[str, ...]:
    """Notes on parts that model_index.json names and that are not there. Raises UserError for other pipelines."""
    file = folder / "model_index.json"
    if not file.is_file():
        return ()
    index = Settings.load(file)
    name = index.get("_class_name")
    if name is not None and name not in _PIPELINES:
        what = plain(name) if isinstance(name, str) else shown(name)
        raise UserError(
            f"{folder} is a pipeline of class {what}, not Stable Diffusion 1.x's (StableDiffusionPipeline)"
        )
    here = {path.name for path in folder.iterdir()}
    named = [
        plain(part)
        for part, made in index.values.items()
        if isinstance(made, list) and any(made) and part not in here
    ]
    return (f"named in model_index.json but not there: {', '.join(sorted(named))}",) if named else ()


def _left_out(folder: Path, taken: tuple[str, ...]) -> tuple[str, ...]:
    """What of a pipeline's folder is not taken: each in its own words."""
    known = {*taken, "scheduler", "tokenizer"}
    harmless = {"safety_checker", "feature_extractor", "image_encoder"}
    others = sorted(
        path.name + ("/" if path.is_dir() else "")
        for path in folder.iterdir()
        if path.name not in known | harmless
        and not path.name.startswith(".")
        and (path.is_dir() or path.suffix in (".safetensors", ".ckpt", ".bin", ".pt", ".pth"))
    )
    left = sorted(name for name in harmless if (folder / name).is_dir())
    notes = []
    if left:
        notes.append(f"left out, as no picture depends on it: {', '.join(left)}")
    if others:
        notes.append(f"left out, as nothing here reads it: {', '.join(others)}")
    for name, needs in (("tokenizer", "text_encoder"), ("scheduler", "unet")):
        if (folder / name).is_dir() and needs not in taken:
            notes.append(f"left out, as there is no {needs}: {name}")
    return tuple(notes)


_INDEXED = re.compile(
    r"\b(down_blocks|up_blocks|resnets|attentions|transformer_blocks|downsamplers|upsamplers|to_out|net)_(\d+)"
)
_LAYOUTS = {1: SAME, 2: LINEAR, 4: CONV}
#: AutoencoderKL's attention before diffusers 0.15: other names, the same linear layers.
VAE_SPELLINGS = (
    (r"\.attentions\.0\.query\.", ".attentions.0.to_q."),
    (r"\.attentions\.0\.key\.", ".attentions.0.to_k."),
    (r"\.attentions\.0\.value\.", ".attentions.0.to_v."),
    (r"\.attentions\.0\.proj_attn\.", ".attentions.0.to_out.0."),
)


def diffusers_name(path: str) -> str:
    """Our module names follow diffusers', with `_` where it has a dot before an index."""
    module, leaf = path.rsplit("/", 1)
    name = _INDEXED.sub(r"\1.\2", module).replace("/", ".")
    return f"{name}.{'bias' if leaf == 'bias' else 'weight'}"


def _rule(path: str, shape: tuple[int, ...]) -> tuple[str, Layout, int]:
    return diffusers_name(path), _LAYOUTS[len(shape)], 0


def unet_map(unet: Any) -> SourceMap:
    """unet: the tree of our component."""
    return SourceMap("diffusers' UNet2DConditionModel", links_of("unet", unet, _rule))


def vae_map(vae: Any) -> SourceMap:
    """vae: the tree of our component."""
    return SourceMap("diffusers' AutoencoderKL", links_of("vae", vae, _rule), spellings=VAE_SPELLINGS)


_MAPS: dict[str, Callable[[Any], SourceMap]] = {
    "unet": unet_map,
    "vae": vae_map,
    "text_encoder": clip_text_map,
}
_CLASSES = {
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "text_encoder": ["transformers", "CLIPTextModel"],
}


def write_diffusers(job: Job, out: Path) -> list[str]:
    """A pipeline's folder of a bundle's unet, vae and text tower, those that it has."""
    model = job.model
    distilled = model.unet is not None and model.unet.distilled
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0"}
    if distilled:
        index = {"_class_name": "LatentConsistencyModelPipeline", "_diffusers_version": "0.22.0"}
    absent: list[str | None] = [None, None]
    index |= dict.fromkeys(("feature_extractor", "safety_checker", "tokenizer", *PARTS), absent)
    index["requires_safety_checker"] = False
    for name in job.readers:
        tree = job.tree(name)
        source_map, trees = _MAPS[name](tree), {name: tree}
        (out / name).mkdir()
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        file = out / name / f"{stem}.safetensors"
        write_safetensors(file, job.described(source_map, trees), job.arrays(source_map, trees))
        job.write_json(out / name / "config.json", _settings_of(job, name))
        index[name] = _CLASSES[name]
    if model.schedule is not None:
        (out / "scheduler").mkdir()
        file = out / "scheduler" / "scheduler_config.json"
        scheduler = schedulers.schedule_settings(model.schedule, distilled)
        job.write_json(file, scheduler)
        index["scheduler"] = ["diffusers", scheduler["_class_name"]]
    if "text_encoder" in job.readers and (job.path / "tokenizer").is_dir() and model.tokenizer is not None:
        (out / "tokenizer").mkdir()
        tokenizer = Tokenizer.load(job.path / "tokenizer", model.tokenizer)
        added = write_vocabulary(tokenizer, out / "tokenizer")
        said = {**_clip_tokenizer_settings(tokenizer), **added}
        job.write_json(out / "tokenizer" / "tokenizer_config.json", said)
        index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    job.write_json(out / "model_index.json", index)
    return []


def _settings_of(job: Job, name: str) -> dict[str, Any]:
    """The config.json of a part."""
    config, tokenizer = getattr(job.model, name), job.model.tokenizer
    if isinstance(config, UNetConfig):
        return unet_settings(config)
    if isinstance(config, VAEConfig):
        return vae_settings(config)
    assert isinstance(config, ClipTextConfig)
    bos, eos = (tokenizer.bos_id or 0, tokenizer.eos_id) if tokenizer is not None else (0, 0)
    return clip_text_settings(config, eos, bos)


def _clip_tokenizer_settings(tokenizer: Tokenizer) -> dict[str, Any]:
    config = tokenizer.config
    token = tokenizer.backend.id_to_token
    return {
        "tokenizer_class": "CLIPTokenizer",
        "model_max_length": config.max_positions,
        "bos_token": token(config.bos_id) if config.bos_id is not None else None,
        "eos_token": token(config.eos_id),
        "unk_token": token(config.eos_id),
        "pad_token": token(config.pad_id),
    }
