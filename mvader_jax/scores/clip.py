"""A CLIP in a bundle as what embeds pictures and texts into one space."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from mvader_jax.models.clip_text import ClipText, ClipTextConfig
from mvader_jax.models.clip_vision import ClipProjections, ClipProjectionsConfig, ClipVision, ClipVisionConfig
from mvader_jax.models.config import ModelConfig
from mvader_jax.prompt.tokenizer import TokenizerConfig

#: What a bundle must hold.
COMPONENTS = ("text_encoder", "vision_encoder", "clip_projections")


def at_end(
    states: Float[jax.Array, "N S D"], token_ids: Int[jax.Array, "N S"], eos_id: int
) -> Float[jax.Array, "N D"]:
    """The state of each text's first token of the end: it has seen the whole text and no padding."""
    place = jnp.argmax(token_ids == eos_id, axis=1)
    return jnp.take_along_axis(states, place[:, None, None], axis=1)[:, 0]


def embed_images(
    model: ModelConfig, params: Any, pixels: Float[jax.Array, "N H W 3"]
) -> Float[jax.Array, "N W"]:
    """Pixels, normalised as CLIP's, -> unit vectors."""
    states = ClipVision(model.require(ClipVisionConfig)).apply({"params": params["vision_encoder"]}, pixels)
    projections = ClipProjections(model.require(ClipProjectionsConfig))
    return projections.apply({"params": params["clip_projections"]}, states, method="of_images")


def embed_texts(model: ModelConfig, params: Any, token_ids: Int[jax.Array, "N S"]) -> Float[jax.Array, "N W"]:
    """Token ids, padded with the end's, -> unit vectors."""
    states = ClipText(model.require(ClipTextConfig)).apply({"params": params["text_encoder"]}, token_ids)
    ends = at_end(states, token_ids, model.require(TokenizerConfig).eos_id)
    projections = ClipProjections(model.require(ClipProjectionsConfig))
    return projections.apply({"params": params["clip_projections"]}, ends, method="of_texts")
