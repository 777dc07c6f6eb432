"""The one choice between embedders: PromptBatch -> Condition, whichever the model names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from mvader_jax.condition import Condition, PromptBatch
from mvader_jax.errors import UserError
from mvader_jax.models.clip_text import clip_text
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.remat import Remat
from mvader_jax.models.s_magma import s_magma_rows


def embed(
    model: ModelConfig,
    components: Mapping[str, Any],
    batch: PromptBatch,
    *,
    dtype: jnp.dtype = jnp.float32,
    remat: Remat = "none",
) -> Condition:
    """Hidden states and log weights of a batch of prompts, by the model's own embedder.

    remat: what of the decoder's layers is kept for a backward pass. Raises UserError where the
    components lack what the embedder needs.
    """
    return embed_rows(model, components, (batch,), dtype=dtype, remat=remat)[0]


def embed_rows(
    model: ModelConfig,
    components: Mapping[str, Any],
    batches: Sequence[PromptBatch],
    *,
    dtype: jnp.dtype = jnp.float32,
    remat: Remat = "none",
) -> list[Condition]:
    """`embed` of several batches, each padded to a length of its own.

    The decoder walks its layers once with all of them, so that a mesh gathers its parameters once.
    """
    if model.embedder == "clip_text":
        if model.text_encoder is None:
            raise UserError("this bundle names the clip_text embedder but has no text_encoder")
        return [clip_text(model.text_encoder, components, batch, dtype=dtype) for batch in batches]
    return s_magma_rows(model.s_magma, components, batches, dtype=dtype, remat=remat)
