"""The decoder, CLIP's text tower and its ModifiedResNet against their PyTorch originals."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from openai_clip import openai_clip
from torch_trees import close, jitter, tree_of
from transformers import CLIPTextConfig, CLIPTextModel, GPTJConfig, GPTJModel, GPTNeoXConfig, GPTNeoXModel

from mvader_jax.models.clip_text import ClipText, ClipTextConfig
from mvader_jax.models.decoder import Decoder, DecoderConfig, bias_leaves
from mvader_jax.models.image_encoder import ImageEncoder, ImageEncoderConfig, calibrate
from mvader_jax.parallel.sharding import abstract_init


def stacked(tree: dict[str, Any], prefix: str, count: int) -> dict[str, Any]:
    """The layers `prefix`_0.. of a tree as one, stacked on a leading axis."""
    layers = [flatten_dict(tree[f"{prefix}_{i}"]) for i in range(count)]
    return unflatten_dict({path: np.stack([layer[path] for layer in layers]) for path in layers[0]})


def run(config: DecoderConfig, params: dict[str, Any], ids: np.ndarray) -> jax.Array:
    decoder = Decoder(config)

    def forward(params: Any, ids: jax.Array) -> jax.Array:
        return decoder.apply(params, decoder.apply(params, ids, method="embed"), jnp.zeros(ids.shape))

    return jax.jit(forward)({"params": params}, ids)


@pytest.mark.parametrize(("layers", "heads", "rotary"), [(3, 3, 8), (2, 5, 12)])
def test_gptj(layers: int, heads: int, rotary: int) -> None:
    torch.manual_seed(0)
    width = heads * 12
    theirs = jitter(
        GPTJModel(
            GPTJConfig(
                vocab_size=97,
                n_embd=width,
                n_layer=layers,
                n_head=heads,
                rotary_dim=rotary,
                n_positions=64,
                n_inner=100,
            )
        )
    )
    tree = tree_of(theirs.state_dict())
    params = {
        "wte": {"embedding": tree["wte"]["kernel"].T},
        "layers": stacked(tree, "h", layers),
        "ln_f": tree["ln_f"],
    }
    config = DecoderConfig(97, 97, width, layers, heads, 12, 100, 64, rotary_dim=rotary)
    ids = torch.randint(0, 97, (2, 19))
    close(run(config, params, ids.numpy()), theirs(ids).last_hidden_state, 1e-4)


@pytest.mark.parametrize("parallel", [True, False])
def test_gpt_neox(parallel: bool) -> None:
    torch.manual_seed(1)
    heads, head, layers = 3, 20, 2
    width = heads * head
    reference = GPTNeoXConfig(
        vocab_size=97,
        hidden_size=width,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=140,
        rotary_pct=0.4,
        max_position_embeddings=64,
        use_parallel_residual=parallel,
    )
    theirs = jitter(GPTNeoXModel(reference))
    tree = tree_of(theirs.state_dict())
    blocks = stacked(tree, "layers", layers)
    # The fused projection holds q, k and v of a head side by side.
    kernel = blocks["attention"]["query_key_value"]["kernel"].reshape(layers, width, heads, 3, head)
    bias = blocks["attention"]["query_key_value"]["bias"].reshape(layers, heads, 3, head)
    attention = {
        name: {
            "kernel": kernel[..., i, :].reshape(layers, width, width),
            "bias": bias[..., i, :].reshape(layers, width),
        }
        for i, name in enumerate(("q_proj", "k_proj", "v_proj"))
    }
    params = {
        "wte": {"embedding": tree["embed_in"]["kernel"].T},
        "layers": {
            "ln_1": blocks["input_layernorm"],
            "ln_2": blocks["post_attention_layernorm"],
            "attn": {**attention, "out_proj": blocks["attention"]["dense"]},
            "mlp": {"fc_in": blocks["mlp"]["dense_h_to_4h"], "fc_out": blocks["mlp"]["dense_4h_to_h"]},
        },
        "ln_f": tree["final_layer_norm"],
    }
    config = DecoderConfig(
        97,
        97,
        width,
        layers,
        heads,
        head,
        140,
        64,
        block="parallel_two_norms" if parallel else "sequential",
        rotary="half",
        rotary_dim=8,
        activation="gelu",
        attention_bias=True,
        out_bias=True,
    )
    ids = torch.randint(0, 97, (2, 17))
    close(run(config, params, ids.numpy()), theirs(ids).last_hidden_state, 1e-4)


def test_clip_text() -> None:
    torch.manual_seed(2)
    reference = CLIPTextConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=112,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=23,
        hidden_act="quick_gelu",
        eos_token_id=96,
    )
    theirs = jitter(CLIPTextModel(reference))
    tree = tree_of({k.removeprefix("text_model."): v for k, v in theirs.state_dict().items()})
    params = {
        "token_embedding": {"embedding": tree["embeddings"]["token_embedding"]["kernel"].T},
        "position_embedding": tree["embeddings"]["position_embedding"]["kernel"].T,
        "layers": stacked({f"layers_{i}": tree["encoder"][f"layers_{i}"] for i in range(3)}, "layers", 3),
        "final_layer_norm": tree["final_layer_norm"],
    }
    config = ClipTextConfig(97, 48, 3, 4, 112, 23)
    ids = torch.randint(0, 96, (2, 23))
    ours = jax.jit(ClipText(config).apply)({"params": params}, ids.numpy())
    close(ours, theirs(ids).last_hidden_state, 1e-4)


@pytest.mark.parametrize(("layers", "width", "height"), [((1, 2, 1, 1), 12, 64), ((2, 1, 1, 2), 8, 96)])
def test_image_encoder(layers: tuple[int, int, int, int], width: int, height: int) -> None:
    torch.manual_seed(3)
    theirs = jitter(openai_clip().ModifiedResNet(layers, 64, 4, 64, width))
    theirs.attnpool = torch.nn.Identity()
    for name, buffer in theirs.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            buffer.add_(0.2 * torch.rand_like(buffer))
    state = {k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}

    def rename(name: str) -> str:
        # Anti-aliasing pools stand before these and take the number -1 in CLIP's own module names.
        name = name.replace("downsample.0", "downsample_0").replace("downsample.1", "downsample_1")
        return name.replace("running_mean", "mean").replace("running_var", "var")

    params = tree_of(state, rename)
    pixels = torch.randn(2, 3, height, 128)
    expected = theirs(pixels).flatten(2).transpose(1, 2)
    config = ImageEncoderConfig(layers, width, 128)
    ours = jax.jit(ImageEncoder(config).apply)({"params": params}, pixels.permute(0, 2, 3, 1).numpy())
    close(ours, expected, 1e-4)


def test_calibration_is_batch_norm_in_training() -> None:
    torch.manual_seed(4)
    theirs = openai_clip().ModifiedResNet((1, 1, 1, 1), 64, 4, 64, 8)
    theirs.attnpool = torch.nn.Identity()
    theirs.train()
    state = {k: v for k, v in theirs.state_dict().items() if "num_batches" not in k}
    params = tree_of(state, lambda n: n.replace("running_mean", "mean").replace("running_var", "var"))
    pixels = torch.randn(4, 3, 64, 64)
    config = ImageEncoderConfig((1, 1, 1, 1), 8, 64)
    calibrated = calibrate(config, params, jnp.asarray(pixels.permute(0, 2, 3, 1).numpy()))
    ours = ImageEncoder(config).apply({"params": calibrated}, jnp.asarray(pixels.permute(0, 2, 3, 1).numpy()))
    close(ours, theirs(pixels).flatten(2).transpose(1, 2), 1e-4)


def test_bias_overlay_of_gptj_has_the_public_size() -> None:
    abstract, _ = abstract_init(
        Decoder(DecoderConfig.gptj_6b()), jnp.zeros((1, 2), jnp.int32), method="everything"
    )
    assert sum(leaf.size for leaf in jax.tree.leaves(bias_leaves(abstract))) == 692_224
