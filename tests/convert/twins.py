"""Small random PyTorch models of every public kind, saved as their makers save them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, PNDMScheduler, UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from torch_trees import jitter
from transformers import (
    CLIPConfig,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    GPTJConfig,
    GPTJForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
)


def gptj(**changes: Any) -> GPTJForCausalLM:
    torch.manual_seed(0)
    sizes = {"n_embd": 48, "n_layer": 3, "n_head": 4, "n_inner": 100, "rotary_dim": 6, "vocab_size": 70}
    config = GPTJConfig(**{**sizes, "n_positions": 64, "bos_token_id": 0, "eos_token_id": 0, **changes})
    return jitter(GPTJForCausalLM(config))


def gpt_neox(**changes: Any) -> GPTNeoXForCausalLM:
    torch.manual_seed(1)
    sizes = {"hidden_size": 40, "num_hidden_layers": 3, "num_attention_heads": 5, "intermediate_size": 90}
    config = GPTNeoXConfig(
        **{
            **sizes,
            "vocab_size": 75,
            "max_position_embeddings": 64,
            "bos_token_id": 0,
            "eos_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0, "partial_rotary_factor": 0.5},
            **changes,
        }
    )
    return jitter(GPTNeoXForCausalLM(config))


def clip_text(**changes: Any) -> CLIPTextModel:
    torch.manual_seed(2)
    sizes = {"hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 80}
    config = CLIPTextConfig(
        **{
            **sizes,
            "vocab_size": 300,
            "max_position_embeddings": 20,
            "bos_token_id": 298,
            "eos_token_id": 299,
            "attn_implementation": "eager",
            **changes,
        }
    )
    return jitter(CLIPTextModel(config))


def unet(**changes: Any) -> UNet2DConditionModel:
    torch.manual_seed(3)
    return jitter(
        UNet2DConditionModel(
            **{
                "sample_size": 8,
                "block_out_channels": (16, 24),
                "layers_per_block": 1,
                "cross_attention_dim": 36,
                "attention_head_dim": 4,
                "norm_num_groups": 8,
                "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
                "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
                **changes,
            }
        )
    )


def vae(**changes: Any) -> AutoencoderKL:
    torch.manual_seed(4)
    widths = changes.pop("block_out_channels", (8, 16, 24))
    return jitter(
        AutoencoderKL(
            block_out_channels=widths,
            down_block_types=("DownEncoderBlock2D",) * len(widths),
            up_block_types=("UpDecoderBlock2D",) * len(widths),
            **{
                "layers_per_block": 1,
                "norm_num_groups": 4,
                "latent_channels": 4,
                "sample_size": 32,
                **changes,
            },
        )
    )


def scheduler() -> PNDMScheduler:
    return PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def save_diffusers(folder: Path, *models: Any) -> Path:
    """A pipeline's folder of some of UNet, VAE and text tower, with its scheduler."""
    folder.mkdir(parents=True)
    names = {UNet2DConditionModel: "unet", AutoencoderKL: "vae", CLIPTextModel: "text_encoder"}
    index = {"_class_name": "StableDiffusionPipeline", "scheduler": ["diffusers", "PNDMScheduler"]}
    for model in models:
        model.save_pretrained(folder / names[type(model)])
        index[names[type(model)]] = ["diffusers", type(model).__name__]
    scheduler().save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def save_folder(
    folder: Path,
    state: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    *,
    kind: str = "safetensors",
    shards: int = 1,
    stem: str | None = None,
) -> Path:
    """A Hugging Face folder: config.json and weights, as safetensors or bin, in one file or several."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(dict(config)))
    stem = stem or ("model" if kind == "safetensors" else "pytorch_model")
    names = list(state)
    weight_map = {}
    for i in range(shards):
        chosen = {name: state[name].clone() for name in names[i::shards]}
        file = f"{stem}.{kind}" if shards == 1 else f"{stem}-{i + 1:05d}-of-{shards:05d}.{kind}"
        weight_map.update(dict.fromkeys(chosen, file))
        if kind == "safetensors":
            save_file(chosen, folder / file, metadata={"format": "pt"})
        else:
            torch.save(chosen, folder / file)
    if shards > 1:
        index = {"metadata": {}, "weight_map": weight_map}
        (folder / f"{stem}.{kind}.index.json").write_text(json.dumps(index))
    return folder


class Bottleneck(nn.Module):
    """A block of CLIP's ResNet, by the description in its paper and the names of its state dict."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or inputs != 4 * width:
            pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
            layers = {
                "-1": pool,
                "0": nn.Conv2d(inputs, 4 * width, 1, bias=False),
                "1": nn.BatchNorm2d(4 * width),
            }
            self.downsample = nn.Sequential()
            for name, layer in layers.items():
                self.downsample.add_module(name, layer)
        self.pool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.pool(torch.relu(self.bn2(self.conv2(y))))
        return torch.relu(self.bn3(self.conv3(y)) + self.downsample(x))


