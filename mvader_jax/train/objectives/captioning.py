"""Autoregressive captioning (MAGMA section 3; with `images` off, plain language modelling)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from mvader_jax.condition import PromptBatch
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.s_magma import logits, s_magma
from mvader_jax.train.config import Stage
from mvader_jax.train.objectives.base import LossFn, Metrics, mean_metric


def captioning(model: ModelConfig, stage: Stage, null_prompt: PromptBatch | None = None) -> LossFn:
    """Batch: prompt, a PromptBatch of [image,] caption and EOS; labels int32 [B, S], negative where
    nothing is to be predicted (the image, and every EOS but the first)."""
    del null_prompt
    dtype = jnp.dtype(stage.dtype)

    def loss_fn(
        components: Mapping[str, Any], batch: Mapping[str, Any], key: jax.Array, groups: int
    ) -> tuple[jax.Array, Metrics]:
        del groups
        config = model.s_magma
        condition = s_magma(
            config, components, batch["prompt"], dtype=dtype, dropout_key=key, remat=stage.remat
        )
        # Position i predicts token i + 1.
        predicted = logits(config, components, condition, dtype=dtype)[:, :-1]
        labels = batch["labels"][:, 1:]
        known = labels >= 0
        losses = optax.softmax_cross_entropy_with_integer_labels(predicted, jnp.maximum(labels, 0))
        right = jnp.argmax(predicted, axis=-1) == labels
        count = jnp.maximum(jnp.sum(known), 1)
        return jnp.sum(losses * known) / count, {
            "token_accuracy": mean_metric(right, known),
            "tokens": mean_metric(jnp.sum(known, axis=1)),
        }

    return loss_fn
