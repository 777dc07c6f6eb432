"""S-MAGMA: interleaved texts and images -> the decoder's last hidden states (paper section 3.1)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32

from mvader_jax.condition import Condition, PromptBatch
from mvader_jax.errors import UserError
from mvader_jax.models.decoder import AdaptersConfig, Decoder, DecoderConfig, assemble
from mvader_jax.models.image_encoder import ImageEncoder, ImageEncoderConfig
from mvader_jax.models.image_prefix import ImagePrefix, ImagePrefixConfig
from mvader_jax.models.remat import Remat
from mvader_jax.parallel.sharding import constrain
from mvader_jax.settings import Checked

Components = Mapping[str, Any]
Dtype = Any


@dataclasses.dataclass(frozen=True)
class SMagmaConfig(Checked):
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


def s_magma(config: SMagmaConfig, components: Components, batch: PromptBatch, **options: Any) -> Condition:
    """`s_magma_rows` of one batch of prompts."""
    return s_magma_rows(config, components, (batch,), **options)[0]


def s_magma_rows(
    config: SMagmaConfig,
    components: Components,
    batches: Sequence[PromptBatch],
    *,
    dtype: Dtype = jnp.float32,
    dropout_key: jax.Array | None = None,
    remat: Remat = "none",
) -> list[Condition]:
    """Embeds batches of prompts, each at its own length, in one walk through the decoder's layers.

    components: decoder; biases where there are any (laid over the decoder's own); adapters where
    configured; image_encoder and image_prefix where a batch holds images. dropout_key: acts on the image
    prefix (training only).
    batch.pixels may be the encoder's features, [B, I, T, C]. remat: what of the decoder's layers is kept
    for a backward pass. Raises UserError naming a missing component.
    """
    decoder, params = _decoder(config, components, dtype, remat)

    def embedded(batch: PromptBatch) -> jax.Array:
        embeddings = decoder.apply(params, jnp.asarray(batch.token_ids), method="embed")
        # No rows are there where no sample is conditioned on its image.
        if 0 in batch.pixels.shape[:2]:
            return embeddings
        images = jnp.asarray(batch.pixels).reshape(-1, *batch.pixels.shape[2:])
        tokens = image_embeddings(config, components, images, dtype=dtype, dropout_key=dropout_key)
        # Pinned like the convolutions: with its width left sharded, XLA's partitioner (jax 0.10) takes the
        # rows of another device on a mesh with data, fsdp and tensor axes.
        tokens = constrain(
            tokens.reshape(embeddings.shape[0], -1, embeddings.shape[-1]), "batch", "sequence", "activation"
        )
        placed = jnp.take_along_axis(tokens, jnp.maximum(batch.image_index, 0)[:, :, None], axis=1)
        return jnp.where((batch.image_index >= 0)[:, :, None], placed, embeddings)

    hidden = decoder.apply(
        params,
        tuple(embedded(batch) for batch in batches),
        tuple(jnp.asarray(batch.log_weights) for batch in batches),
        tuple(None if batch.factors is None else jnp.asarray(batch.factors) for batch in batches),
        method="together",
    )
    return [batch.condition(states) for states, batch in zip(hidden, batches, strict=True)]


def image_embeddings(
    config: SMagmaConfig,
    components: Components,
    images: Float[jax.Array, "N H W 3"] | Float[jax.Array, "N T C"],
    *,
    dtype: Dtype = jnp.float32,
    dropout_key: jax.Array | None = None,
) -> Float[jax.Array, "N _ D"]:
    """Images, or the encoder's features of them -> prefix embeddings."""
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
) -> Float32[jax.Array, "B S V"]:
    """Next-token logits of what `s_magma` returned."""
    decoder, params = _decoder(config, components, dtype)
    return decoder.apply(params, condition.hidden, method="logits")


def _decoder(
    config: SMagmaConfig, components: Components, dtype: Dtype, remat: Remat = "none"
) -> tuple[Decoder, dict[str, Any]]:
    _need(components, "decoder")
    adapters = None
    if config.adapters is not None:
        _need(components, "adapters")
        adapters = components["adapters"]
    params = assemble(components["decoder"], adapters, components.get("biases"))
    return Decoder(config.decoder, config.adapters, dtype, remat), {"params": params}


def _need(components: Components, name: str) -> None:
    if name not in components:
        raise UserError(
            f"embedding this prompt needs the component {name!r}; there are: {', '.join(sorted(components))}"
        )
