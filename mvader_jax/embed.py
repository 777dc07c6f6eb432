"""The one choice between embedders: PromptBatch -> Condition, whichever the model names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from mvader_jax.condition import Condition, PromptBatch
from mvader_jax.config import ModelConfig
from mvader_jax.errors import UserError
from mvader_jax.models.clip_text import clip_text
from mvader_jax.models.s_magma import s_magma


def embed(
    model: ModelConfig, components: Mapping[str, Any], batch: PromptBatch, *, dtype: jnp.dtype = jnp.float32
) -> Condition:
    """Hidden states and log weights of a batch of prompts, by the model's own embedder.

    Raises UserError where the components lack what the embedder needs.
    """
    if model.embedder == "clip_text":
        if model.text_encoder is None:
            raise UserError("this bundle names the clip_text embedder but has no text_encoder")
        return clip_text(model.text_encoder, components, batch, dtype=dtype)
    return s_magma(model.s_magma, components, batch, dtype=dtype)
