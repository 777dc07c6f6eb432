"""The autoencoder's objective: absolute and squared error, and a small Kullback-Leibler term.

Latent diffusion's autoencoder (Rombach et al. 2022, appendix G) without its perceptual and
adversarial terms, which need networks of their own. The squared error is what gets small objects
started: under the absolute error alone the median colour, the background, is a trap.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Collection, Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8

from mvader_jax.bounds import NonNegativeFloat
from mvader_jax.data.batches import (
    Batch,
    BatchFn,
    Feed,
    Shape,
    abstract_pixels,
    pixel_batch,
)
from mvader_jax.data.config import DataConfig
from mvader_jax.data.scenes.world import Split
from mvader_jax.data.sources.encoded import EncodedShapes
from mvader_jax.images.pixels import to_float
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.remat import Remat
from mvader_jax.models.vae import VAE, VAEConfig
from mvader_jax.prompt.tokenizer import Tokenizer, TokenizerConfig
from mvader_jax.storage.bundle import Bundle
from mvader_jax.train.objectives.base import Components, LossFn, Metrics, Objective, mean_metric
from mvader_jax.train.samples import Drawing, Reconstructions


@dataclasses.dataclass(frozen=True)
class Autoencoding(Objective):
    """The autoencoder gives its pictures back."""

    #: Weight of the Kullback-Leibler term, beside the errors of a pixel.
    kl_weight: NonNegativeFloat = 1e-6

    reads_text: ClassVar[bool] = False
    takes_precomputed: ClassVar[bool] = False
    rematerialises: ClassVar[bool] = False

    def components(
        self, model: ModelConfig, known: Collection[str] = (), drawn: bool = False
    ) -> tuple[str, ...]:
        return ("vae",)

    def batches(
        self, feed: Feed, data: DataConfig, shape: Shape, tokenizer: Tokenizer | None, split: Split
    ) -> BatchFn:
        """{"pixels": uint8 [B, H, W, 3]}."""
        return pixel_batch(feed, shape, data)

    def abstract_batch(
        self, data: DataConfig, shape: Shape, tokenizer: TokenizerConfig | None, encoded: EncodedShapes
    ) -> Batch:
        return {"pixels": abstract_pixels(shape.rows, data.image_size)}

    def loss(self, model: ModelConfig, *, dtype: str = "float32", remat: Remat = "none") -> LossFn:
        module = VAE(model.require(VAEConfig), dtype=jnp.dtype(dtype))

        def loss_fn(
            components: Components, batch: Batch, key: jax.Array, groups: int
        ) -> tuple[jax.Array, Metrics]:
            del groups
            params = {"params": components["vae"]}
            pixels = to_float(batch["pixels"])
            mean, logvar = module.apply(params, pixels, method="encode")
            mean, logvar = mean.astype(jnp.float32), logvar.astype(jnp.float32)
            latents = mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape)
            decoded = module.apply(params, latents, method="decode").astype(jnp.float32)
            difference = decoded - pixels
            error = jnp.mean(jnp.abs(difference), axis=(1, 2, 3))
            squared = jnp.mean(jnp.square(difference), axis=(1, 2, 3))
            divergence = 0.5 * jnp.sum(mean**2 + jnp.exp(logvar) - 1.0 - logvar, axis=(1, 2, 3))
            loss = jnp.mean(error) + 4.0 * jnp.mean(squared) + self.kl_weight * jnp.mean(divergence)
            return loss, {
                "absolute_error": mean_metric(error),
                "squared_error": mean_metric(squared),
                "kl": mean_metric(divergence),
                "latent_variance": mean_metric(jnp.mean(mean**2, axis=(1, 2, 3))),
            }

        return loss_fn

    def drawing(self) -> Drawing:
        return Reconstructions()

    def finished(self, bundle: Bundle, batches: Iterator[Batch]) -> Bundle:
        """With `vae.scaling_factor` set so that latents have unit variance (Rombach et al. 2022, G)."""
        config = bundle.model.require(VAEConfig)
        encode = jax.jit(functools.partial(encode_posterior, config))
        squares = [
            float(jnp.mean(jnp.square(encode(bundle.components["vae"], batch["pixels"]))))
            for batch in batches
        ]
        scale = round(1.0 / float(np.sqrt(np.mean(squares))), 5)
        measured = dataclasses.replace(config, scaling_factor=scale)
        return dataclasses.replace(bundle, model=dataclasses.replace(bundle.model, vae=measured))


def encode_posterior(
    config: VAEConfig, params: Any, pixels: UInt8[jax.Array, "B H W 3"]
) -> Float[jax.Array, "B h w C"]:
    """The mean of the posterior, unscaled."""
    mean: jax.Array
    mean, _ = VAE(config).apply({"params": params}, to_float(pixels), method="encode")
    return mean
