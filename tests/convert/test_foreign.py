"""Files of other kinds are named as what they are, each in one short sentence."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import twins
from safetensors.torch import save_file

from mvader_jax.cli.main import main

#: {what it is called: (names of some of its tensors, as its makers have them, what is said)}.
BY_NAMES: dict[str, tuple[tuple[str, ...], str]] = {
    "kohya": (
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight", "lora_te_text_model_encoder.alpha"),
        "a LoRA in kohya's format",
    ),
    "diffusers lora": (
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",),
        "a LoRA in diffusers' or PEFT's format",
    ),
    "diffusers lora, older": (
        ("unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",),
        "a LoRA",
    ),
    "peft": (("base_model.model.transformer.h.0.attn.q_proj.lora_B.weight",), "a LoRA"),
    "controlnet": (
        (
            "controlnet_cond_embedding.conv_in.weight",
            "down_blocks.0.resnets.0.conv1.weight",
            "time_embedding.linear_1.bias",
        ),
        "a ControlNet",
    ),
    "controlnet, CompVis": (("control_model.input_blocks.0.0.weight",), "a ControlNet"),
    "ip-adapter": (("image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"), "an IP-Adapter"),
    "sd 2, CompVis": (
        (
            "model.diffusion_model.input_blocks.0.0.weight",
            "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight",
            "cond_stage_model.model.transformer.resblocks.0.attn.in_proj_weight",
        ),
        "Stable Diffusion 2.x",
    ),
    "sdxl": (
        (
            "model.diffusion_model.input_blocks.0.0.weight",
            "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight",
            "model.diffusion_model.label_emb.0.0.weight",
            "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
        ),
        "Stable Diffusion XL",
    ),
    "sdxl, diffusers": (
        ("add_embedding.linear_1.weight", "down_blocks.0.resnets.0.conv1.weight"),
        "a Stable Diffusion XL UNet",
    ),
    "sd 3": (("model.diffusion_model.joint_blocks.0.context_block.attn.qkv.weight",), "Stable Diffusion 3"),
    "flux": (("double_blocks.0.img_attn.qkv.weight",), "FLUX"),
    "textual inversion, A1111": (("emb_params",), "a textual inversion"),
    "textual inversion": (("<cat-toy>",), "a textual inversion"),
    "llama": (("model.layers.0.self_attn.q_proj.weight", "model.embed_tokens.weight"), "LLaMA's kind"),
    "gpt2": (("h.0.attn.c_attn.weight",), "GPT-2;"),
    "gpt-neo": (("transformer.h.0.attn.attention.q_proj.weight",), "GPT-Neo;"),
    "bert": (("bert.embeddings.word_embeddings.weight",), "BERT's kind"),
    "animatediff": (("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight",), "a motion module"),
}
#: {file: (how it begins, what is said)}.
BY_FORMAT: dict[str, tuple[bytes, str]] = {
    "model.gguf": (b"GGUF\3\0\0\0", "a GGUF file"),
    "tf_model.h5": (b"\x89HDF\r\n\x1a\n", "an HDF5 file"),
    "flax_model.msgpack": (b"\x81\xa6params", "Flax weights"),
    "model.onnx": (b"\x08\x08\x12\x07pytorch", "an ONNX graph"),
    "saved_model.pb": (b"\x08\x01", "a TensorFlow graph"),
    "weights.tar.gz": (b"\x1f\x8b\x08\0", "a gzip archive; unpack it first"),
    "weights.safetensors": (b"<!DOCTYPE html><html>", "a web page, not weights"),
    "model.ckpt": (b"\n  <html><head>", "a web page, not weights"),
    "config.json": (b"{}", "a settings file, not weights"),
}


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main([str(argument) for argument in arguments])
    error = capsys.readouterr().err
    assert stopped.value.code == 2 and error.startswith("mvader: ") and error.count("\n") == 1, error
    return error


def check(capsys: pytest.CaptureFixture[str], path: Path, what: str, out: Path) -> None:
    error = refused(capsys, "convert", path, out)
    assert what in error, error
    assert len(error) < 400 + len(str(path)), error
    assert not out.exists()


@pytest.mark.parametrize("style", ["safetensors", "ckpt"])
@pytest.mark.parametrize("case", BY_NAMES)
def test_by_the_names_of_tensors(
    case: str, style: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, what = BY_NAMES[case]
    state = {name: torch.zeros(2, 3) for name in names}
    file = tmp_path / f"file.{style}"
    save_file(state, file) if style == "safetensors" else torch.save({"state_dict": state}, file)
    check(capsys, file, what, tmp_path / "out")


@pytest.mark.parametrize("name", BY_FORMAT)
def test_by_format(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    start, what = BY_FORMAT[name]
    (tmp_path / name).write_bytes(start + bytes(100))
    check(capsys, tmp_path / name, what, tmp_path / "out")
    if name != "config.json":
        folder = tmp_path / "folder"
        folder.mkdir()
        (tmp_path / name).rename(folder / name)
        check(capsys, folder, what, tmp_path / "out")


def test_learnt_words_of_a1111(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = {
        "string_to_token": {"*": torch.tensor(265)},
        "string_to_param": {"*": torch.zeros(2, 768)},
        "name": "x",
    }
    torch.save(content, tmp_path / "x.pt")
    check(capsys, tmp_path / "x.pt", "a textual inversion", tmp_path / "out")
    torch.save({"my-word": torch.zeros(768)}, tmp_path / "x.bin")
    check(capsys, tmp_path / "x.bin", "a textual inversion", tmp_path / "out")


def bundle(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"format": 1, "model": {}, "components": {"unet": {}}}))


def shards(folder: Path) -> None:
    for i in (1, 2):
        save_file({f"x{i}": torch.zeros(1)}, folder / f"model-0000{i}-of-00002.safetensors")


def lora(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{}")
    save_file({"x": torch.zeros(1)}, folder / "a.safetensors")
    save_file({"x": torch.zeros(1)}, folder / "b.safetensors")


def several(folder: Path) -> None:
    for name in "ab":
        save_file({"x": torch.zeros(1)}, folder / f"{name}.safetensors")


def outer(folder: Path) -> None:
    (folder / "sd14").mkdir()


@pytest.mark.parametrize(
    ("fill", "what"),
    [
        (bundle, "is a bundle already"),
        (
            shards,
            "holds 2 shards (model-00001-of-00002.safetensors and so on) but not their index, model.safetensors.ind",
        ),
        (lora, "is a LoRA in PEFT's format"),
        (several, "it has a.safetensors, b.safetensors: name one of them"),
        (outer, "holds no weights itself, but folders: sd14; name one of them"),
    ],
)
def test_folders(
    fill: Callable[[Path], None], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    fill(folder)
    check(capsys, folder, what, tmp_path / "out")


def test_a_name_on_the_hub(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    error = refused(capsys, "convert", "CompVis/stable-diffusion-v1-4", tmp_path / "out")
    assert (
        "does not exist; a repository of the Hugging Face hub is named hf:CompVis/stable-diffusion-v1-4"
        in error
    )


def test_a_model_of_a_known_kind_but_other_shapes_is_told_in_short(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unet = twins.unet()
    source = twins.save_diffusers(tmp_path / "sd", unet) / "unet"
    state = {f"{name}.moved": tensor.clone() for name, tensor in unet.state_dict().items()}
    state |= {name: tensor.reshape(-1) for name, tensor in unet.state_dict().items()}
    save_file(state, source / "diffusion_pytorch_model.safetensors")
    error = refused(capsys, "convert", source, tmp_path / "out")
    assert "the source does not fit diffusers' UNet2DConditionModel" in error and " more" in error
    assert len(error) < 1000


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"use_linear_projection": True, "cross_attention_dim": 1024}, "this UNet is Stable Diffusion 2.x's"),
        (
            {"addition_embed_type": "text_time", "cross_attention_dim": 2048},
            "this UNet is Stable Diffusion XL's",
        ),
    ],
)
def test_other_generations_by_their_config(
    changes: dict[str, object], what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = twins.save_diffusers(tmp_path / "sd", twins.unet())
    file = source / "unet" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
    # Its scheduler's file asks for something else too, which says less of what it is.
    scheduler = source / "scheduler" / "scheduler_config.json"
    said = {**json.loads(scheduler.read_text()), "thresholding": True}
    scheduler.write_text(json.dumps(said))
    check(capsys, source, what, tmp_path / "out")


def test_other_pipelines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = twins.save_diffusers(tmp_path / "sd", twins.unet())
    for name in ("StableDiffusionXLPipeline", "FluxPipeline", "StableDiffusionInpaintPipeline"):
        (source / "model_index.json").write_text(json.dumps({"_class_name": name}))
        check(capsys, source, f"is a pipeline of class {name}, not Stable Diffusion 1.x's", tmp_path / "out")


def test_numbers_of_eight_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    header = json.dumps({"x": {"dtype": "F8_E5M2", "shape": [4], "data_offsets": [0, 4]}}).encode()
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    check(capsys, tmp_path / "x.safetensors", "x is F8_E5M2, a float of 8 bits or fewer", tmp_path / "out")
