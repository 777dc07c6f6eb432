"""Attention, MLP and residual blocks one by one against PyTorch, within 2e-5; what their originals read is
caught on the way through them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest
import torch
from openai_clip import openai_clip
from torch_trees import close, jitter, nchw, nhwc, tree_of
from transformers import CLIPTextConfig, CLIPTextModel, GPTJConfig, GPTJModel, GPTNeoXConfig, GPTNeoXModel

from mvader_jax.models.clip_text import _MLP as ClipMLP
from mvader_jax.models.clip_text import ClipTextConfig
from mvader_jax.models.clip_text import _SelfAttention as ClipSelfAttention
from mvader_jax.models.decoder import MLP, DecoderConfig, SelfAttention
from mvader_jax.models.image_encoder import Bottleneck
from mvader_jax.models.image_prefix import ImagePrefix, ImagePrefixConfig

TOLERANCE = 2e-5


def caught(model: torch.nn.Module, ids: torch.Tensor, *names: str) -> dict[str, tuple[Any, Any]]:
    """{name of a submodule: (what it read, what it gave)} in one run of the model."""
    seen: dict[str, tuple[Any, Any]] = {}

    def watch(name: str) -> None:
        def hook(_: Any, inputs: tuple[Any, ...], options: dict[str, Any], output: Any) -> None:
            given = inputs[0] if inputs else options["hidden_states"]
            seen[name] = (given.detach(), output[0] if isinstance(output, tuple) else output)

        model.get_submodule(name).register_forward_hook(hook, with_kwargs=True)

    for name in names:
        watch(name)
    with torch.no_grad():
        model(ids)
    return seen


def attention_and_mlp(
    model: torch.nn.Module, layer: str, names: tuple[str, str], ours: tuple[Any, Any], params: tuple[Any, Any]
) -> None:
    seen = caught(model, torch.randint(0, 90, (2, 13)), *(f"{layer}.{name}" for name in names))
    attention, mlp = (seen[f"{layer}.{name}"] for name in names)
    x = jnp.asarray(attention[0].numpy())
    found = jax.jit(ours[0].apply)({"params": params[0]}, x, jnp.zeros(x.shape[:2]), None)
    close(found, attention[1], TOLERANCE)
    close(jax.jit(ours[1].apply)({"params": params[1]}, mlp[0].numpy()), mlp[1], TOLERANCE)


@pytest.mark.parametrize(("heads", "rotary"), [(3, 8), (5, 12)])
def test_gptj(heads: int, rotary: int) -> None:
    torch.manual_seed(20)
    sizes = {"n_embd": heads * 12, "n_layer": 2, "n_head": heads, "rotary_dim": rotary, "n_inner": 70}
    theirs = jitter(GPTJModel(GPTJConfig(vocab_size=97, n_positions=64, **sizes)))
    tree = tree_of(theirs.state_dict())["h_1"]
    config = DecoderConfig(97, 97, heads * 12, 2, heads, 12, 70, 64, rotary_dim=rotary)
    ours = (SelfAttention(config, jnp.float32), MLP(config, jnp.float32))
    attention_and_mlp(theirs, "h.1", ("attn", "mlp"), ours, (tree["attn"], tree["mlp"]))


@pytest.mark.parametrize(("heads", "share"), [(3, 0.4), (2, 1.0)])
def test_gpt_neox(heads: int, share: float) -> None:
    torch.manual_seed(21)
    width = heads * 20
    sizes = {"hidden_size": width, "num_hidden_layers": 2, "intermediate_size": 70, "rotary_pct": share}
    settings = GPTNeoXConfig(
        vocab_size=97, num_attention_heads=heads, max_position_embeddings=64, hidden_act="gelu_new", **sizes
    )
    theirs = jitter(GPTNeoXModel(settings))
    tree = tree_of(theirs.state_dict())["layers_1"]
    fused = tree["attention"]["query_key_value"]
    kernel = fused["kernel"].reshape(width, heads, 3, 20)
    bias = fused["bias"].reshape(heads, 3, 20)
    attention = {
        name: {"kernel": kernel[:, :, i].reshape(width, width), "bias": bias[:, i].reshape(width)}
        for i, name in enumerate(("q_proj", "k_proj", "v_proj"))
    }
    attention["out_proj"] = tree["attention"]["dense"]
    mlp = {"fc_in": tree["mlp"]["dense_h_to_4h"], "fc_out": tree["mlp"]["dense_4h_to_h"]}
    config = DecoderConfig(
        97,
        97,
        width,
        2,
        heads,
        20,
        70,
        64,
        block="parallel_two_norms",
        rotary="half",
        rotary_dim=int(20 * share),
        attention_bias=True,
        out_bias=True,
    )
    ours = (SelfAttention(config, jnp.float32), MLP(config, jnp.float32))
    attention_and_mlp(theirs, "layers.1", ("attention", "mlp"), ours, (attention, mlp))


@pytest.mark.parametrize(("heads", "activation"), [(4, "quick_gelu"), (3, "gelu")])
def test_clip_text(heads: int, activation: Any) -> None:
    torch.manual_seed(22)
    settings = CLIPTextConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=70,
        num_hidden_layers=2,
        num_attention_heads=heads,
        max_position_embeddings=23,
        hidden_act=activation,
        eos_token_id=96,
    )
    theirs = jitter(CLIPTextModel(settings))
    prefix = "text_model." if hasattr(theirs, "text_model") else ""
    layer = theirs.get_submodule(f"{prefix}encoder.layers.1")
    tree = tree_of(layer.state_dict())
    config = ClipTextConfig(97, 48, 2, heads, 70, 23, activation)
    ours = (ClipSelfAttention(config, jnp.float32, causal=True), ClipMLP(config, jnp.float32))
    where = f"{prefix}encoder.layers.1"
    attention_and_mlp(theirs, where, ("self_attn", "mlp"), ours, (tree["self_attn"], tree["mlp"]))


@pytest.mark.parametrize(("inputs", "width", "stride"), [(24, 6, 1), (16, 6, 1), (16, 8, 2)])
def test_bottleneck(inputs: int, width: int, stride: int) -> None:
    torch.manual_seed(23)
    theirs = jitter(openai_clip().Bottleneck(inputs, width, stride))
    for name, buffer in theirs.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(0.2 * torch.rand_like(buffer))
    state = {k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}
    renamed = {"running_mean": "mean", "running_var": "var"}

    def rename(name: str) -> str:
        for old, new in renamed.items():
            name = name.replace(old, new)
        return name

    x = torch.randn(2, inputs, 8, 12)
    ours = jax.jit(Bottleneck(width, stride, jnp.float32).apply)({"params": tree_of(state, rename)}, nhwc(x))
    close(nchw(ours), theirs(x), TOLERANCE)


def test_image_prefix() -> None:
    torch.manual_seed(24)
    linear, norm = torch.nn.Linear(30, 20), jitter(torch.nn.LayerNorm(20))
    params = {"proj": tree_of(linear.state_dict()), "ln": tree_of(norm.state_dict())}
    x = torch.randn(2, 9, 30)
    ours = ImagePrefix(ImagePrefixConfig(30, 20)).apply({"params": params}, jnp.asarray(x.numpy()))
    close(ours, norm(linear(x)), TOLERANCE)
