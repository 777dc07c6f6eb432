"""The VAE and its blocks against diffusers' PyTorch."""

from __future__ import annotations

import jax
import pytest
import torch
from diffusers import AutoencoderKL
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import Downsample2D, ResnetBlock2D
from flax.traverse_util import flatten_dict
from torch_trees import close, jitter, nchw, nhwc, tree_of

from mvader_jax.models.unet_blocks import Downsample, ResnetBlock
from mvader_jax.models.vae import VAE, AttentionBlock, VAEConfig
from mvader_jax.parallel.sharding import abstract_init

BLOCK, WHOLE = 2e-5, 1e-4


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(11)


def test_attention_block() -> None:
    theirs = jitter(
        Attention(
            24,
            heads=1,
            dim_head=24,
            bias=True,
            norm_num_groups=6,
            eps=1e-6,
            residual_connection=True,
            upcast_softmax=True,
            _from_deprecated_attn_block=True,
        )
    )
    x = 2 + torch.randn(2, 24, 6, 4)
    ours = AttentionBlock(6).apply({"params": tree_of(theirs.state_dict())}, nhwc(x))
    close(nchw(ours), theirs(x), BLOCK)


def test_resnet_block_without_time() -> None:
    theirs = jitter(ResnetBlock2D(in_channels=12, out_channels=20, temb_channels=None, groups=4, eps=1e-6))
    x = torch.randn(2, 12, 6, 10)
    ours = ResnetBlock(20, 4, 1e-6).apply({"params": tree_of(theirs.state_dict())}, nhwc(x))
    close(nchw(ours), theirs(x, None), BLOCK)


def test_downsampling_pads_right_and_below() -> None:
    theirs = jitter(Downsample2D(12, use_conv=True, out_channels=12, padding=0, name="op"))
    params = tree_of({k: v for k, v in theirs.state_dict().items() if not k.startswith("Conv2d_0")})
    x = torch.randn(2, 12, 6, 10)
    close(nchw(Downsample(12, symmetric=False).apply({"params": params}, nhwc(x))), theirs(x), BLOCK)


CONFIGS = {
    "two-levels": VAEConfig(block_out_channels=(24, 40), layers_per_block=1, norm_groups=8),
    "three-levels": VAEConfig(
        block_out_channels=(16, 24, 40), layers_per_block=2, latent_channels=3, norm_groups=4
    ),
    "four-levels": VAEConfig(block_out_channels=(10, 20, 30, 30), layers_per_block=1, norm_groups=5),
}


def torch_vae(config: VAEConfig) -> AutoencoderKL:
    levels = len(config.block_out_channels)
    return AutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.in_channels,
        block_out_channels=config.block_out_channels,
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        layers_per_block=config.layers_per_block,
        latent_channels=config.latent_channels,
        norm_num_groups=config.norm_groups,
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_encode_and_decode(name: str) -> None:
    config = CONFIGS[name]
    theirs = jitter(torch_vae(config))
    params = tree_of(theirs.state_dict())
    images, latents = torch.randn(2, 3, 24, 40), torch.randn(2, config.latent_channels, 6, 10)
    expected, _ = abstract_init(VAE(config), nhwc(images), jax.random.key(0))
    assert {k: v.shape for k, v in flatten_dict(params).items()} == {
        k: v.shape for k, v in flatten_dict(expected).items()
    }

    @jax.jit
    def both(params: object, images: object, latents: object) -> object:
        variables = {"params": params}
        module = VAE(config)
        return *module.apply(variables, images, method="encode"), module.apply(
            variables, latents, method="decode"
        )

    mean, logvar, decoded = both(params, nhwc(images), nhwc(latents))
    with torch.no_grad():
        posterior = theirs.encode(images).latent_dist
        close(nchw(mean), posterior.mean, WHOLE)
        close(nchw(logvar), posterior.logvar, WHOLE)
        close(nchw(decoded), theirs.decode(latents).sample, WHOLE)
