"""A pipeline's parts: those that do not fit are refused for what they are, and what is left out is named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import twins
from converting import convert, converted
from safetensors.torch import save_file
from vocabularies import clip_vocabulary

from mvader_jax.errors import UserError


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return twins.save_diffusers(tmp_path / "sd", twins.unet(), twins.vae(), twins.clip_text())


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"in_channels": 9}, "takes 9 channels and gives 4: an inpainting UNet"),
        ({"in_channels": 8}, "takes 8 channels and gives 4: an InstructPix2Pix UNet"),
        ({"in_channels": 5}, "takes 5 channels and gives 4: an upscaler or depth-to-image UNet"),
        (
            {"in_channels": 8, "out_channels": 8},
            "this UNet's latents have 8 channels, but Stable Diffusion's have 4",
        ),
        ({"out_channels": 8}, "takes 4 channels and gives 8: no text-to-image UNet"),
    ],
)
@pytest.mark.parametrize("place", ["pipeline", "folder"])
def test_unets_of_other_tasks(changes: dict[str, Any], what: str, place: str, tmp_path: Path) -> None:
    source = twins.save_diffusers(tmp_path / "sd", twins.unet(**changes))
    with pytest.raises(UserError, match=what) as error:
        convert(source if place == "pipeline" else source / "unet", tmp_path / "out")
    assert len(str(error.value)) < 300 and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"latent_channels": 8}, "this VAE's latents have 8 channels, but .* have 4"),
        ({"latent_channels": 16}, "this VAE's latents have 16 channels"),
        (
            {"in_channels": 1, "out_channels": 1},
            r"this VAE is of pictures with 1 channels; only colour \(3\)",
        ),
        ({"in_channels": 4, "out_channels": 4}, "this VAE is of pictures with 4 channels"),
    ],
)
@pytest.mark.parametrize("alone", [True, False])
def test_vaes_of_other_models(changes: dict[str, Any], what: str, alone: bool, tmp_path: Path) -> None:
    parts = (twins.vae(**changes),) if alone else (twins.unet(), twins.vae(**changes))
    with pytest.raises(UserError, match=what):
        convert(twins.save_diffusers(tmp_path / "sd", *parts), tmp_path / "out")


def test_a_text_encoder_of_another_width(tmp_path: Path) -> None:
    source = twins.save_diffusers(tmp_path / "sd", twins.unet(cross_attention_dim=40), twins.clip_text())
    with pytest.raises(UserError, match="attends to states of width 40, but this text encoder gives 36"):
        convert(source, tmp_path / "out")


def test_weights_without_their_config(source: Path, tmp_path: Path) -> None:
    """A partial download."""
    (source / "vae" / "config.json").unlink()
    with pytest.raises(UserError, match=r"vae has weights but no config\.json: a partial download"):
        convert(source, tmp_path / "out")
    # A folder with neither is named.
    shutil.rmtree(source / "vae")
    report = convert(source, tmp_path / "out")
    assert set(report.components) == {"unet", "text_encoder"}
    assert "named in model_index.json but not there: vae" in report.notes


def test_everything_left_out_is_named(source: Path, tmp_path: Path) -> None:
    for name in ("safety_checker", "text_encoder_2", "controlnet", "unet_ema", "feature_extractor", "logs"):
        (source / name).mkdir()
    shutil.copytree(source / "unet", source / "prior")
    save_file({"x": torch.zeros(1)}, source / "v1-5-pruned.safetensors")
    notes = " | ".join(convert(source, tmp_path / "out").notes)
    assert "no picture depends on it: feature_extractor, safety_checker" in notes
    others = "controlnet/, logs/, prior/, text_encoder_2/, unet_ema/, v1-5-pruned.safetensors"
    assert f"left out, as nothing here reads it: {others}" in notes


def test_a_vocabulary_or_scheduler_without_its_part(tmp_path: Path) -> None:
    source = twins.save_diffusers(tmp_path / "sd", twins.vae())
    clip_vocabulary(source / "tokenizer")
    notes = convert(source, tmp_path / "out").notes
    assert "left out, as there is no text_encoder: tokenizer" in notes
    assert "left out, as there is no unet: scheduler" in notes


def test_a_variant_that_some_parts_have(source: Path, tmp_path: Path) -> None:
    """As Stable Diffusion 1.5's repository has non_ema for its UNet alone; diffusers takes the rest plain."""
    other = {name: tensor + 1 for name, tensor in twins.unet().state_dict().items()}
    save_file(other, source / "unet" / "diffusion_pytorch_model.non_ema.safetensors")
    report = convert(source, tmp_path / "out", variant="non_ema")
    assert "no non_ema weights, so the plain ones were taken: vae, text_encoder" in report.notes
    plain, varied = (
        converted(source, tmp_path / str(variant), variant=variant).components["unet"]["conv_in"]["bias"]
        for variant in (None, "non_ema")
    )
    assert bool((varied == plain + 1).all())
    with pytest.raises(
        UserError, match=r"no part of .* has weights of variant 'fp16'; .* with one of: non_ema"
    ):
        convert(source, tmp_path / "x", variant="fp16")
    (source / "unet" / "diffusion_pytorch_model.non_ema.safetensors").unlink()
    with pytest.raises(UserError, match="has weights of variant 'fp16'; leave out --variant"):
        convert(source, tmp_path / "x", variant="fp16")


def test_flags_that_would_do_nothing_are_refused(source: Path, tmp_path: Path) -> None:
    text = source / "text_encoder"
    for options, reason in [
        ({"ema": True}, "is clip-text, which has no moving average to choose; leave out --ema"),
        ({"base": source}, "--base belongs to finetunes of biases alone"),
    ]:
        with pytest.raises(UserError, match=reason):
            convert(text, tmp_path / "x", **options)
    with pytest.raises(UserError, match="is one file, so --variant has nothing to choose from"):
        convert(text / "model.safetensors", tmp_path / "x", variant="fp16")
    with pytest.raises(UserError, match="--config is for other sources"):
        convert(source, tmp_path / "x", config=source / "model_index.json")
    with pytest.raises(UserError, match="so --ema does not apply"):
        convert(source, tmp_path / "x", ema=True)


def test_settings_said_twice_are_refused(source: Path, tmp_path: Path) -> None:
    file = source / "unet" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()))[:-1] + ', "norm_eps": 1e-6}')
    with pytest.raises(UserError, match="it says norm_eps twice"):
        convert(source, tmp_path / "out")
