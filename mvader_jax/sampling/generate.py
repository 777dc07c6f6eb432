"""The walk from prompts to pictures as pure functions: embed, sample, decode."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from mvader_jax.condition import Array, Condition, PromptBatch
from mvader_jax.diffusion.guidance import guided
from mvader_jax.diffusion.noise import initial_noise, sampler_keys
from mvader_jax.diffusion.samplers import SAMPLERS
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embed import embed_rows
from mvader_jax.models.image_encoder import ImageEncoder
from mvader_jax.models.unet import UNet
from mvader_jax.models.vae import VAE
from mvader_jax.parallel.sharding import shapes_alone

Components = Mapping[str, Any]


@flax.struct.dataclass
class Init:
    """Pictures that sampling starts from in place of pure noise.

    pixels: float32 [B, J, H, W, 3] in [-1, 1]; shares: float32 [B, J], the part that each of a row's J
    pictures has in the latents it starts from. One picture of share 1 is img2img.
    """

    pixels: Array
    shares: Array


@flax.struct.dataclass
class Against:
    """Negative prompts of a strength of their own, between the null prompt and what they say (`guided`).

    prompts: their rows, or their Condition; rows: int32 [B], as `generate`'s; strength: float32 [B].
    """

    prompts: PromptBatch | Condition
    rows: Array | None
    strength: Array


@shapes_alone()
def generate(
    components: Components,
    prompts: PromptBatch,
    negatives: PromptBatch | Condition,
    rows: jax.Array | None,
    negative_rows: jax.Array | None,
    seeds: jax.Array,
    indices: jax.Array,
    guidance_scale: jax.Array,
    init: Init | None = None,
    against: Against | None = None,
    *,
    model: ModelConfig,
    steps: int,
    sampler: str,
    latent_size: tuple[int, int],
    dtype: str,
    start: int = 0,
    eta: float = 0.0,
) -> jax.Array:
    """The whole walk from prompts to pictures; pure, jitted once a shape.

    prompts: P rows, negatives: N rows (the null prompt where there is no negative one), or their Condition;
    each is embedded once. rows, negative_rows: int32 [B], which of them each image is made from; None is
    each from its own. seeds: uint32 [B], indices: int32 [B]: an image's noise depends on these two alone.
    guidance_scale: float32 [B]. init: where sampling starts, at step `start` of `steps`. against: negative
    prompts beside the null prompts that `negatives` then are. eta: see `Sampler`.
    The latents live inside the program alone, so that they are never held twice. Returns uint8 [B, H, W, 3].
    """
    assert model.unet is not None and model.schedule is not None
    compute = jnp.dtype(dtype)
    given = [prompts, negatives, *([] if against is None else [against.prompts])]
    batches = [one for one in given if isinstance(one, PromptBatch)]
    embedded = iter(embed_rows(model, components, batches, dtype=compute))
    conditions = [next(embedded) if isinstance(one, PromptBatch) else one for one in given]
    condition, null = _take(conditions[0], rows), _take(conditions[1], negative_rows)
    unet = UNet(model.unet, dtype=compute)
    eps = functools.partial(unet.apply, {"params": components["unet"]})
    if against is None:
        denoise = guided(eps, condition, null, guidance_scale)
    else:
        negative = _take(conditions[2], against.rows)
        strength = jnp.asarray(against.strength)
        denoise = guided(eps, condition, null, guidance_scale, negative, strength)
    method = SAMPLERS[sampler]
    levels = method.levels(model.schedule, steps)[start:]
    latents = initial_noise(seeds, indices, (*latent_size, model.unet.in_channels))
    if init is not None:
        clean = mixed_latents(components, init, model=model, dtype=dtype)
        latents = levels.noised(clean, latents)
    keys = sampler_keys(seeds, indices) if eta else None
    latents = method(denoise, latents, levels, eta=eta, keys=keys)
    return to_pixels(components, latents, model=model, dtype=dtype)


def _take(condition: Condition, rows: Array | None) -> Condition:
    if rows is None:
        return condition
    return jax.tree.map(lambda x: jnp.asarray(x)[rows], condition)


def mixed_latents(components: Components, init: Init, *, model: ModelConfig, dtype: str) -> jax.Array:
    """The convex combination of each row's pictures, in latents: float32 [B, h, w, C]."""
    batch, count = init.pixels.shape[:2]
    flat = jnp.asarray(init.pixels).reshape(batch * count, *init.pixels.shape[2:])
    latents = encode_images(components, flat, model=model, dtype=dtype)
    latents = latents.reshape(batch, count, *latents.shape[1:])
    return jnp.einsum("bj,bjhwc->bhwc", init.shares, latents)


def to_pixels(components: Components, latents: jax.Array, *, model: ModelConfig, dtype: str) -> jax.Array:
    """Latents [B, h, w, C] -> uint8 [B, H, W, 3]."""
    images = decode_latents(components, latents, model=model, dtype=dtype)
    return jnp.round((jnp.clip(images, -1.0, 1.0) + 1.0) * 127.5).astype(jnp.uint8)


def decode_latents(
    components: Components, latents: jax.Array, *, model: ModelConfig, dtype: str
) -> jax.Array:
    """Latents [B, h, w, C] -> images float32 [B, H, W, 3] in [-1, 1] (not clipped)."""
    assert model.vae is not None
    vae = VAE(model.vae, dtype=jnp.dtype(dtype))
    images = vae.apply({"params": components["vae"]}, latents / model.vae.scaling_factor, method="decode")
    return images.astype(jnp.float32)


def encode_images(components: Components, images: jax.Array, *, model: ModelConfig, dtype: str) -> jax.Array:
    """Images float32 [B, H, W, 3] in [-1, 1] -> latents float32 [B, h, w, C], the posterior's mean, scaled."""
    assert model.vae is not None
    vae = VAE(model.vae, dtype=jnp.dtype(dtype))
    mean, _ = vae.apply({"params": components["vae"]}, images, method="encode")
    return mean.astype(jnp.float32) * model.vae.scaling_factor


def image_features(components: Components, images: jax.Array, *, model: ModelConfig, dtype: str) -> jax.Array:
    """Preprocessed images float32 [B, H, W, 3] -> the encoder's features [B, T, C], as `PromptBatch.pixels`
    may hold them in place of the images."""
    assert model.image_encoder is not None
    encoder = ImageEncoder(model.image_encoder, jnp.dtype(dtype))
    return encoder.apply({"params": components["image_encoder"]}, images)
