"""PromptBatch -> Condition, by the embedder that the model names."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp

from mvader_jax.condition import Condition, PromptBatch
from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embedders.base import Components, Dtype, Embedder
from mvader_jax.models.embedders.clip_text import ClipText
from mvader_jax.models.embedders.s_magma import SMagma
from mvader_jax.models.remat import Remat

#: By the name that stands in `ModelConfig.embedder`.
EMBEDDERS: dict[str, type[Embedder]] = {
    "s_magma": SMagma,
    "clip_text": ClipText,
}


def embedder_kind(name: str) -> type[Embedder]:
    """Raises UserError for a name that is not registered."""
    if name not in EMBEDDERS:
        raise UserError(f"unknown embedder {name!r}; accepted: {', '.join(EMBEDDERS)}")
    return EMBEDDERS[name]


def embedder_of(model: ModelConfig) -> Embedder:
    """The model's embedder. Raises UserError for an unknown one, and where the model lacks what it is made of."""
    return embedder_kind(model.embedder).of(model)


def find_embedder(model: ModelConfig) -> Embedder | None:
    """`embedder_of`; None where the model lacks what it is made of, as a bundle of a VAE alone does."""
    kind = embedder_kind(model.embedder)
    return kind.of(model) if getattr(model, kind.reader) is not None else None


def embed(
    model: ModelConfig,
    components: Components,
    batch: PromptBatch,
    *,
    dtype: Dtype = jnp.float32,
    remat: Remat = "none",
) -> Condition:
    """`embed_rows` of one batch of prompts."""
    return embed_rows(model, components, (batch,), dtype=dtype, remat=remat)[0]


def embed_rows(
    model: ModelConfig,
    components: Components,
    batches: Sequence[PromptBatch],
    *,
    dtype: Dtype = jnp.float32,
    remat: Remat = "none",
) -> list[Condition]:
    """Hidden states and log weights of batches of prompts: see `Embedder.embed_rows`.

    The decoder walks its layers once with all of them, so that a mesh gathers its parameters once.
    """
    return embedder_of(model).embed_rows(components, batches, dtype=dtype, remat=remat)
