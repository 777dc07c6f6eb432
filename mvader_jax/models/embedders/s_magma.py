"""S-MAGMA as an embedder: interleaved texts and images through the decoder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp

from mvader_jax.condition import Condition, PromptBatch
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embedders.base import Components, Dtype, Embedder
from mvader_jax.models.image_encoder import ImageEncoderConfig
from mvader_jax.models.remat import Remat
from mvader_jax.models.s_magma import SMagmaConfig, s_magma_rows


@dataclasses.dataclass(frozen=True)
class SMagma(Embedder):
    """`models/s_magma.py` on a model's parts."""

    reader: ClassVar[str] = "decoder"

    config: SMagmaConfig

    @classmethod
    def of(cls, model: ModelConfig) -> SMagma:
        return cls(model.s_magma)

    @property
    def components(self) -> tuple[str, ...]:
        adapters = ("adapters",) if self.config.adapters is not None else ()
        return ("decoder", "biases", *adapters, "image_encoder", "image_prefix")

    @property
    def image_encoder(self) -> ImageEncoderConfig | None:
        return self.config.image_encoder

    @property
    def vocab_size(self) -> int:
        return self.config.decoder.vocab_size

    @property
    def max_positions(self) -> int:
        return self.config.decoder.max_positions

    @property
    def heads(self) -> tuple[int, int]:
        return self.config.decoder.num_layers, self.config.decoder.num_heads

    @property
    def width(self) -> int:
        return self.config.decoder.width

    def embed_rows(
        self,
        components: Components,
        batches: Sequence[PromptBatch],
        *,
        dtype: Dtype = jnp.float32,
        remat: Remat = "none",
    ) -> list[Condition]:
        return s_magma_rows(self.config, components, batches, dtype=dtype, remat=remat)
