"""Sizes of the data that a model decides."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

from mvader_jax.data.config import DataConfig
from mvader_jax.data.sources.encoded import EncodedShapes
from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig


def sized(data: DataConfig, model: ModelConfig) -> DataConfig:
    """`data` with the size of the pictures that the model draws. Raises UserError where it names another one."""
    if model.unet is None or model.vae is None:
        return data
    side = model.unet.sample_size * model.vae.multiple
    if data.image_size not in (side, DataConfig().image_size):
        raise UserError(
            f"data.image_size is {data.image_size}, but the model draws {side} pixels; leave it out"
        )
    return dataclasses.replace(data, image_size=side)


def encoded_parts(
    model: ModelConfig, data: DataConfig, parts: Collection[str], states: tuple[int, ...] | None = None
) -> EncodedShapes:
    """Shapes of what a picture's `parts` (of `encoded.PARTS`) are when they are computed before.

    data: `sized`; states: as the stage's objective gives them.
    """
    latents = features = None
    if "latents" in parts and model.vae is not None:
        side = data.image_size // model.vae.multiple
        latents = (2, side, side, model.vae.latent_channels)
    if "features" in parts and model.image_encoder is not None:
        features = (model.image_encoder.num_tokens, model.image_encoder.token_width)
    return EncodedShapes(latents, features, states if "states" in parts else None)
