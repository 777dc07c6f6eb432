"""Autoregressive captioning (MAGMA section 3; with `images` off, plain language modelling)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from mvader_jax.bounds import PositiveInt
from mvader_jax.condition import Array
from mvader_jax.data.batches import (
    Batch,
    BatchFn,
    Feed,
    Shape,
    abstract_encoder_input,
    encoder_input,
    read,
)
from mvader_jax.data.config import DataConfig
from mvader_jax.data.order import Damage
from mvader_jax.data.prompts import abstract_rows, captioning_rows
from mvader_jax.data.scenes.world import Split
from mvader_jax.data.sources.encoded import EncodedShapes, encoded_shapes
from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.remat import Remat
from mvader_jax.models.s_magma import logits, s_magma
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
class Captioning(Objective):
    """The decoder predicts captions, token by token (MAGMA section 3)."""

    #: The image stands before the caption; False trains the bare language model.
    images: bool = True
    #: Tokens of a caption; longer ones are cut.
    caption_length: PositiveInt = 77

    def check(self, data: DataConfig) -> None:
        super().check(data)
        if not self.images and (data.flip or data.crop == "random" or data.aspect_buckets):
            raise UserError(
                "flip, crop='random' and aspect_buckets are of pictures, and images=False reads captions alone; "
                "leave them out"
            )

    def components(
        self, model: ModelConfig, known: Collection[str] = (), drawn: bool = False
    ) -> tuple[str, ...]:
        return ("decoder", *picture_parts(model, known)) if self.images else ("decoder",)

    def stage_model(self, model: ModelConfig) -> ModelConfig:
        return model if self.images else without_pictures(model)

    def batches(
        self, feed: Feed, data: DataConfig, shape: Shape, tokenizer: Tokenizer | None, split: Split
    ) -> BatchFn:
        """{"prompt": PromptBatch of [image] and caption, "labels": int32 [B, S], IGNORED where not learnt}."""
        tokens = needed_tokenizer(self, tokenizer)
        needs = ("features",) if self.images else ()
        features = encoded_shapes(data).features

        def make(step: int) -> tuple[Batch, list[Damage]]:
            records, damage = read(feed, shape, step, data, needs=needs)
            pixels = encoder_input(records, shape, features) if self.images else None
            captions = [r["caption"] for r in records]
            prompt, labels = captioning_rows(
                tokens, captions, self.caption_length, pixels, shape.image_tokens
            )
            return {"prompt": prompt, "labels": labels}, damage

        return make

    def abstract_batch(
        self, data: DataConfig, shape: Shape, tokenizer: TokenizerConfig | None, encoded: EncodedShapes
    ) -> Batch:
        length = self.caption_length + (shape.image_tokens if self.images else 0)
        pixels = abstract_encoder_input(shape.rows, shape, encoded) if self.images else None
        return {
            "prompt": abstract_rows(shape.rows, length, pixels=pixels),
            "labels": jax.ShapeDtypeStruct((shape.rows, length), jnp.int32),
        }

    def loss(self, model: ModelConfig, *, dtype: str = "float32", remat: Remat = "none") -> LossFn:
        """Position i predicts token i + 1; the loss is the mean over the tokens that are learnt."""
        computed = jnp.dtype(dtype)

        def loss_fn(
            components: Components, batch: Batch, key: jax.Array, groups: int
        ) -> tuple[jax.Array, Metrics]:
            del groups
            config = model.s_magma
            condition = s_magma(
                config, components, batch["prompt"], dtype=computed, dropout_key=key, remat=remat
            )
            predicted = logits(config, components, condition, dtype=computed)[:, :-1]
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

    def encoder_input(self, batch: Batch) -> Float[Array, "N h w 3"]:
        pixels: Array = batch["prompt"].pixels[:, 0]
        return pixels
