"""Eq. 1 of the paper: predict the noise, conditioned on H(image) or H(caption).

The frozen decoder runs on image rows and caption rows each at its own length (an image prompt is
144 tokens, a caption 10 to 77: padding them to one length would cost more than the UNet), and the two
are joined in one Condition. `data/rows.py` lays the rows out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mvader_jax.condition import PADDING, Condition, PromptBatch, pad
from mvader_jax.config import ModelConfig
from mvader_jax.diffusion.objective import diffusion_loss
from mvader_jax.diffusion.schedule import Schedule
from mvader_jax.embed import embed_rows
from mvader_jax.errors import UserError
from mvader_jax.models.unet import UNet
from mvader_jax.models.vae import VAE
from mvader_jax.train.config import Stage
from mvader_jax.train.objectives.base import LossFn, Metrics, mean_metric


def diffusion(model: ModelConfig, stage: Stage, null_prompt: PromptBatch | None = None) -> LossFn:
    """Batch: pixels [B, H, W, 3] or latent_mean and latent_logvar [B, h, w, C]; image_prompt,
    text_prompt: PromptBatches; use_image: bool [B].

    null_prompt: one row, what dropped rows are conditioned on (None: zeros).
    Components: unet, the embedder's, and vae where the batch holds pixels.
    """
    if model.unet is None or model.vae is None or model.schedule is None:
        raise UserError("the diffusion objective needs unet, vae and schedule in the model's config")
    dtype = jnp.dtype(stage.dtype)
    unet, vae, schedule = (
        UNet(model.unet, dtype=dtype, remat=stage.remat),
        VAE(model.vae, dtype=dtype),
        Schedule.create(model.schedule),
    )
    scale = model.vae.scaling_factor

    def loss_fn(
        components: Mapping[str, Any], batch: Mapping[str, Any], key: jax.Array, groups: int
    ) -> tuple[jax.Array, Metrics]:
        posterior_key, drop_key, noise_key = jax.random.split(key, 3)
        if "pixels" in batch:
            mean, logvar = vae.apply({"params": components["vae"]}, batch["pixels"], method="encode")
        else:
            mean, logvar = batch["latent_mean"], batch["latent_logvar"]
        mean, logvar = mean.astype(jnp.float32), logvar.astype(jnp.float32)
        latents = scale * (mean + jnp.exp(0.5 * logvar) * jax.random.normal(posterior_key, mean.shape))

        use_image = batch["use_image"]
        prompts = [batch["image_prompt"], batch["text_prompt"]]
        prompts += [null_prompt] if null_prompt is not None else []
        image, text, *rest = embed_rows(model, components, prompts, dtype=dtype, remat=stage.remat)
        condition = join_rows(image, text, use_image, groups)
        dropped = jax.random.bernoulli(drop_key, stage.dropout, use_image.shape)
        if not rest:
            rest = [Condition(jnp.zeros_like(condition.hidden[:1, :1]), jnp.zeros((1, 1), jnp.float32))]
        condition = replace_rows(condition, rest[0], dropped)

        def predict(noisy: jax.Array, timesteps: jax.Array) -> jax.Array:
            return unet.apply({"params": components["unet"]}, noisy, timesteps, condition)

        losses, timesteps = diffusion_loss(predict, latents, noise_key, schedule)
        metrics = {
            "loss_image": mean_metric(losses, use_image & ~dropped),
            "loss_text": mean_metric(losses, ~use_image & ~dropped),
            "loss_null": mean_metric(losses, dropped),
            "image_rows": mean_metric(use_image),
        }
        quarter = timesteps * 4 // schedule.config.num_train_steps
        for index in range(4):
            metrics[f"loss_quarter{index + 1}"] = mean_metric(losses, quarter == index)
        return jnp.mean(losses), metrics

    return loss_fn


def join_rows(image: Condition, text: Condition, use_image: jax.Array, groups: int) -> Condition:
    """One Condition of B rows out of image rows and caption rows.

    image: [groups*ni, Si, D]; text: [groups*nt, St, D]; use_image: bool [B], B = groups*n <= groups*(ni+nt).
    Within a group of n samples the first ni have an image row, the last nt a caption row; where both
    exist `use_image` chooses. Groups follow the batch's shards, so joining moves nothing between devices.
    """
    length = max(image.hidden.shape[1], text.hidden.shape[1])
    n = use_image.shape[0] // groups

    def spread(condition: Condition, first: bool) -> tuple[jax.Array, jax.Array]:
        condition = pad(condition, length)
        rows = condition.hidden.shape[0] // groups
        gap = (0, n - rows) if first else (n - rows, 0)
        hidden = condition.hidden.reshape(groups, rows, length, -1)
        weights = condition.log_weights.reshape(groups, rows, length)
        hidden = jnp.pad(hidden, ((0, 0), gap, (0, 0), (0, 0)))
        weights = jnp.pad(weights, ((0, 0), gap, (0, 0)), constant_values=PADDING)
        return hidden.reshape(groups * n, length, -1), weights.reshape(groups * n, length)

    image_hidden, image_weights = spread(image, first=True)
    text_hidden, text_weights = spread(text, first=False)
    return Condition(
        jnp.where(use_image[:, None, None], image_hidden, text_hidden),
        jnp.where(use_image[:, None], image_weights, text_weights),
    )


def replace_rows(condition: Condition, null: Condition, dropped: jax.Array) -> Condition:
    """`condition` with the one row of `null` where `dropped` [B] is set."""
    null = pad(null, condition.hidden.shape[1])
    return Condition(
        jnp.where(dropped[:, None, None], null.hidden.astype(condition.hidden.dtype), condition.hidden),
        jnp.where(dropped[:, None], null.log_weights, condition.log_weights),
    )
