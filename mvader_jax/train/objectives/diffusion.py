"""Eq. 1 of the paper: predict the noise, conditioned on H(image), H(caption) or H(interleaved prompt).

The frozen decoder runs on the rows of each kind at their own length (an image prompt is 144 tokens, a
caption 10 to 77: padding them to one length would cost more than the UNet), and all are joined in one
Condition. `data/rows.py` lays the rows out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mvader_jax.condition import Array, Condition, PromptBatch, pad
from mvader_jax.data.rows import row_layout
from mvader_jax.diffusion.loss import diffusion_loss
from mvader_jax.diffusion.schedule import Schedule
from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embed import embed_rows
from mvader_jax.models.unet import UNet
from mvader_jax.models.vae import VAE
from mvader_jax.train.config import Stage
from mvader_jax.train.objectives.base import LossFn, Metrics, mean_metric, unit_pixels


def diffusion(model: ModelConfig, stage: Stage, null_prompt: PromptBatch | None = None) -> LossFn:
    """Batch: pixels uint8 [B, H, W, 3] or latent_mean and latent_logvar [B, h, w, C]; image_prompt,
    text_prompt: PromptBatches; use_image: bool [B].

    With a share p_interleaved also interleaved_prompt, use_interleaved: bool [B], and beside latents
    interleaved_pixels: the targets of these rows, which nobody has encoded.
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
        use_image = batch["use_image"]
        layout = row_layout(use_image.shape[0] // groups, stage.data.p_image, stage.data.p_interleaved)
        start = layout.interleaved_start

        def posterior(pixels: jax.Array) -> jax.Array:
            """float32 [2, N, h, w, C]: mean and log variance."""
            moments = vae.apply({"params": components["vae"]}, unit_pixels(pixels), method="encode")
            return jnp.stack(moments).astype(jnp.float32)

        if "pixels" in batch:
            mean, logvar = posterior(batch["pixels"])
        else:
            moments = jnp.stack([batch["latent_mean"], batch["latent_logvar"]]).astype(jnp.float32)
            if "interleaved_pixels" in batch:
                drawn = jax.vmap(lambda x: spread_rows(x, groups, layout.samples, start))(
                    posterior(batch["interleaved_pixels"])
                )
                moments = jnp.where(batch["use_interleaved"][:, None, None, None], drawn, moments)
            mean, logvar = moments
        latents = scale * mean
        if stage.posterior == "sample":
            latents += scale * jnp.exp(0.5 * logvar) * jax.random.normal(posterior_key, mean.shape)

        prompts = [batch["image_prompt"], batch["text_prompt"]]
        interleaved = layout.interleaved_rows > 0
        prompts += [batch["interleaved_prompt"]] if interleaved else []
        prompts += [null_prompt] if null_prompt is not None else []
        image, text, *rest = embed_rows(model, components, prompts, dtype=dtype, remat=stage.remat)
        kinds: list[RowsOfAKind] = [(image, 0, use_image)]
        use_text = ~use_image
        if interleaved:
            kinds.append((rest.pop(0), start, batch["use_interleaved"]))
            use_text &= ~batch["use_interleaved"]
        condition = join_kinds([(text, layout.text_start, use_text), *kinds], groups)
        dropped = jax.random.bernoulli(drop_key, stage.dropout, use_image.shape)
        if not rest:
            rest = [Condition(jnp.zeros_like(condition.hidden[:1, :1]), jnp.zeros((1, 1), jnp.float32))]
        condition = replace_rows(condition, rest[0], dropped)

        def predict(noisy: jax.Array, timesteps: jax.Array) -> jax.Array:
            return unet.apply({"params": components["unet"]}, noisy, timesteps, condition)

        losses, timesteps = diffusion_loss(predict, latents, noise_key, schedule, stage.timestep_bias)
        metrics = {
            "loss_image": mean_metric(losses, use_image & ~dropped),
            "loss_text": mean_metric(losses, use_text & ~dropped),
            "loss_null": mean_metric(losses, dropped),
            "image_rows": mean_metric(use_image),
        }
        if interleaved:
            used = batch["use_interleaved"]
            metrics["loss_interleaved"] = mean_metric(losses, used & ~dropped)
            metrics["interleaved_rows"] = mean_metric(used)
        quarter = timesteps * 4 // schedule.config.num_train_steps
        for index in range(4):
            metrics[f"loss_quarter{index + 1}"] = mean_metric(losses, quarter == index)
        return jnp.mean(losses), metrics

    return loss_fn


#: (their Condition [groups*k, S, D], their first sample in a group, bool [B] of the samples that use them).
RowsOfAKind = tuple[Condition, int, jax.Array]


def join_kinds(kinds: Sequence[RowsOfAKind], groups: int) -> Condition:
    """One Condition of B samples out of rows of several kinds, as `data/rows.py` lays them out.

    Every sample uses rows of exactly one kind. Groups follow the batch's shards, so joining moves nothing
    between devices.
    """
    length = max(condition.hidden.shape[1] for condition, _, _ in kinds)
    samples = kinds[0][2].shape[0] // groups
    hidden: Array | None = None
    weights: Array | None = None
    for condition, start, used in kinds:
        rows = pad(condition, length)
        states = spread_rows(rows.hidden, groups, samples, start)
        logs = spread_rows(rows.log_weights, groups, samples, start)
        hidden = states if hidden is None else jnp.where(used[:, None, None], states, hidden)
        weights = logs if weights is None else jnp.where(used[:, None], logs, weights)
    assert hidden is not None and weights is not None
    return Condition(hidden, weights)


def join_rows(image: Condition, text: Condition, use_image: jax.Array, groups: int) -> Condition:
    """`join_kinds` of image rows, the first of each group, and caption rows, its last."""
    samples = use_image.shape[0] // groups
    first = samples - text.hidden.shape[0] // groups
    return join_kinds([(text, first, ~use_image), (image, 0, use_image)], groups)


def spread_rows(rows: Array, groups: int, samples: int, start: int) -> jax.Array:
    """[groups*k, ...] -> [groups*samples, ...]: the k rows of a group at its samples `start` and on, zeros
    elsewhere."""
    count = rows.shape[0] // groups
    grouped = rows.reshape(groups, count, *rows.shape[1:])
    gaps = [(0, 0), (start, samples - start - count)] + [(0, 0)] * (rows.ndim - 1)
    return jnp.pad(grouped, gaps).reshape(groups * samples, *rows.shape[1:])


def replace_rows(condition: Condition, null: Condition, dropped: jax.Array) -> Condition:
    """`condition` with the one row of `null` where `dropped` [B] is set."""
    null = pad(null, condition.hidden.shape[1])
    return Condition(
        jnp.where(dropped[:, None, None], null.hidden.astype(condition.hidden.dtype), condition.hidden),
        jnp.where(dropped[:, None], null.log_weights, condition.log_weights),
    )
