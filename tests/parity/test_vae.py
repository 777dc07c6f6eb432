"""The VAE against diffusers' PyTorch."""

from __future__ import annotations

import jax
import pytest
import torch
from diffusers import AutoencoderKL
from torch_trees import close, jitter, tree_of

from mvader_jax.models.vae import VAE, VAEConfig

CONFIGS = [
    VAEConfig(block_out_channels=(24, 40), layers_per_block=1, norm_groups=8),
    VAEConfig(block_out_channels=(16, 24, 40), layers_per_block=2, latent_channels=3, norm_groups=4),
]


@pytest.mark.parametrize("config", CONFIGS, ids=["two-levels", "three-levels"])
def test_encode_and_decode(config: VAEConfig) -> None:
    torch.manual_seed(0)
    levels = len(config.block_out_channels)
    theirs = jitter(
        AutoencoderKL(
            block_out_channels=config.block_out_channels,
            down_block_types=("DownEncoderBlock2D",) * levels,
            up_block_types=("UpDecoderBlock2D",) * levels,
            layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels,
            norm_num_groups=config.norm_groups,
        )
    )
    params = {"params": tree_of(theirs.state_dict(), lambda name: name.replace("to_out.0", "to_out_0"))}
    images = torch.randn(2, 3, 24, 40)
    mean, logvar = VAE(config).apply(params, images.permute(0, 2, 3, 1).numpy(), method="encode")
    posterior = theirs.encode(images).latent_dist
    close(mean, posterior.mean.permute(0, 2, 3, 1), 1e-4)
    close(logvar, posterior.logvar.permute(0, 2, 3, 1), 1e-4)
    latents = torch.randn(2, config.latent_channels, 6, 10)
    ours = jax.jit(lambda p, x: VAE(config).apply(p, x, method="decode"))(
        params, latents.permute(0, 2, 3, 1).numpy()
    )
    close(ours, theirs.decode(latents).sample.permute(0, 2, 3, 1), 1e-4)
