"""What diffusers makes of a LoRA file, we make of it; what we write, it reads as we do."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import twins
from converting import converted
from diffusers import StableDiffusionPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from torch_trees import close, nchw, nhwc

from mvader_jax.condition import Condition
from mvader_jax.convert.lora.files import read_lora, write_lora
from mvader_jax.convert.lora.names import layers_of
from mvader_jax.models.clip_text import ClipText
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.unet import UNet
from mvader_jax.sampling.lora import Applied, Loras
from mvader_jax.storage.bundle import Bundle

Tensors = dict[str, torch.Tensor]
#: The layers that LCM's LoRA changes, as diffusers' script train_lcm_distill_lora_sd_wds.py names them.
LCM = (
    r"(to_q|to_k|to_v|to_out\.0|proj_in|proj_out|ff\.net\.0\.proj|ff\.net\.2|conv1|conv2|conv_shortcut"
    r"|downsamplers\.0\.conv|upsamplers\.0\.conv|time_emb_proj)$"
)


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> Loras:
    folder = tmp_path_factory.mktemp("sd")
    source = twins.save_diffusers(folder / "sd", twins.unet(), twins.vae(), twins.clip_text())
    return Loras(converted(source, folder / "bundle"))


def theirs(unet: Any = None) -> StableDiffusionPipeline:
    parts = (twins.vae(), twins.clip_text(), None, unet or twins.unet(), twins.scheduler(), None, None)
    return StableDiffusionPipeline(*parts, requires_safety_checker=False)


def kohya(
    model: torch.nn.Module,
    prefix: str,
    wanted: str,
    ranks: Callable[[str], int],
    alphas: Callable[[str], float],
) -> Tensors:
    """kohya's factors of the layers whose names fit."""
    state: Tensors = {}
    for name, module in model.named_modules():
        if not isinstance(module, (torch.nn.Linear, torch.nn.Conv2d)) or not re.search(wanted, name):
            continue
        if prefix == "lora_te" and not name.startswith("text_model."):
            name = f"text_model.{name}"
        rank, word = ranks(name), f"{prefix}_{name.replace('.', '_')}"
        outputs, inputs, *window = module.weight.shape
        state[f"{word}.lora_down.weight"] = torch.randn(rank, inputs, *window) * 0.3
        state[f"{word}.lora_up.weight"] = torch.randn(outputs, rank, *(1 for _ in window)) * 0.3
        state[f"{word}.alpha"] = torch.tensor(alphas(name))
    return state


