"""Every public model, name by name and shape by shape, against our full-size modules; no weights needed.

The recorded manifests were made from the models' published code and configs; those of libraries that
are installed are made anew here as well.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
)

from mvader_jax.convert.engine import SourceMap, manifest, shapes
from mvader_jax.convert.kinds import clip_resnet as clip_resnet_keys
from mvader_jax.convert.kinds import clip_text as clip_text_keys
from mvader_jax.convert.kinds import gpt_neox as gpt_neox_keys
from mvader_jax.convert.kinds import gptj as gptj_keys
from mvader_jax.convert.kinds import magma as magma_keys
from mvader_jax.convert.kinds import sd_compvis as sd_compvis_keys
from mvader_jax.convert.kinds import sd_configs
from mvader_jax.convert.kinds import sd_diffusers as sd_diffusers_keys
from mvader_jax.convert.settings import Settings
from mvader_jax.models.clip_text import ClipTextConfig
from mvader_jax.models.components import abstract_components
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.decoder import AdaptersConfig, DecoderConfig
from mvader_jax.models.image_encoder import ImageEncoderConfig
from mvader_jax.models.image_prefix import ImagePrefixConfig
from mvader_jax.models.unet import UNetConfig
from mvader_jax.models.vae import VAEConfig

Names = dict[str, tuple[int, ...]]

SD = ModelConfig(text_encoder=ClipTextConfig.sd14(), unet=UNetConfig.sd14(), vae=VAEConfig.sd14())
MAGMA = ModelConfig(
    decoder=DecoderConfig(vocab_size=50258),
    image_encoder=ImageEncoderConfig.rn50x16(),
    image_prefix=ImagePrefixConfig.magma(),
)


def recorded(name: str) -> Names:
    """A manifest file: `name shape` a line; {0..27} stands for each of 28 layers."""
    result: Names = {}
    for line in (Path(__file__).parent / "manifests" / f"{name}.txt").read_text().splitlines():
        if line.startswith("#"):
            continue
        pattern, shape = line.split()
        sizes = tuple(int(n) for n in shape.split("x"))
        folded = re.search(r"\{0\.\.(\d+)\}", pattern)
        for i in range(int(folded[1]) + 1 if folded else 1):
            result[pattern if folded is None else pattern.replace(folded[0], str(i))] = sizes
    return result


@functools.cache
def abstract(model: ModelConfig, *names: str) -> dict[str, object]:
    return abstract_components(model, names)[0]


def magma(adapters: AdaptersConfig) -> tuple[SourceMap, dict[str, object]]:
    import dataclasses

    trees = abstract(
        dataclasses.replace(MAGMA, adapters=adapters), "decoder", "adapters", "image_prefix", "image_encoder"
    )
    return magma_keys.magma_map(trees, adapters), trees


def sd(*names: str) -> dict[str, object]:
    return abstract(SD, *names)


def gptj() -> tuple[SourceMap, dict[str, object]]:
    trees = abstract(ModelConfig(decoder=DecoderConfig.gptj_6b()), "decoder")
    return gptj_keys.gptj_map(trees["decoder"]), trees


def resnet() -> tuple[SourceMap, dict[str, object]]:
    trees = abstract(ModelConfig(image_encoder=ImageEncoderConfig.rn50x16()), "image_encoder")
    return clip_resnet_keys.clip_resnet_map(trees["image_encoder"]), trees


def compvis() -> tuple[SourceMap, dict[str, object]]:
    trees = sd("unet", "vae", "text_encoder")
    return sd_compvis_keys.compvis_map(trees, SD.unet, SD.vae), trees


PUBLIC: dict[str, tuple[Callable[[], tuple[SourceMap, dict[str, object]]], int]] = {
    "sd14_unet": (lambda: (sd_diffusers_keys.unet_map(sd("unet")["unet"]), sd("unet")), 859_520_964),
    "sd14_vae": (lambda: (sd_diffusers_keys.vae_map(sd("vae")["vae"]), sd("vae")), 83_653_863),
    "sd14_text_encoder": (
        lambda: (clip_text_keys.clip_text_map(sd("text_encoder")["text_encoder"]), sd("text_encoder")),
        123_060_480,
    ),
    "sd14_compvis": (compvis, 859_520_964 + 83_653_863 + 123_060_480),
    "gptj_6b": (gptj, 6_050_882_784),
    "clip_rn50x16": (resnet, 136_396_560),
    "magma_v1": (lambda: magma(AdaptersConfig.magma_v1()), 6_434_317_296),
    "magma_v2": (lambda: magma(AdaptersConfig.magma_v2()), 6_434_431_984),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_bijection(name: str) -> None:
    make, parameters = PUBLIC[name]
    source_map, trees = make()
    names = manifest(source_map, trees)
    assert names == recorded(name)
    assert sum(math.prod(shape) for shape in names.values()) == parameters
    ours = sum(math.prod(s) for c in source_map.components for s in shapes(trees[c]).values())
    assert ours == parameters


def test_a_public_lcm_of_sd14_has_one_tensor_more() -> None:
    """As SimianLuo/LCM_Dreamshaper_v7 has it: the guidance scale is projected to the sinusoids' width."""
    unet = dataclasses.replace(UNetConfig.sd14(), time_cond_proj_dim=256)
    tree = abstract_components(ModelConfig(unet=unet), ["unet"])[0]
    names = manifest(sd_diffusers_keys.unet_map(tree["unet"]), tree)
    assert names == {**recorded("sd14_unet"), "time_embedding.cond_proj.weight": (320, 256)}
    assert names == on_meta(
        lambda: UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, time_cond_proj_dim=256
        )
    )