class AttentionPool(nn.Module):
    """Only its weights: nothing here runs it."""

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(positions, width))
        self.c_proj = nn.Linear(width, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(x.flatten(2).mean(-1))


class ResNet(nn.Module):
    """CLIP's ModifiedResNet, ending in features [B, C, h, w]; `attnpool` where `positions` are given."""

    def __init__(self, layers: tuple[int, ...], width: int, positions: int = 0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.conv2 = nn.Conv2d(width // 2, width // 2, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.conv3 = nn.Conv2d(width // 2, width, 3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        inputs = width
        for stage, blocks in enumerate(layers):
            made = []
            for i in range(blocks):
                made.append(Bottleneck(inputs, width * 2**stage, 2 if stage and not i else 1))
                inputs = 4 * width * 2**stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*made))
        if positions:
            self.attnpool = AttentionPool(positions, inputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)))
        x = torch.relu(self.bn3(self.conv3(x)))
        x = nn.functional.avg_pool2d(x, 2)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


def resnet(layers: tuple[int, ...] = (1, 2, 1, 1), width: int = 12, positions: int = 0) -> ResNet:
    torch.manual_seed(5)
    model = jitter(ResNet(layers, width, positions))
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.copy_(0.2 * torch.randn_like(buffer))
        elif name.endswith("running_var"):
            buffer.copy_(0.5 + torch.rand_like(buffer))
    return model


class Clip(nn.Module):
    """What a CLIP archive holds around its two towers: a ResNet (`visual`) and OpenAI's text tower."""

    def __init__(self, visual: nn.Module, width: int = 64, layers: int = 2, positions: int = 20) -> None:
        super().__init__()
        self.visual = visual
        self.transformer = nn.Module()
        self.transformer.resblocks = nn.ModuleList()
        for _ in range(layers):
            block = nn.Module()
            block.attn = nn.MultiheadAttention(width, width // 32)
            block.ln_1, block.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
            block.mlp = nn.Module()
            block.mlp.c_fc, block.mlp.c_proj = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            self.transformer.resblocks.append(block)
        self.token_embedding = nn.Embedding(90, width)
        self.positional_embedding = nn.Parameter(0.1 * torch.randn(positions, width))
        self.ln_final = nn.LayerNorm(width)
        self.text_projection = nn.Parameter(torch.randn(width, 8))
        self.logit_scale = nn.Parameter(torch.ones([]))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.visual(pixels)

    def text(self, tokens: torch.Tensor) -> torch.Tensor:
        """Hidden states after the final norm, one token after another seeing those before it."""
        x = self.token_embedding(tokens) + self.positional_embedding[: tokens.shape[1]]
        mask = torch.full((tokens.shape[1],) * 2, float("-inf")).triu(1)
        for block in self.transformer.resblocks:
            y = block.ln_1(x).transpose(0, 1)
            x = x + block.attn(y, y, y, need_weights=False, attn_mask=mask)[0].transpose(0, 1)
            y = block.mlp.c_fc(block.ln_2(x))
            x = x + block.mlp.c_proj(y * torch.sigmoid(1.702 * y))
        return self.ln_final(x)


def clip(**changes: Any) -> Clip:
    torch.manual_seed(6)
    return jitter(Clip(resnet(positions=10), **changes))


def whole_clip(activation: str = "quick_gelu") -> CLIPModel:
    """Both towers and projections, the towers of their own widths; tokens 97 and 98 begin and end a text."""
    torch.manual_seed(1)
    text = {"vocab_size": 99, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "max_position_embeddings": 11, "hidden_act": activation}
    text |= {"bos_token_id": 97, "eos_token_id": 98}
    vision = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 3}
    vision |= {"image_size": 40, "patch_size": 8, "hidden_act": activation}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)).eval()
    for parameter in model.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return model


class Adapter(nn.Module):
    """y + up(relu(down(y))): MAGMA's sequential adapter, after whatever it wraps."""

    def __init__(self, width: int, downsample: int) -> None:
        super().__init__()
        inner = width // downsample
        self.adapter = nn.Sequential(nn.Linear(width, inner), nn.ReLU(), nn.Linear(inner, width))

    def forward(self, y: torch.Tensor) -> torch.Tensor:
        return y + self.adapter(y)


