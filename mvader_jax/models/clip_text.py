"""CLIP's text tower, Stable Diffusion's own embedder (openai/CLIP; transformers CLIPTextModel)."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from mvader_jax.bounds import PositiveFloat, PositiveInt
from mvader_jax.errors import UserError
from mvader_jax.models.attention import attend
from mvader_jax.parallel.sharding import constrain, partitioned
from mvader_jax.settings import Checked

Dtype = Any


@dataclasses.dataclass(frozen=True)
class ClipTextConfig(Checked):
    """A causal pre-norm transformer with learned positions. Raises UserError where the heads do not divide."""

    vocab_size: PositiveInt = 49408
    width: PositiveInt = 768
    num_layers: PositiveInt = 12
    num_heads: PositiveInt = 12
    mlp_width: PositiveInt = 3072
    max_positions: PositiveInt = 77
    activation: Literal["quick_gelu", "gelu"] = "quick_gelu"
    norm_eps: PositiveFloat = 1e-5

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.width % self.num_heads:
            raise UserError(
                f"the text encoder's width of {self.width} does not divide by its num_heads, {self.num_heads}"
            )

    @classmethod
    def sd14(cls) -> ClipTextConfig:
        """The text tower of CLIP ViT-L/14."""
        return cls()

    @classmethod
    def tiny(cls) -> ClipTextConfig:
        return cls(vocab_size=512, width=96, num_layers=2, num_heads=3, mlp_width=384)


class Tower(Protocol):
    """What a layer of CLIP's towers is shaped by; the image tower's config has it too."""

    @property
    def width(self) -> int: ...
    @property
    def num_heads(self) -> int: ...
    @property
    def mlp_width(self) -> int: ...
    @property
    def activation(self) -> str: ...
    @property
    def norm_eps(self) -> float: ...


def _dense(features: int, axes: tuple[str, str], name: str, dtype: Dtype) -> nn.Dense:
    init = partitioned(nn.initializers.normal(0.02), *axes)
    return nn.Dense(features, kernel_init=init, dtype=dtype, name=name)


class _SelfAttention(nn.Module):
    config: Tower
    dtype: Dtype
    causal: bool

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "B S D"],
        log_weights: Float[jax.Array, "B S"] | None,
        factors: Float[jax.Array, " H"] | Float[jax.Array, "B H"] | None,
    ) -> Float[jax.Array, "B S D"]:
        c = self.config

        def heads(name: str) -> jax.Array:
            y = _dense(c.width, ("embed", "heads"), name, self.dtype)(x)
            return y.reshape(*y.shape[:-1], c.num_heads, c.width // c.num_heads)

        q, k, v = heads("q_proj"), heads("k_proj"), heads("v_proj")
        out = attend(q, k, v, log_weights=log_weights, causal=self.causal, factors=factors).reshape(x.shape)
        return _dense(c.width, ("heads", "embed"), "out_proj", self.dtype)(out)


class _MLP(nn.Module):
    config: Tower
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B S D"]) -> Float[jax.Array, "B S D"]:
        c = self.config
        x = _dense(c.mlp_width, ("embed", "mlp"), "fc1", self.dtype)(x)
        x = x * nn.sigmoid(1.702 * x) if c.activation == "quick_gelu" else nn.gelu(x, approximate=False)
        return _dense(c.width, ("mlp", "embed"), "fc2", self.dtype)(x)


class ClipLayer(nn.Module):
    """A pre-norm layer of either tower; that of texts is causal."""

    config: Tower
    dtype: Dtype
    causal: bool = True

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "B S D"],
        log_weights: Float[jax.Array, "B S"] | None,
        factors: Float[jax.Array, " H"] | Float[jax.Array, "B H"] | None,
    ) -> tuple[Float[jax.Array, "B S D"], None]:
        c = self.config

        def norm(name: str, y: jax.Array) -> jax.Array:
            return nn.LayerNorm(epsilon=c.norm_eps, dtype=jnp.float32, name=name)(y).astype(self.dtype)

        x = constrain(x, "batch", "sequence", "activation")
        x = x + _SelfAttention(c, self.dtype, self.causal, name="self_attn")(
            norm("layer_norm1", x), log_weights, factors
        )
        return x + _MLP(c, self.dtype, name="mlp")(norm("layer_norm2", x)), None


class ClipText(nn.Module):
    """Token ids -> hidden states after the final norm."""

    config: ClipTextConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        token_ids: Int[jax.Array, "B S"],
        log_weights: Float[jax.Array, "B S"] | None = None,
        factors: Float[jax.Array, "L H"] | Float[jax.Array, "B L H"] | None = None,
    ) -> Float[jax.Array, "B S D"]:
        """log_weights: added to the scores; factors: multiplies them by layer and head."""
        c = self.config
        if log_weights is None:
            log_weights = jnp.zeros(token_ids.shape, jnp.float32)
        init = nn.initializers.normal(0.02)
        tokens = nn.Embed(
            c.vocab_size,
            c.width,
            embedding_init=partitioned(init, "vocab", "embed"),
            dtype=self.dtype,
            name="token_embedding",
        )(token_ids)
        positions = self.param(
            "position_embedding", partitioned(init, "sequence", "embed"), (c.max_positions, c.width)
        )
        x = tokens + positions[: token_ids.shape[1]].astype(self.dtype)
        layers = nn.scan(
            ClipLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0),
            length=c.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(c, self.dtype, name="layers")
        if factors is not None and factors.ndim == 3:
            factors = jnp.swapaxes(factors, 0, 1)
        x, _ = layers(x, log_weights, factors)
        x = nn.LayerNorm(epsilon=c.norm_eps, dtype=jnp.float32, name="final_layer_norm")(x)
        return x.astype(self.dtype)
