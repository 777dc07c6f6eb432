"""A bundle's weights back to the PyTorch world, one tensor at a time, by the same maps as `convert`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mvader_jax.convert.convert import Progress, counter
from mvader_jax.convert.engine import SourceMap, external, manifest
from mvader_jax.convert.formats.safetensors import write_safetensors
from mvader_jax.convert.formats.torch_archive import write_state_dict
from mvader_jax.convert.kinds import clip_text, magma, sd_compvis, sd_diffusers
from mvader_jax.convert.staging import workplace
from mvader_jax.convert.tensors import DTYPES
from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.prompt.tokenizer import Tokenizer, write_vocabulary
from mvader_jax.settings import from_dict
from mvader_jax.storage.bundle import find_bundle, read_config
from mvader_jax.storage.stream import ComponentReader

FORMATS = ("diffusers", "compvis", "magma")
EXPORT_DTYPES = {"keep": None, "float32": DTYPES["F32"], "float16": DTYPES["F16"], "bfloat16": DTYPES["BF16"]}
MAGMA_FILE = "mp_rank_00_model_states.pt"
COMPVIS_FILE = "model.ckpt"
#: A file that only this kind of result has at its top.
_SIGNS = {"diffusers": "model_index.json", "compvis": COMPVIS_FILE, "magma": MAGMA_FILE}
Described = dict[str, tuple[tuple[int, ...], np.dtype]]


@dataclasses.dataclass(frozen=True)
class Exported:
    """What was written: components, and notes on those that were not."""

    components: tuple[str, ...]
    notes: tuple[str, ...]


def export(
    bundle: str | Path,
    out: Path,
    to: str,
    *,
    dtype: str = "keep",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Writes a bundle's components into the directory `out`.

    to: "diffusers" (a pipeline's folder), "compvis" (model.ckpt) or "magma" (mp_rank_00_model_states.pt,
    with the semantic biases laid over the language model's); the last two get a config.json with what
    their shapes do not tell. dtype: one of EXPORT_DTYPES. Raises UserError where the bundle has nothing
    of that format, or an architecture that it cannot hold.
    """
    if to not in FORMATS:
        raise UserError(f"unknown format {to!r}; accepted: {', '.join(FORMATS)}")
    if dtype not in EXPORT_DTYPES:
        raise UserError(f"unknown dtype {dtype!r}; accepted: {', '.join(EXPORT_DTYPES)}")
    job = _Job(find_bundle(bundle), EXPORT_DTYPES[dtype])
    write = {"diffusers": _diffusers, "compvis": _compvis, "magma": _magma}[to]
    wanted = {
        "diffusers": ("unet", "vae", "text_encoder"),
        "compvis": ("unet", "vae", "text_encoder"),
        "magma": ("decoder", "biases", "adapters", "image_prefix", "image_encoder"),
    }[to]
    names = job.open(wanted)
    if not names:
        raise UserError(
            f"{bundle} has nothing that {to} holds ({', '.join(wanted)}); it has {', '.join(job.held)}"
        )
    notes = [f"left out, {to} has no place for it: {name}" for name in job.held if name not in names]
    total = sum(job.nbytes(name) for name in names)
    job.advance = counter(progress, total)
    with workplace(
        out,
        overwrite=overwrite,
        ours=lambda path: path.is_dir() and ((path / _SIGNS[to]).is_file() or not any(path.iterdir())),
        needed=total,
        source=job.path,
    ) as work:
        notes += write(job, work)
    return Exported(tuple(names), tuple(notes))


class _Job:
    """A bundle being exported."""

    def __init__(self, path: Path, dtype: np.dtype | None) -> None:
        data = read_config(path)
        self.path, self.dtype = path, dtype
        self.model = from_dict(ModelConfig, data.get("model", {}), f"{path}/config.json: model")
        self.held = sorted(data.get("components", {}))
        self.readers: dict[str, ComponentReader] = {}
        self.advance: Callable[[int], None] = lambda _: None

    def open(self, names: tuple[str, ...]) -> list[str]:
        self.readers = {name: ComponentReader(self.path / name) for name in names if name in self.held}
        return list(self.readers)

    def tree(self, name: str) -> Any:
        return self.readers[name].tree()

    def trees(self) -> dict[str, Any]:
        return {name: reader.tree() for name, reader in self.readers.items() if name != "biases"}

    def written(self, component: str, path: str) -> np.dtype:
        return self.dtype or self.readers[component].dtype(path)

    def nbytes(self, name: str) -> int:
        reader = self.readers[name]
        return sum(
            int(np.prod(reader.shape(path), dtype=np.int64)) * self.written(name, path).itemsize
            for path in reader.paths
        )

    def described(self, source_map: SourceMap, trees: Mapping[str, Any]) -> Described:
        """{name: (shape, dtype)} of what will be written, in order."""
        dtypes = {link.name: self.written(link.component, link.path) for link in source_map.links}
        return {name: (shape, dtypes[name]) for name, shape in manifest(source_map, trees).items()}

    def arrays(self, source_map: SourceMap, trees: Mapping[str, Any]) -> Iterator[tuple[str, np.ndarray]]:
        """The tensors in the same order."""
        biases = self.readers.get("biases")
        laid_over = set(biases.paths) if biases is not None else set()

        def read(component: str, path: str, layer: int | None) -> np.ndarray:
            over = biases if component == "decoder" and path in laid_over else None
            array = (over or self.readers[component]).read(path, layer)
            return array.astype(self.written(component, path), copy=False)

        for name, array in external(source_map, trees, read):
            yield name, array
            self.advance(array.nbytes)


