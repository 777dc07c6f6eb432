"""A toy objective, as CONTRIBUTING says: this file, and a line that registers it.

The vae learns to tell a picture's mean colour in its latents' mean.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from mvader_jax.bounds import NonNegativeFloat
from mvader_jax.data.batches import Batch, BatchFn, Feed, Shape, abstract_pixels, pixel_batch
from mvader_jax.data.config import DataConfig
from mvader_jax.data.order import Damage
from mvader_jax.data.scenes.world import Split
from mvader_jax.data.sources.encoded import EncodedShapes
from mvader_jax.images.pixels import to_float
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.remat import Remat
from mvader_jax.models.vae import VAE
from mvader_jax.prompt.tokenizer import Tokenizer, TokenizerConfig
from mvader_jax.train.objectives.base import LossFn, Metrics, Objective, mean_metric


@dataclasses.dataclass(frozen=True)
class Toy(Objective):
    """power: the error's exponent."""

    power: NonNegativeFloat = 2.0

    reads_text: ClassVar[bool] = False
    takes_precomputed: ClassVar[bool] = False

    def components(
        self, model: ModelConfig, known: Collection[str] = (), drawn: bool = False
    ) -> tuple[str, ...]:
        return ("vae",)

    def batches(
        self, feed: Feed, data: DataConfig, shape: Shape, tokenizer: Tokenizer | None, split: Split
    ) -> BatchFn:
        pixels = pixel_batch(feed, shape, data)

        def make(step: int) -> tuple[Batch, list[Damage]]:
            batch, damage = pixels(step)
            return {**batch, "mean": batch["pixels"].mean((1, 2, 3), dtype="float32")}, damage

        return make

    def abstract_batch(
        self, data: DataConfig, shape: Shape, tokenizer: TokenizerConfig | None, encoded: EncodedShapes
    ) -> Batch:
        return {
            "pixels": abstract_pixels(shape.rows, data.image_size),
            "mean": jax.ShapeDtypeStruct((shape.rows,), jnp.float32),
        }

    def loss(self, model: ModelConfig, *, dtype: str = "float32", remat: Remat = "none") -> LossFn:
        assert model.vae is not None
        module = VAE(model.vae, dtype=jnp.dtype(dtype))

        def loss_fn(
            components: Mapping[str, Any], batch: Mapping[str, Any], key: jax.Array, groups: int
        ) -> tuple[jax.Array, Metrics]:
            params = {"params": components["vae"]}
            mean, _ = module.apply(params, to_float(batch["pixels"]), method="encode")
            error = jnp.abs(mean.mean((1, 2, 3)) - batch["mean"] / 255.0) ** self.power
            return jnp.mean(error), {"error": mean_metric(error)}

        return loss_fn
