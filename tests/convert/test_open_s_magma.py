"""The public files at their full size, their numbers left out: recognised, and the model that they come to."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from pathlib import Path

import jax
from test_manifests import Names, recorded

from mvader_jax.convert.engine import match
from mvader_jax.convert.kinds import sd_configs
from mvader_jax.convert.kinds.base import Options
from mvader_jax.convert.sources import open_source
from mvader_jax.models.components import abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.unet import UNetConfig
from mvader_jax.models.vae import VAEConfig
from mvader_jax.train.config import load_config

CONFIG = Path(__file__).parents[2] / "configs" / "open_s_magma.py"


def hollow(file: Path, names: Names) -> Path:
    """A float16 safetensors file of these tensors whose bytes were never written: it takes no disk."""
    header, end = {}, 0
    for name, shape in names.items():
        size = 2 * math.prod(shape)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.write(struct.pack("<Q", len(text)) + text)
        stream.truncate(8 + len(text) + end)
    return file


def model_of(path: Path, kind: str) -> ModelConfig:
    """What `mvader convert` takes a source for, every tensor of it paired with ours."""
    source = open_source(path, None, Options())
    assert source.kind.name == kind
    for part in source.parts:
        assert match(part.source_map, part.weights.tensors, source.abstract).leaves
    return source.model


def test_the_public_files_need_no_settings_and_make_the_open_s_magma(tmp_path: Path) -> None:
    config = load_config(CONFIG).model
    magma = model_of(hollow(tmp_path / "magma.safetensors", recorded("magma_v1")), "magma")
    for name in ("decoder", "adapters", "image_encoder", "image_prefix", "tokenizer"):
        assert getattr(magma, name) == getattr(config, name), name

    second = load_config(CONFIG, ["model.adapters.width=512", "model.adapters.attention=true"]).model
    magma = model_of(hollow(tmp_path / "magma2.safetensors", recorded("magma_v2")), "magma")
    assert magma.adapters == second.adapters

    sd = model_of(hollow(tmp_path / "sd.safetensors", recorded("sd14_compvis")), "stable-diffusion")
    assert sd.unet == UNetConfig.sd14() and sd.vae == VAEConfig.sd14()
    assert config.unet == dataclasses.replace(sd.unet, cross_attention_dim=4096)
    assert (config.vae, config.schedule) == (sd.vae, sd.schedule)
    folder = tmp_path / "diffusers"
    for name, settings in (
        ("unet", sd_configs.unet_settings(UNetConfig.sd14())),
        ("vae", sd_configs.vae_settings(VAEConfig.sd14())),
        ("text_encoder", {"num_attention_heads": 12, "hidden_act": "quick_gelu"}),
    ):
        stem = "model" if name == "text_encoder" else "diffusion_pytorch_model"
        hollow(folder / name / f"{stem}.fp16.safetensors", recorded(f"sd14_{name}"))
        (folder / name / "config.json").write_text(json.dumps(settings))
    assert model_of(folder, "stable-diffusion") == sd

    gptj = model_of(hollow(tmp_path / "gptj.safetensors", recorded("gptj_6b")), "gptj")
    assert gptj.decoder == dataclasses.replace(config.decoder, vocab_size=50400)
    bare = {
        name.removeprefix("transformer."): shape
        for name, shape in recorded("gptj_6b").items()
        if not name.startswith("lm_head.")
    }
    sgpt = hollow(tmp_path / "sgpt.safetensors", bare)
    assert model_of(sgpt, "sgpt-biases").decoder == gptj.decoder
    clip = hollow(tmp_path / "clip.safetensors", recorded("clip_rn50x16"))
    assert model_of(clip, "clip-resnet").image_encoder == config.image_encoder


def test_every_component_has_a_shape() -> None:
    config = load_config(CONFIG).model
    names = ("decoder", "biases", "adapters", "image_encoder", "image_prefix", "unet", "vae")
    abstract, _ = abstract_components(config, names)
    sizes = {name: sum(leaf.size for leaf in jax.tree.leaves(tree)) for name, tree in abstract.items()}
    assert sizes["biases"] == 692_224
    assert sizes["adapters"] == 235_024_384
    # Stable Diffusion's, its to_k and to_v 4096 wide instead of 768.
    assert sizes["unet"] == 859_520_964 - 19_169_280 + 102_236_160
