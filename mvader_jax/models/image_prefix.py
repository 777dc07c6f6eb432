"""MAGMA's image prefix: the encoder's features become embeddings of the decoder's width."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from mvader_jax.bounds import PositiveInt, below
from mvader_jax.parallel.sharding import partitioned
from mvader_jax.settings import Checked


@dataclasses.dataclass(frozen=True)
class ImagePrefixConfig(Checked):
    """in_width: channels of the encoder; width: of the decoder (Aleph-Alpha/magma image_prefix.py)."""

    in_width: PositiveInt = 3072
    width: PositiveInt = 4096
    dropout: Annotated[float, below(0, 1)] = 0.1

    @classmethod
    def magma(cls) -> ImagePrefixConfig:
        return cls()

    @classmethod
    def tiny(cls) -> ImagePrefixConfig:
        return cls(in_width=384, width=160)


class ImagePrefix(nn.Module):
    """Linear, dropout, LayerNorm, in this order. [N, T, C] -> [N, T, D].

    Dropout acts where a "dropout" key is given to `apply`.
    """

    config: ImagePrefixConfig
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features: Float[jax.Array, "N T C"]) -> Float[jax.Array, "N T D"]:
        c = self.config
        init = partitioned(nn.initializers.lecun_normal(), "channels_in", "channels_out")
        x = nn.Dense(c.width, kernel_init=init, dtype=self.dtype, name="proj")(features.astype(self.dtype))
        x = nn.Dropout(c.dropout, deterministic=not self.has_rng("dropout"))(x)
        return nn.LayerNorm(epsilon=1e-5, dtype=jnp.float32, name="ln")(x).astype(self.dtype)
