"""CLIP's text tower as an embedder, as Stable Diffusion was trained with; texts alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from mvader_jax.condition import Condition, PromptBatch
from mvader_jax.models.clip_text import ClipText as Tower
from mvader_jax.models.clip_text import ClipTextConfig
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embedders.base import Components, Dtype, Embedder, needed
from mvader_jax.models.remat import Remat


@dataclasses.dataclass(frozen=True)
class ClipText(Embedder):
    """Stable Diffusion masks nothing: the tokenizer's padding counts as tokens, with log weight 0."""

    reader: ClassVar[str] = "text_encoder"
    chunks: ClassVar[bool] = True

    config: ClipTextConfig

    @classmethod
    def of(cls, model: ModelConfig) -> ClipText:
        return cls(model.require(ClipTextConfig))

    @property
    def components(self) -> tuple[str, ...]:
        return ("text_encoder",)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def max_positions(self) -> int:
        return self.config.max_positions

    @property
    def heads(self) -> tuple[int, int]:
        return self.config.num_layers, self.config.num_heads

    @property
    def width(self) -> int:
        return self.config.width

    def embed_rows(
        self,
        components: Components,
        batches: Sequence[PromptBatch],
        *,
        dtype: Dtype = jnp.float32,
        remat: Remat = "none",
    ) -> list[Condition]:
        tower, params = Tower(self.config, dtype), {"params": needed(components, "text_encoder")}

        def embed(batch: PromptBatch) -> Condition:
            ids, weights, factors = jax.tree.map(
                jnp.asarray, (batch.token_ids, batch.log_weights, batch.factors)
            )
            rows, length = ids.shape
            # A longer prompt is read chunk by chunk, and their states are joined, as the web interfaces of Stable
            # Diffusion do (AUTOMATIC1111, compel).
            chunks = -(-length // self.max_positions)
            if chunks > 1:
                ids, weights = (x.reshape(rows * chunks, self.max_positions) for x in (ids, weights))
                factors = None if factors is None else jnp.repeat(factors, chunks, axis=0)
            hidden = tower.apply(params, ids, weights, factors)
            return batch.condition(hidden.reshape(rows, length, self.width))

        return [embed(batch) for batch in batches]