class Magma(nn.Module):
    """MAGMA: GPT-J with adapters behind its MLPs (and attentions), an image prefix and CLIP's ResNet.

    The forward pass is transformers' GPT-J with its sub-layers wrapped; `public_state` gives the names
    that the public checkpoints have.
    """

    def __init__(self, version: int, **changes: Any) -> None:
        super().__init__()
        self.version = version
        self.lm = gptj(**changes)
        width = self.lm.config.n_embd
        downsample = 4 if version == 1 else 8
        self.mlp_adapters = nn.ModuleList(Adapter(width, downsample) for _ in self.lm.transformer.h)
        self.attn_adapters = nn.ModuleList(Adapter(width, downsample) for _ in self.lm.transformer.h)
        for i, block in enumerate(self.lm.transformer.h):
            block.mlp.register_forward_hook(lambda _, __, y, i=i: self.mlp_adapters[i](y))
            if version == 2:
                block.attn.register_forward_hook(lambda _, __, y, i=i: (self.attn_adapters[i](y[0]), *y[1:]))
        self.enc = resnet(width=12)
        self.proj, self.ln = nn.Linear(32 * 12, width), nn.LayerNorm(width)

    def embed_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """[1, 3, H, W] -> [1, T, D]."""
        return self.ln(self.proj(self.enc(pixels).flatten(2).transpose(1, 2)))

    def hidden(self, *parts: torch.Tensor) -> torch.Tensor:
        """Last hidden states of a prompt of token ids [1, S] and pixels [1, 3, H, W], in order."""
        wte = self.lm.transformer.wte
        embedded = [wte(part) if part.ndim == 2 else self.embed_image(part) for part in parts]
        return self.lm.transformer(inputs_embeds=torch.cat(embedded, dim=1)).last_hidden_state

    def public_state(self, *, language_model: bool = True, aliases: bool = True) -> dict[str, torch.Tensor]:
        """The state dict by the public names, buffers and aliases included."""
        attention = "attn.attention" if self.version == 1 else "attn.attn_block.attention"
        state: dict[str, torch.Tensor] = {}
        for name, tensor in self.lm.state_dict().items():
            name = name.replace(".attn.", f".{attention}.").replace(".mlp.fc_in.", ".mlp.0.c_fc.")
            state[f"lm.{name.replace('.mlp.fc_out.', '.mlp.0.c_proj.')}"] = tensor
        for i, (mlp, attn) in enumerate(zip(self.mlp_adapters, self.attn_adapters, strict=True)):
            block = f"lm.transformer.h.{i}."
            for name, tensor in mlp.state_dict().items():
                state[f"{block}mlp.1.{name}"] = tensor
            for name, tensor in attn.state_dict().items() if self.version == 2 else ():
                state[f"{block}attn.{name}"] = tensor
            state[f"{block}{attention}.bias"] = torch.ones(1, 1, 4, 4, dtype=torch.bool).tril()
            state[f"{block}{attention}.masked_bias"] = torch.tensor(-1e9)
        if not language_model:
            state = {name: tensor for name, tensor in state.items() if ".adapter." in name}
        if aliases:
            for name in [name for name in state if name.startswith("lm.transformer.h.")]:
                state[name.replace("lm.transformer.h.", "transformer.")] = state[name]
            if language_model:
                state["word_embedding.weight"] = state["lm.transformer.wte.weight"]
        for name, module in (("enc", self.enc), ("proj", self.proj), ("ln", self.ln)):
            for inner, tensor in module.state_dict().items():
                state[f"image_prefix.{name}.{inner}"] = tensor
        return state


def magma(version: int, **changes: Any) -> Magma:
    model = jitter(Magma(version, **changes))
    torch.manual_seed(7)
    with torch.no_grad():
        for adapter in (*model.mlp_adapters, *model.attn_adapters):
            for parameter in adapter.parameters():
                parameter.copy_(0.1 * torch.randn_like(parameter))
    return model


def save_magma(folder: Path, model: Magma, **which: bool) -> Path:
    """The checkpoint as DeepSpeed writes it, and the settings that its shapes do not tell."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "mp_rank_00_model_states.pt"
    torch.save({"module": model.public_state(**which), "global_step": 3, "optimizer": None}, file)
    config = model.lm.config
    settings = {"n_head": config.n_head, "rotary_dim": config.rotary_dim, "n_positions": config.n_positions}
    settings |= {
        "n_inner": config.n_inner,
        "vocab_size": config.vocab_size,
        "head_vocab_size": config.vocab_size,
    }
    (folder / "config.json").write_text(json.dumps({**settings, "image_size": 96}))
    return file


def finetuned(base: torch.nn.Module, *changed: str) -> dict[str, torch.Tensor]:
    """The base's state without its head, as SGPT saves it, with other numbers in some tensors."""
    torch.manual_seed(9)
    held = base.state_dict().items()
    bare = {name.removeprefix("transformer."): x for name, x in held if not name.startswith("lm_head.")}
    ends = ("ln_1.bias", "fc_in.bias", "fc_out.bias", "ln_f.bias")
    moved = {name for name in bare if name.endswith(ends) or name in changed}
    return {name: x + torch.randn_like(x) if name in moved else x for name, x in bare.items()}
