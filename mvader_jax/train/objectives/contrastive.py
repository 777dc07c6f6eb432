"""The semantic-search objective that trains biases alone (SGPT: Muennighoff 2022; BitFit)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Float32

from mvader_jax.bounds import PositiveFloat, PositiveInt
from mvader_jax.condition import PADDING, Array, Condition
from mvader_jax.data.batches import (
    Batch,
    BatchFn,
    Feed,
    Shape,
    abstract_encoder_input,
    read,
)
from mvader_jax.data.config import DataConfig
from mvader_jax.data.decode import encoder_pixels
from mvader_jax.data.order import Damage, Dataset
from mvader_jax.data.prompts import abstract_rows, caption_length, caption_rows, image_rows
from mvader_jax.data.scenes.world import Split
from mvader_jax.data.sources.encoded import EncodedShapes
from mvader_jax.data.sources.open import open_pairs
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.remat import Remat
from mvader_jax.models.s_magma import s_magma
from mvader_jax.prompt.tokenizer import Tokenizer, TokenizerConfig
from mvader_jax.train.objectives.base import (
    Components,
    LossFn,
    Metrics,
    Objective,
    mean_metric,
    needed_tokenizer,
    picture_parts,
    without_pictures,
)


@dataclasses.dataclass(frozen=True)
class Contrastive(Objective):
    """A text is told from the other texts of its batch, by biases alone (SGPT: Muennighoff 2022)."""

    #: The queries are pictures, not texts (CLIP: Radford et al. 2021).
    picture_queries: bool = False
    #: Cosine similarities are multiplied by it before the softmax.
    similarity_scale: PositiveFloat = 20.0
    #: Tokens of a text; longer ones are cut.
    caption_length: PositiveInt = 77

    #: It compares all rows of a batch.
    accumulates: ClassVar[bool] = False
    takes_buckets: ClassVar[bool] = False
    takes_precomputed: ClassVar[bool] = False

    def components(
        self, model: ModelConfig, known: Collection[str] = (), drawn: bool = False
    ) -> tuple[str, ...]:
        return ("decoder", *(picture_parts(model, ()) if self.picture_queries else ("biases",)))

    def stage_model(self, model: ModelConfig) -> ModelConfig:
        return model if self.picture_queries else without_pictures(model)

    def sources(self, data: DataConfig, split: Split) -> Sequence[Dataset]:
        return open_pairs(data, split, pictures=self.picture_queries)

    def batches(
        self, feed: Feed, data: DataConfig, shape: Shape, tokenizer: Tokenizer | None, split: Split
    ) -> BatchFn:
        """{"query", "positive", "negative"}: PromptBatches of captions, row i of each from one record; or the
        query is the record's picture."""
        tokens = needed_tokenizer(self, tokenizer)
        names = ("positive", "negative") if self.picture_queries else ("query", "positive", "negative")

        def make(step: int) -> tuple[Batch, list[Damage]]:
            records, damage = read(feed, shape, step, data)
            texts = {name: [r[name] for r in records] for name in names}
            batch: Batch = {n: caption_rows(tokens, texts[n], self.caption_length) for n in names}
            if self.picture_queries:
                pixels = encoder_pixels([r["image"] for r in records], shape.encoder_size)
                batch["query"] = image_rows(pixels, shape.image_tokens)
            return batch, damage

        return make

    def abstract_batch(
        self, data: DataConfig, shape: Shape, tokenizer: TokenizerConfig | None, encoded: EncodedShapes
    ) -> Batch:
        texts = abstract_rows(shape.rows, caption_length(tokenizer, self.caption_length))
        query = texts
        if self.picture_queries:
            pixels = abstract_encoder_input(shape.rows, shape, encoded)
            query = abstract_rows(shape.rows, shape.image_tokens, pixels=pixels)
        return {"query": query, "positive": texts, "negative": texts}

    def loss(self, model: ModelConfig, *, dtype: str = "float32", remat: Remat = "none") -> LossFn:
        """A query's candidates are every positive and every hard negative of the whole batch, gathered
        across the mesh: cross-entropy over `similarity_scale` x cosine."""

        def loss_fn(
            components: Components, batch: Batch, key: jax.Array, groups: int
        ) -> tuple[jax.Array, Metrics]:
            del key, groups

            def embed(name: str) -> jax.Array:
                condition = s_magma(
                    model.s_magma, components, batch[name], dtype=jnp.dtype(dtype), remat=remat
                )
                pooled = weighted_mean(condition)
                return pooled / jnp.linalg.norm(pooled, axis=1, keepdims=True)

            queries = embed("query")
            candidates = jnp.concatenate([embed("positive"), embed("negative")])
            scores = self.similarity_scale * queries @ candidates.T
            answers = jnp.arange(queries.shape[0])
            losses = optax.softmax_cross_entropy_with_integer_labels(scores, answers)
            return jnp.mean(losses), {"accuracy": mean_metric(jnp.argmax(scores, axis=1) == answers)}

        return loss_fn

    def encoder_input(self, batch: Batch) -> Float[Array, "N h w 3"]:
        pixels: Array = batch["query"].pixels[:, 0]
        return pixels


def weighted_mean(condition: Condition) -> Float32[jax.Array, "B D"]:
    """Position-weighted mean pooling, sum(i m h) / sum(i m) with i from 1 (SGPT section 4)."""
    present = condition.log_weights > PADDING / 2
    weight = jnp.where(present, jnp.arange(1, present.shape[1] + 1), 0).astype(jnp.float32)
    pooled = jnp.einsum("bs,bsd->bd", weight, condition.hidden.astype(jnp.float32))
    return pooled / jnp.sum(weight, axis=1, keepdims=True)
