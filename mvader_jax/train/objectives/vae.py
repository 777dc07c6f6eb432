"""The autoencoder's objective: absolute and squared error, and a small Kullback-Leibler term.

Latent diffusion's autoencoder (Rombach et al. 2022, appendix G) without its perceptual and
adversarial terms, which need networks of their own. The squared error is what gets small objects
started: under the absolute error alone the median colour, the background, is a trap.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mvader_jax.condition import PromptBatch
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.vae import VAE
from mvader_jax.train.config import Stage
from mvader_jax.train.objectives.base import LossFn, Metrics, mean_metric, unit_pixels


def vae(model: ModelConfig, stage: Stage, null_prompt: PromptBatch | None = None) -> LossFn:
    """Batch: pixels uint8 [B, H, W, 3]. Component: vae."""
    del null_prompt
    assert model.vae is not None
    module = VAE(model.vae, dtype=jnp.dtype(stage.dtype))

    def loss_fn(
        components: Mapping[str, Any], batch: Mapping[str, Any], key: jax.Array, groups: int
    ) -> tuple[jax.Array, Metrics]:
        del groups
        params = {"params": components["vae"]}
        pixels = unit_pixels(batch["pixels"])
        mean, logvar = module.apply(params, pixels, method="encode")
        mean, logvar = mean.astype(jnp.float32), logvar.astype(jnp.float32)
        latents = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
        decoded = module.apply(params, latents, method="decode").astype(jnp.float32)
        difference = decoded - pixels
        error = jnp.mean(jnp.abs(difference), axis=(1, 2, 3))
        squared = jnp.mean(jnp.square(difference), axis=(1, 2, 3))
        divergence = 0.5 * jnp.sum(mean**2 + jnp.exp(logvar) - 1.0 - logvar, axis=(1, 2, 3))
        loss = jnp.mean(error) + 4.0 * jnp.mean(squared) + stage.kl_weight * jnp.mean(divergence)
        return loss, {
            "absolute_error": mean_metric(error),
            "squared_error": mean_metric(squared),
            "kl": mean_metric(divergence),
            "latent_variance": mean_metric(jnp.mean(mean**2, axis=(1, 2, 3))),
        }

    return loss_fn
