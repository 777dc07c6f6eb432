"""The UNet and its blocks against diffusers' PyTorch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from torch_trees import close, jitter, tree_of

from mvader_jax.condition import PADDING, Condition
from mvader_jax.models.unet import UNet, UNetConfig
from mvader_jax.models.unet_blocks import ResnetBlock, TransformerBlock


def test_resnet_block() -> None:
    torch.manual_seed(1)
    theirs = jitter(ResnetBlock2D(in_channels=24, out_channels=40, temb_channels=56, groups=8, eps=1e-5))
    x, time = torch.randn(2, 24, 6, 10), torch.randn(2, 56)
    ours = ResnetBlock(40, 8, 1e-5).apply(
        {"params": tree_of(theirs.state_dict())}, x.permute(0, 2, 3, 1).numpy(), time.numpy()
    )
    close(ours, theirs(x, time).permute(0, 2, 3, 1), 2e-5)


def test_transformer_block() -> None:
    torch.manual_seed(2)
    theirs = jitter(BasicTransformerBlock(40, 5, 8, cross_attention_dim=28, activation_fn="geglu"))
    x, context = torch.randn(2, 21, 40), torch.randn(2, 9, 28)
    rename = lambda name: name.replace("ff.net.0.proj", "ff.net_0_proj").replace("ff.net.2", "ff.net_2")  # noqa: E731
    ours = TransformerBlock(5).apply(
        {"params": tree_of(theirs.state_dict(), rename)}, x.numpy(), context.numpy(), np.zeros((2, 9), np.float32), None
    )
    close(ours, theirs(x, encoder_hidden_states=context), 2e-5)


CONFIGS = [
    UNetConfig(4, 4, (24, 40), 1, (True, True), 28, 4, 8, 1e-5, 8),
    UNetConfig(4, 4, (16, 24, 40), 2, (True, False, True), 36, 2, 4, 1e-5, 8),
    UNetConfig(5, 3, (32, 48, 64, 64), 2, (True, True, True, False), 20, 8, 16, 1e-5, 16),
]


def torch_unet(config: UNetConfig) -> UNet2DConditionModel:
    down = tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in config.attention)
    up = tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(config.attention))
    return UNet2DConditionModel(
        sample_size=config.sample_size,
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        cross_attention_dim=config.cross_attention_dim,
        attention_head_dim=config.num_heads,
        norm_num_groups=config.norm_groups,
        norm_eps=config.norm_eps,
        down_block_types=down,
        up_block_types=up,
    )


def rename_unet(name: str) -> str:
    return name.replace("ff.net.0.proj", "ff.net_0_proj").replace("ff.net.2", "ff.net_2")


@pytest.mark.parametrize("config", CONFIGS, ids=["two-levels", "three-levels", "sd-shaped"])
def test_whole(config: UNetConfig) -> None:
    torch.manual_seed(3)
    theirs = jitter(torch_unet(config))
    # Not square: 16 high, 24 wide.
    x, t = torch.randn(2, config.in_channels, 16, 24), torch.tensor([981, 3])
    context = torch.randn(2, 11, config.cross_attention_dim)
    condition = Condition(jnp.asarray(context.numpy()), jnp.zeros((2, 11)))
    params = tree_of(theirs.state_dict(), rename_unet)
    ours = jax.jit(UNet(config).apply)({"params": params}, x.permute(0, 2, 3, 1).numpy(), t.numpy(), condition)
    close(ours, theirs(x, t, context).sample.permute(0, 2, 3, 1), 1e-4)


def test_padding_is_a_shorter_context() -> None:
    torch.manual_seed(4)
    config = CONFIGS[0]
    theirs = jitter(torch_unet(config))
    x, t, context = torch.randn(1, 4, 8, 8), torch.tensor([500]), torch.randn(1, 7, 28)
    weights = np.zeros((1, 7), np.float32)
    weights[:, 5:] = PADDING
    condition = Condition(jnp.asarray(context.numpy()), jnp.asarray(weights))
    params = tree_of(theirs.state_dict(), rename_unet)
    ours = UNet(config).apply({"params": params}, x.permute(0, 2, 3, 1).numpy(), t.numpy(), condition)
    close(ours, theirs(x, t, context[:, :5]).sample.permute(0, 2, 3, 1), 1e-4)