def _json(file: Path, value: Mapping[str, Any]) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _diffusers(job: _Job, out: Path) -> list[str]:
    model = job.model
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.6.0"}
    absent: list[str | None] = [None, None]
    index |= dict.fromkeys(
        ("feature_extractor", "safety_checker", "text_encoder", "tokenizer", "unet", "vae"), absent
    )
    index["requires_safety_checker"] = False
    bos = model.tokenizer.bos_id if model.tokenizer is not None else None
    eos = model.tokenizer.eos_id if model.tokenizer is not None else 0
    makers: dict[str, tuple[Any, Any, str, str]] = {
        "unet": (
            sd_diffusers.unet_map,
            sd_diffusers.unet_settings,
            "UNet2DConditionModel",
            "diffusers",
        ),
        "vae": (sd_diffusers.vae_map, sd_diffusers.vae_settings, "AutoencoderKL", "diffusers"),
        "text_encoder": (
            clip_text.clip_text_map,
            lambda config: clip_text.clip_text_settings(config, eos, bos or 0),
            "CLIPTextModel",
            "transformers",
        ),
    }
    for name in job.readers:
        make, settings, kind, library = makers[name]
        tree = job.tree(name)
        source_map, trees = make(tree), {name: tree}
        (out / name).mkdir()
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        write_safetensors(
            out / name / f"{stem}.safetensors",
            job.described(source_map, trees),
            job.arrays(source_map, trees),
        )
        _json(out / name / "config.json", settings(getattr(model, name)))
        index[name] = [library, kind]
    if model.schedule is not None:
        (out / "scheduler").mkdir()
        _json(out / "scheduler" / "scheduler_config.json", sd_diffusers.schedule_settings(model.schedule))
        index["scheduler"] = ["diffusers", "PNDMScheduler"]
    if "text_encoder" in job.readers and (job.path / "tokenizer").is_dir() and model.tokenizer is not None:
        (out / "tokenizer").mkdir()
        tokenizer = Tokenizer.load(job.path / "tokenizer", model.tokenizer)
        write_vocabulary(tokenizer, out / "tokenizer")
        _json(out / "tokenizer" / "tokenizer_config.json", _clip_tokenizer_settings(tokenizer))
        index["tokenizer"] = ["transformers", "CLIPTokenizer"]
    _json(out / "model_index.json", index)
    return []


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


def _compvis(job: _Job, out: Path) -> list[str]:
    model = job.model
    if "unet" not in job.readers:
        raise UserError("a CompVis checkpoint is told by its UNet, which this bundle lacks")
    assert model.unet is not None
    if model.unet.norm_eps != 1e-5:
        raise UserError(f"CompVis' UNet has norms of eps 1e-5, but this one {model.unet.norm_eps}")
    trees = job.trees()
    source_map = sd_compvis.compvis_map(trees, model.unet, model.vae)
    described = job.described(source_map, trees)
    write_state_dict(out / COMPVIS_FILE, described, job.arrays(source_map, trees), "state_dict")
    text = model.text_encoder if "text_encoder" in job.readers else None
    vae = model.vae if "vae" in job.readers else None
    _json(out / "config.json", sd_compvis.compvis_settings(model.unet, vae, text))
    return []


def _magma(job: _Job, out: Path) -> list[str]:
    model, notes = job.model, []
    decoder = model.decoder
    if "image_prefix" not in job.readers or decoder is None:
        raise UserError(
            "a MAGMA checkpoint is told by its image prefix and the decoder it serves, which this bundle lacks"
        )
    if model.adapters is not None and model.adapters.parallel:
        raise UserError("MAGMA's checkpoints have sequential adapters, but this bundle's are parallel")
    if not magma.is_gptj(decoder):
        raise UserError("MAGMA's language model is GPT-J, but this bundle's decoder has another architecture")
    if "biases" in job.readers and "decoder" not in job.readers:
        notes.append("left out: biases, as there is no language model to lay them over")
    elif "biases" in job.readers:
        notes.append("the semantic biases are written in place of the language model's own")
    trees = job.trees()
    source_map = magma.magma_map(trees, model.adapters if "adapters" in trees else None)
    described = job.described(source_map, trees)
    write_state_dict(out / MAGMA_FILE, described, job.arrays(source_map, trees), "module")
    _json(out / "config.json", magma.magma_settings(decoder, model.image_encoder))
    return notes
