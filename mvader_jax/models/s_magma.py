"""S-MAGMA: interleaved texts and images -> the decoder's last hidden states (paper section 3.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mvader_jax.condition import Array, Condition, PromptBatch
from mvader_jax.errors import UserError
from mvader_jax.models.decoder import AdaptersConfig, Decoder, DecoderConfig, assemble
from mvader_jax.models.image_encoder import ImageEncoder, ImageEncoderConfig
from mvader_jax.models.image_prefix import ImagePrefix, ImagePrefixConfig

Components = Mapping[str, Any]
Dtype = Any


@dataclasses.dataclass(frozen=True)
class SMagmaConfig:
    """The parts; without encoder and prefix it takes texts only, without adapters it is V1 of the paper."""

    decoder: DecoderConfig
    adapters: AdaptersConfig | None = None
    image_encoder: ImageEncoderConfig | None = None
    image_prefix: ImagePrefixConfig | None = None

    @classmethod
    def tiny(cls) -> SMagmaConfig:
        return cls(
            DecoderConfig.tiny(), AdaptersConfig.tiny(), ImageEncoderConfig.tiny(), ImagePrefixConfig.tiny()
        )


def s_magma(
    config: SMagmaConfig,
    components: Components,
    batch: PromptBatch,
    *,
    dtype: Dtype = jnp.float32,
    factors: jax.Array | None = None,
    dropout_key: jax.Array | None = None,
) -> Condition:
    """Embeds a batch of prompts.

    components: decoder; biases where there are any (laid over the decoder's own); adapters where
    configured; image_encoder and image_prefix where the batch holds images. factors: [L, H], multiplies
    the log weights by decoder layer and head. dropout_key: acts on the image prefix (training only).
    batch.pixels may be the encoder's features, [B, I, T, C]. Raises UserError naming a missing component.
    """
    decoder, params = _decoder(config, components, dtype)
    embeddings = decoder.apply(params, batch.token_ids, method="embed")
    if batch.pixels.shape[1]:
        images = batch.pixels.reshape(-1, *batch.pixels.shape[2:])
        tokens = image_embeddings(config, components, images, dtype=dtype, dropout_key=dropout_key)
        tokens = tokens.reshape(embeddings.shape[0], -1, embeddings.shape[-1])
        placed = jnp.take_along_axis(tokens, jnp.maximum(batch.image_index, 0)[:, :, None], axis=1)
        embeddings = jnp.where((batch.image_index >= 0)[:, :, None], placed, embeddings)
    hidden = decoder.apply(params, embeddings, batch.log_weights, factors)
    return Condition(hidden, jnp.asarray(batch.condition_log_weights))


def image_embeddings(
    config: SMagmaConfig,
    components: Components,
    images: Array,
    *,
    dtype: Dtype = jnp.float32,
    dropout_key: jax.Array | None = None,
) -> jax.Array:
    """Images [N, H, W, 3], or the encoder's features [N, T, C], -> prefix embeddings [N, T, D]."""
    if config.image_encoder is None or config.image_prefix is None:
        raise UserError("this model has no image encoder and prefix, so its prompts cannot hold images")
    _need(components, "image_prefix")
    features = images
    if images.ndim == 4:
        _need(components, "image_encoder")
        features = ImageEncoder(config.image_encoder, dtype).apply(
            {"params": components["image_encoder"]}, images
        )
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    return ImagePrefix(config.image_prefix, dtype).apply(
        {"params": components["image_prefix"]}, features, rngs=rngs
    )


def logits(
    config: SMagmaConfig, components: Components, condition: Condition, *, dtype: Dtype = jnp.float32
) -> jax.Array:
    """Next-token logits float32 [B, S, V] of what `s_magma` returned."""
    decoder, params = _decoder(config, components, dtype)
    return decoder.apply(params, condition.hidden, method="logits")


def _decoder(config: SMagmaConfig, components: Components, dtype: Dtype) -> tuple[Decoder, dict[str, Any]]:
    _need(components, "decoder")
    adapters = None
    if config.adapters is not None:
        _need(components, "adapters")
        adapters = components["adapters"]
    params = assemble(components["decoder"], adapters, components.get("biases"))
    return Decoder(config.decoder, config.adapters, dtype), {"params": params}


def _need(components: Components, name: str) -> None:
    if name not in components:
        raise UserError(
            f"embedding this prompt needs the component {name!r}; there are: {', '.join(sorted(components))}"
        )
