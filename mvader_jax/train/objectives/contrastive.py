"""The semantic-search objective that trains biases alone (SGPT: Muennighoff 2022; BitFit)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mvader_jax.condition import PADDING, Condition, PromptBatch
from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.s_magma import s_magma
from mvader_jax.train.config import Stage
from mvader_jax.train.objectives.base import LossFn, Metrics, mean_metric


def weighted_mean(condition: Condition) -> jax.Array:
    """Position-weighted mean pooling, sum(i m h) / sum(i m) with i from 1 (SGPT section 4). [B, D]."""
    present = condition.log_weights > PADDING / 2
    weight = jnp.where(present, jnp.arange(1, present.shape[1] + 1), 0).astype(jnp.float32)
    pooled = jnp.einsum("bs,bsd->bd", weight, condition.hidden.astype(jnp.float32))
    return pooled / jnp.sum(weight, axis=1, keepdims=True)


def contrastive(model: ModelConfig, stage: Stage, null_prompt: PromptBatch | None = None) -> LossFn:
    """Batch: query, positive and negative, PromptBatches of B rows each.

    A query's candidates are every positive and every hard negative of the whole batch, gathered
    across the mesh: cross-entropy over `similarity_scale` x cosine.
    """
    del null_prompt
    if stage.accumulate > 1:
        raise UserError(
            "the contrastive objective compares all rows of a batch; it cannot accumulate microbatches"
        )
    dtype = jnp.dtype(stage.dtype)

    def loss_fn(
        components: Mapping[str, Any], batch: Mapping[str, Any], key: jax.Array, groups: int
    ) -> tuple[jax.Array, Metrics]:
        del key, groups

        def embed(name: str) -> jax.Array:
            condition = s_magma(model.s_magma, components, batch[name], dtype=dtype, remat=stage.remat)
            pooled = weighted_mean(condition)
            return pooled / jnp.linalg.norm(pooled, axis=1, keepdims=True)

        queries = embed("query")
        candidates = jnp.concatenate([embed("positive"), embed("negative")])
        scores = stage.similarity_scale * queries @ candidates.T
        answers = jnp.arange(queries.shape[0])
        losses = optax.softmax_cross_entropy_with_integer_labels(scores, answers)
        return jnp.mean(losses), {"accuracy": mean_metric(jnp.argmax(scores, axis=1) == answers)}

    return loss_fn