def test_adapters_have_the_papers_parameters() -> None:
    for adapters, expected in (
        (AdaptersConfig.magma_v1(), 235_024_384),
        (AdaptersConfig.magma_v2(), 235_139_072),
    ):
        source_map, trees = magma(adapters)
        names = manifest(source_map.only(["adapters"]), trees)
        assert sum(math.prod(shape) for shape in names.values()) == expected


def on_meta(make: Callable[[], torch.nn.Module]) -> Names:
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in make().state_dict().items()}


def test_recorded_manifests_are_what_the_libraries_make() -> None:
    widths = (128, 256, 512, 512)
    models: dict[str, Callable[[], torch.nn.Module]] = {
        "sd14_unet": lambda: UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8
        ),
        "sd14_vae": lambda: AutoencoderKL(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
        ),
        "sd14_text_encoder": lambda: CLIPTextModel(
            CLIPTextConfig(
                hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
            )
        ),
        "gptj_6b": lambda: GPTJForCausalLM(GPTJConfig()),
    }
    for name, make in models.items():
        made = on_meta(make)
        if name == "sd14_text_encoder":
            # Newer releases of transformers leave out what the public files begin with.
            made = {f"text_model.{key.removeprefix('text_model.')}": shape for key, shape in made.items()}
        buffers = re.compile(r".*\.attn\.(bias|masked_bias|embed_positions)|.*position_ids")
        assert {key: shape for key, shape in made.items() if not buffers.fullmatch(key)} == recorded(name), (
            name
        )


def test_gpt_neox_20b() -> None:
    sizes = {
        "hidden_size": 6144,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "intermediate_size": 24576,
    }
    settings = {**sizes, "vocab_size": 50432, "hidden_act": "gelu_fast"}
    config = DecoderConfig(
        vocab_size=50432,
        head_vocab_size=50432,
        width=6144,
        num_layers=44,
        num_heads=64,
        head_dim=96,
        mlp_width=24576,
        block="parallel_two_norms",
        rotary="half",
        rotary_dim=24,
        attention_bias=True,
        out_bias=True,
        head_bias=False,
    )
    trees = abstract(ModelConfig(decoder=config), "decoder")
    names = manifest(gpt_neox_keys.gpt_neox_map(trees["decoder"], config), trees)
    theirs = on_meta(lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**settings)))
    head = re.compile(r"^lm_head\.")
    assert names == {
        head.sub("embed_out.", name): shape for name, shape in theirs.items() if "rotary" not in name
    }


def test_public_settings_give_the_presets() -> None:
    unet = {"sample_size": 64, "cross_attention_dim": 768, "attention_head_dim": 8, "norm_num_groups": 32}
    assert sd_configs.unet_config(Settings(unet, "x")) == UNetConfig.sd14()
    assert sd_configs.unet_config(Settings(sd_configs.unet_settings(UNetConfig.sd14()))) == UNetConfig.sd14()
    assert sd_configs.vae_config(Settings(sd_configs.vae_settings(VAEConfig.sd14()))) == VAEConfig.sd14()