def random_adapter(model: Any, config: LoraConfig) -> Tensors:
    model.add_adapter(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.normal_(0, 0.3)
    return get_peft_model_state_dict(model)


def attention_alone(folder: Path) -> Path:
    state = kohya(theirs().unet, "lora_unet", r"attn\d\.to_", lambda _: 4, lambda _: 2.0)
    save_file(state, folder / "attention.safetensors")
    return folder / "attention.safetensors"


def everything(folder: Path) -> Path:
    """A rank of each layer's own, alphas of the convolutions' and the text encoder's own.

    diffusers gives all of attention the alpha that most layers have (its patterns of alphas hold names of before PEFT).
    """
    pipe, number = theirs(), np.random.default_rng(0)

    def rank(name: str) -> int:
        return int(number.integers(1, 7))

    def alpha(name: str) -> float:
        return 2.5 if "attn" in name else float(number.integers(1, 5)) / 2

    state = kohya(pipe.unet, "lora_unet", r"blocks|mid_block", rank, alpha)
    state |= kohya(pipe.text_encoder, "lora_te", r"self_attn|fc", lambda _: 3, lambda _: 1.5)
    save_file(state, folder / "everything.safetensors")
    return folder / "everything.safetensors"


def latent_consistency(folder: Path) -> Path:
    state = kohya(theirs().unet, "lora_unet", LCM, lambda _: 8, lambda _: 1.0)
    save_file(
        {name: tensor.half() for name, tensor in state.items()}, folder / "pytorch_lora_weights.safetensors"
    )
    return folder


def training_script(folder: Path) -> Path:
    """What diffusers' scripts save: attention in its old words, the rest in PEFT's, no alphas."""
    pipe = theirs()
    unet = random_adapter(
        pipe.unet,
        LoraConfig(r=4, lora_alpha=4, target_modules=["to_k", "to_q", "to_v", "to_out.0", "ff.net.2"]),
    )
    text: Tensors = {}
    for name, module in pipe.text_encoder.named_modules():
        if name.endswith(("q_proj", "out_proj", "fc1")):
            outputs, inputs_ = module.weight.shape
            text[f"{name}.lora_A.weight"] = torch.randn(2, inputs_) * 0.3
            text[f"{name}.lora_B.weight"] = torch.randn(outputs, 2) * 0.3
    StableDiffusionPipeline.save_lora_weights(
        folder, convert_state_dict_to_diffusers(unet), convert_state_dict_to_diffusers(text)
    )
    return folder


def peft_with_alphas(folder: Path) -> Path:
    """Alphas that stand in the metadata alone."""
    unet = theirs().unet
    config = LoraConfig(
        r=4,
        lora_alpha=6,
        target_modules=["to_q", "to_v", "conv1", "proj_in"],
        rank_pattern={"conv1": 2},
        alpha_pattern={"to_v": 1, "conv1": 3},
    )
    random_adapter(unet, config)
    unet.save_lora_adapter(folder / "adapter", adapter_name="default")
    state = load_file(folder / "adapter" / "pytorch_lora_weights.safetensors")
    StableDiffusionPipeline.save_lora_weights(
        folder, state, unet_lora_adapter_metadata=unet.peft_config["default"].to_dict()
    )
    return folder


def attention_processors(folder: Path) -> Path:
    """The words of diffusers before PEFT."""
    state: Tensors = {}
    for name, module in theirs().unet.named_modules():
        found = re.fullmatch(r"(.*attn\d)\.(to_q|to_k|to_v|to_out\.0)", name)
        if found:
            outputs, inputs = module.weight.shape
            start = f"unet.{found[1]}.processor.{found[2].removesuffix('.0')}_lora"
            state[f"{start}.down.weight"] = torch.randn(4, inputs) * 0.3
            state[f"{start}.up.weight"] = torch.randn(outputs, 4) * 0.3
    save_file(state, folder / "processors.safetensors")
    return folder / "processors.safetensors"


@functools.cache
def networks(model: ModelConfig) -> tuple[Any, Any]:
    assert model.unet is not None and model.text_encoder is not None
    return jax.jit(UNet(model.unet).apply), jax.jit(ClipText(model.text_encoder).apply)


def results(bundle: Bundle) -> tuple[np.ndarray, np.ndarray]:
    """(eps, the text encoder's states) of fixed inputs."""
    x, t, context, tokens = inputs()
    condition = Condition(jnp.asarray(context), jnp.zeros(context.shape[:2]))
    unet, text = networks(bundle.model)
    eps = unet({"params": bundle.components["unet"]}, nhwc(x), jnp.asarray(t), condition)
    return nchw(eps), np.asarray(text({"params": bundle.components["text_encoder"]}, jnp.asarray(tokens)))


def inputs() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(7)
    return torch.randn(1, 4, 8, 8), torch.tensor([400]), torch.randn(1, 5, 36), torch.randint(0, 290, (1, 12))


def their_results(pipe: StableDiffusionPipeline) -> tuple[torch.Tensor, torch.Tensor]:
    x, t, context, tokens = inputs()
    with torch.no_grad():
        return pipe.unet(x, t, context).sample, pipe.text_encoder(tokens).last_hidden_state


FILES = (
    attention_alone,
    everything,
    latent_consistency,
    training_script,
    peft_with_alphas,
    attention_processors,
)


@pytest.mark.parametrize("make", FILES)
def test_a_file_does_what_it_does_in_diffusers(
    make: Callable[[Path], Path], loras: Loras, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    file = make(tmp_path)
    plain = results(loras.bundle)
    pipe = theirs()
    pipe.load_lora_weights(file, adapter_name="a")
    for strength in (1.0, 0.4):
        pipe.set_adapters(["a"], [strength])
        ours = results(loras.with_files([Applied(file, strength)]))
        expected = their_results(pipe)
        assert np.abs(ours[0] - plain[0]).max() > 0.01 * np.abs(plain[0]).max()
        for mine, its in zip(ours, expected, strict=True):
            close(mine, its, 2e-5)


def test_several_at_once(loras: Loras, tmp_path: Path) -> None:
    torch.manual_seed(1)
    (tmp_path / "b").mkdir()
    files = attention_alone(tmp_path), training_script(tmp_path / "b")
    pipe = theirs()
    for name, file in zip("ab", files, strict=True):
        pipe.load_lora_weights(file, adapter_name=name)
    pipe.set_adapters(["a", "b"], [0.7, -0.3])
    ours = results(loras.with_files([Applied(files[0], 0.7), Applied(files[1], -0.3)]))
    for mine, its in zip(ours, their_results(pipe), strict=True):
        close(mine, its, 2e-5)


@pytest.mark.parametrize("to", ["peft", "diffusers", "kohya"])
def test_what_is_written_does_the_same_in_diffusers(to: str, loras: Loras, tmp_path: Path) -> None:
    torch.manual_seed(2)
    model = loras.bundle.model
    lora, _ = read_lora(everything(tmp_path), model)
    assert write_lora(tmp_path / "out.safetensors", lora, model, to) == to
    pipe = theirs()
    pipe.load_lora_weights(tmp_path / "out.safetensors")
    ours = results(loras.with_files([Applied(tmp_path / "everything.safetensors")]))
    for mine, its in zip(ours, their_results(pipe), strict=True):
        close(mine, its, 2e-5)


def test_every_layer_of_the_unet_and_the_text_encoder_has_its_name(loras: Loras) -> None:
    pipe = theirs()
    expected = {
        f"unet.{name}": tuple(module.weight.shape)
        for name, module in pipe.unet.named_modules()
        if isinstance(module, (torch.nn.Linear, torch.nn.Conv2d))
    }
    for name, module in pipe.text_encoder.named_modules():
        if isinstance(module, torch.nn.Linear):
            expected[f"text_encoder.text_model.{name.removeprefix('text_model.')}"] = tuple(
                module.weight.shape
            )
    found = {layer.name: layer for layer in layers_of(loras.bundle.model)}
    assert found.keys() == expected.keys()
    for name, layer in found.items():
        outputs, inputs_, *window = expected[name]
        down, up = layer.external_shapes(3)
        assert down == (3, inputs_, *window) and up == (outputs, 3, *(1 for _ in window)), name


@pytest.mark.slow
def test_every_layer_of_the_published_lcm_lora(tmp_path: Path) -> None:
    """Its 278 layers, in a UNet of Stable Diffusion 1.5's blocks and few channels."""
    unet = twins.unet(
        block_out_channels=(8, 16, 24, 24),
        layers_per_block=2,
        norm_num_groups=4,
        down_block_types=("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    )
    source = twins.save_diffusers(tmp_path / "sd", unet, twins.vae(), twins.clip_text())
    loras, pipe = Loras(converted(source, tmp_path / "bundle")), theirs(unet)
    torch.manual_seed(4)
    state = kohya(unet, "lora_unet", LCM, lambda _: 4, lambda _: 4.0)
    assert len(state) == 834
    file = tmp_path / "pytorch_lora_weights.safetensors"
    save_file({name: tensor.half() for name, tensor in state.items()}, file)
    plain = results(loras.bundle)[0]
    pipe.load_lora_weights(file)
    ours = results(loras.with_files([Applied(file)]))[0]
    assert np.abs(ours - plain).max() > 0.01 * np.abs(plain).max()
    close(ours, their_results(pipe)[0], 2e-5)
