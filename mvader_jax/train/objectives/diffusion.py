"""Eq. 1 of the paper: predict the noise, conditioned on H(image), H(caption) or H(interleaved prompt)."""

from __future__ import annotations

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from mvader_jax.bounds import NonNegativeFloat, Share
from mvader_jax.condition import PromptBatch, where
from mvader_jax.data.batches import Batch
from mvader_jax.data.config import DataConfig
from mvader_jax.data.prompts import caption_length
from mvader_jax.diffusion.loss import diffusion_loss
from mvader_jax.diffusion.schedule import Schedule, ScheduleConfig
from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embed import embedder_of
from mvader_jax.models.remat import Remat
from mvader_jax.models.unet import UNet, UNetConfig
from mvader_jax.train.objectives.base import Components, LossFn, Metrics, mean_metric
from mvader_jax.train.objectives.denoising import Denoising, losses_by_prompt, losses_by_timestep
from mvader_jax.train.samples import Drawing, Pictures


@dataclasses.dataclass(frozen=True)
class Diffusion(Denoising):
    """Noise prediction by the UNet, the embedder frozen or trained beside it (eq. 1 of the paper)."""

    #: Embedding dropout: the share of rows whose whole condition is replaced by the null condition (classifier-free
    #: guidance; table 2 of the paper).
    dropout: Share = 0.1
    #: What these rows see: the empty prompt, or zeros.
    null: Literal["empty", "zeros"] = "empty"
    #: DreamBooth's prior preservation (Ruiz et al. 2023, eq. 2): what the loss of a picture of the second data set and
    #: those after it, which show the class, counts beside one of the first, which shows the subject. None: all alike.
    prior_weight: NonNegativeFloat | None = None

    @property
    def tells_data_sets(self) -> bool:
        return self.prior_weight is not None

    def check(self, data: DataConfig) -> None:
        super().check(data)
        if self.prior_weight is None:
            return
        if self.p_interleaved:
            raise UserError(
                "objective.prior_weight is of pictures and captions; p_interleaved does not go with it"
            )
        if len(data.precomputed or getattr(data.source, "paths", ())) < 2:
            raise UserError(
                "objective.prior_weight needs two data sets, the subject's pictures and those of its class: "
                "data.source.paths=[SUBJECT, CLASS]"
            )

    def null_prompt(self, model: ModelConfig) -> PromptBatch | None:
        return None if self.null == "zeros" else super().null_prompt(model)

    def states(self, model: ModelConfig) -> tuple[int, ...]:
        if self.p_interleaved:
            raise UserError(
                "states are computed of pictures and captions alone: objective.p_interleaved goes without them"
            )
        embedder, null = embedder_of(model), self.null_prompt(model)
        images = embedder.image_encoder.num_tokens if embedder.image_encoder is not None else 0
        words = caption_length(model.tokenizer, self.caption_length)
        return images, words, 0 if null is None else null.token_ids.shape[1], embedder.width

    def loss(self, model: ModelConfig, *, dtype: str = "float32", remat: Remat = "none") -> LossFn:
        """The loss of a batch, by the embedder, the UNet, and the VAE where it holds pixels."""
        unet = UNet(model.require(UNetConfig), dtype=jnp.dtype(dtype), remat=remat)
        schedule = Schedule.create(model.require(ScheduleConfig))
        conditions_of = self.conditions_of(model, dtype, remat)
        latents_of = self.latents_of(model, dtype)

        def loss_fn(
            components: Components, batch: Batch, key: jax.Array, groups: int
        ) -> tuple[jax.Array, Metrics]:
            posterior_key, drop_key, noise_key = jax.random.split(key, 3)
            latents = latents_of(components, batch, posterior_key, groups)
            dropped = jax.random.bernoulli(drop_key, self.dropout, batch["use_image"].shape)
            condition, null = conditions_of(components, batch, groups)
            condition = where(dropped, null, condition)

            def predict(noisy: jax.Array, timesteps: jax.Array) -> jax.Array:
                return unet.apply({"params": components["unet"]}, noisy, timesteps, condition)

            losses, timesteps = diffusion_loss(predict, latents, noise_key, schedule, self.timestep_bias)
            metrics = {
                **losses_by_prompt(batch, losses, dropped),
                "loss_null": mean_metric(losses, dropped),
                **losses_by_timestep(losses, timesteps, schedule),
            }
            if self.prior_weight is None:
                return jnp.mean(losses), metrics
            prior = batch["data_set"] > 0
            metrics["loss_subject"], metrics["loss_prior"] = (
                mean_metric(losses, rows) for rows in (~prior & ~dropped, prior & ~dropped)
            )
            return jnp.mean(losses * jnp.where(prior, self.prior_weight, 1.0)), metrics

        return loss_fn

    def drawing(self) -> Drawing:
        return Pictures()
