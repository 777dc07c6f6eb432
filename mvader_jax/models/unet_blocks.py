"""The blocks that Stable Diffusion's UNet and VAE are built of, NHWC (diffusers models/resnet.py, attention.py).

Convolution and projection parameters name their axes for the sharding table; norms run in float32.
"""

from __future__ import annotations

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Num

from mvader_jax.condition import Condition, KeysValues
from mvader_jax.models.attention import attend, attention_of
from mvader_jax.models.convolution import Conv, conv
from mvader_jax.parallel.sharding import partitioned

Dtype = Any
#: The collection in which each cross-attention leaves what its condition's elements got, where `apply` lets it change
#: (`models.attention_maps` reads it).
ATTENTION = "attention"
_KERNEL = nn.initializers.lecun_normal()


def dense(features: int, axes: tuple[str, str], *, name: str, dtype: Dtype, bias: bool = True) -> nn.Dense:
    """A linear layer whose kernel's axes are named."""
    return nn.Dense(features, use_bias=bias, kernel_init=partitioned(_KERNEL, *axes), dtype=dtype, name=name)


class GroupNorm(nn.Module):
    """GroupNorm (Wu and He 2018) in float32, returned in x's dtype.

    Linen's own reduces over the window and part of the channels at once; summing each channel's window
    first keeps the channels contiguous, which is three times as fast on a CPU at VAE resolutions.
    """

    groups: int
    eps: float

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B h w C"]:
        batch, height, width, channels = x.shape
        members = channels // self.groups
        scale = self.param("scale", nn.initializers.ones, (channels,), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (channels,), jnp.float32)

        def group_mean(y: jax.Array) -> jax.Array:
            sums = y.sum(axis=(1, 2)).reshape(batch, self.groups, members).sum(axis=-1)
            return jnp.repeat(sums / (height * width * members), members, axis=1)[:, None, None, :]

        # The variance of the centred values, not E[x^2] - E[x]^2, which cancels where the mean is large.
        y = x.astype(jnp.float32)
        y = y - group_mean(y)
        y = y * (jax.lax.rsqrt(group_mean(y * y) + self.eps) * scale) + bias
        return y.astype(x.dtype)


def group_norm(
    x: Float[jax.Array, "B h w C"], groups: int, eps: float, *, name: str
) -> Float[jax.Array, "B h w C"]:
    """GroupNorm computed in float32, returned in x's dtype."""
    return GroupNorm(groups, eps, name=name)(x)


def layer_norm(x: Float[jax.Array, "B S D"], *, name: str, eps: float = 1e-5) -> Float[jax.Array, "B S D"]:
    """LayerNorm computed in float32, returned in x's dtype."""
    return nn.LayerNorm(epsilon=eps, dtype=jnp.float32, name=name)(x).astype(x.dtype)


def timestep_embedding(timesteps: Num[jax.Array, " B"], width: int) -> Float32[jax.Array, "B {width}"]:
    """Sinusoids of the timestep, cosines first (flip_sin_to_cos, freq_shift 0)."""
    half = width // 2
    # Rounded once, on the host: an error of one bit here is 6e-5 in the sine of step 999.
    frequencies = np.exp(-math.log(10000.0) * np.arange(half) / half).astype(np.float32)
    angles = timesteps.astype(jnp.float32)[:, None] * frequencies
    embedding = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, width % 2)))


def guidance_embedding(guidance: Float[jax.Array, " B"], width: int) -> Float32[jax.Array, "B {width}"]:
    """Sinusoids of 1000 (guidance scale - 1), sines first, as latent consistency models read it (Luo et al. 2023)."""
    half = width // 2
    frequencies = np.exp(-math.log(10000.0) * np.arange(half) / (half - 1)).astype(np.float32)
    angles = ((guidance.astype(jnp.float32) - 1.0) * 1000.0)[:, None] * frequencies
    embedding = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    return jnp.pad(embedding, ((0, 0), (0, width % 2)))


class TimeEmbedding(nn.Module):
    """Two linear layers on the sinusoids; before them a projection of the guidance scale's, where it is given."""

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B C"], guidance: Float[jax.Array, "B G"] | None = None
    ) -> Float[jax.Array, "B {self.width}"]:
        if guidance is not None:
            # Zeros at first: a UNet that knew no guidance starts as it was.
            zeros = partitioned(nn.initializers.zeros_init(), "channels_in", "channels_out")
            project = nn.Dense(
                x.shape[-1], use_bias=False, kernel_init=zeros, dtype=self.dtype, name="cond_proj"
            )
            x = x + project(guidance)
        x = dense(self.width, ("channels_in", "channels_out"), name="linear_1", dtype=self.dtype)(x)
        return dense(self.width, ("channels_in", "channels_out"), name="linear_2", dtype=self.dtype)(
            nn.silu(x)
        )


class ResnetBlock(nn.Module):
    """norm, silu, conv, (+ time), norm, silu, conv, + shortcut."""

    features: int
    groups: int
    eps: float
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B h w C"], time: Float[jax.Array, "B T"] | None = None
    ) -> Float[jax.Array, "B h w {self.features}"]:
        hidden = nn.silu(group_norm(x, self.groups, self.eps, name="norm1"))
        hidden = conv(self.features, 3, name="conv1", dtype=self.dtype)(hidden)
        if time is not None:
            shift = dense(
                self.features, ("channels_in", "channels_out"), name="time_emb_proj", dtype=self.dtype
            )
            hidden = hidden + shift(nn.silu(time))[:, None, None, :]
        hidden = nn.silu(group_norm(hidden, self.groups, self.eps, name="norm2"))
        hidden = conv(self.features, 3, name="conv2", dtype=self.dtype)(hidden)
        if x.shape[-1] != self.features:
            x = conv(self.features, 1, name="conv_shortcut", dtype=self.dtype)(x)
        return x + hidden


class Downsample(nn.Module):
    """A convolution of stride 2. symmetric: padded by one all round (UNet), else right and below (VAE)."""

    features: int
    symmetric: bool = True
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B _ _ {self.features}"]:
        padding = (1, 1) if self.symmetric else (0, 1)
        return Conv(self.features, 3, stride=2, padding=padding, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Nearest neighbour to twice the size, then a convolution."""

    features: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B 2*h 2*w {self.features}"]:
        return Conv(self.features, 3, doubled=True, dtype=self.dtype, name="conv")(x)


def split_heads(x: Float[jax.Array, "B S D"], heads: int) -> Float[jax.Array, "B S {heads} K"]:
    """The width divided into heads."""
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


class Attention(nn.Module):
    """Multi-head attention over x, or from x to a context.

    keys_values: those of the context, where they are computed already; to_k and to_v are then not read.
    elements: as `Condition.elements`; what each gets of the attention goes into the collection ATTENTION.
    """

    num_heads: int
    bias: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "B Sq C"],
        context: Float[jax.Array, "B S D"] | None = None,
        log_weights: Float[jax.Array, "B S"] | None = None,
        factors: Float[jax.Array, " H"] | Float[jax.Array, "B H"] | None = None,
        keys_values: KeysValues | None = None,
        elements: Float[jax.Array, "B S E"] | None = None,
    ) -> Float[jax.Array, "B Sq C"]:
        width = x.shape[-1]

        def heads(y: jax.Array, name: str, axis: str) -> jax.Array:
            y = dense(width, (axis, "heads"), name=name, dtype=self.dtype, bias=self.bias)(y)
            return split_heads(y, self.num_heads)

        q = heads(x, "to_q", "channels_in")
        if keys_values is None:
            source, axis = (x, "channels_in") if context is None else (context, "context")
            keys_values = heads(source, "to_k", axis), heads(source, "to_v", axis)
        k, v = keys_values
        out = attend(q, k, v, log_weights=log_weights, factors=factors).reshape(x.shape)
        if elements is not None and self.is_mutable_collection(ATTENTION):
            got = attention_of(elements, q, k, log_weights=log_weights, factors=factors)
            self.sow(ATTENTION, "elements", got)
        return dense(width, ("heads", "channels_in"), name="to_out_0", dtype=self.dtype)(out)


class GEGLU(nn.Module):
    """A linear layer to twice `width`, one half gated by the exact gelu of the other (Shazeer 2020)."""

    width: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B S C"]) -> Float[jax.Array, "B S {self.width}"]:
        projected = dense(2 * self.width, ("channels_in", "mlp"), name="proj", dtype=self.dtype)(x)
        value, gate = jnp.split(projected, 2, axis=-1)
        return value * nn.gelu(gate, approximate=False)


class FeedForward(nn.Module):
    """GEGLU to four times the width, and a linear layer back."""

    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B S C"]) -> Float[jax.Array, "B S C"]:
        width = x.shape[-1]
        hidden = GEGLU(4 * width, self.dtype, name="net_0")(x)
        return dense(width, ("mlp", "channels_in"), name="net_2", dtype=self.dtype)(hidden)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention to the condition (eq. 2), feed-forward; each after its LayerNorm.

    condition: of this block's cross-attention alone (`Condition.sites`).
    """

    num_heads: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "B Sq C"],
        condition: Condition,
    ) -> Float[jax.Array, "B Sq C"]:
        x = x + Attention(self.num_heads, dtype=self.dtype, name="attn1")(layer_norm(x, name="norm1"))
        cross = Attention(self.num_heads, dtype=self.dtype, name="attn2")
        factors = None if condition.factors is None else condition.factors[..., 0, :]
        ready = None if condition.keys_values is None else condition.keys_values[0]
        context = condition.hidden, condition.log_weights, factors, ready, condition.elements
        x = x + cross(layer_norm(x, name="norm2"), *context)
        return x + FeedForward(dtype=self.dtype, name="ff")(layer_norm(x, name="norm3"))


class Transformer2D(nn.Module):
    """Transformer blocks over the positions of a feature map, between two projections.

    linear: whether these are matrices [C, C] in place of 1x1 convolutions: the same numbers.
    condition: of the cross-attentions of these blocks alone (`Condition.sites`).
    """

    num_heads: int
    groups: int
    dtype: Dtype = jnp.float32
    depth: int = 1
    linear: bool = False

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "B h w C"],
        condition: Condition,
    ) -> Float[jax.Array, "B h w C"]:
        batch, height, width, channels = x.shape

        def projection(name: str) -> nn.Module:
            if self.linear:
                return dense(channels, ("channels_in", "channels_out"), name=name, dtype=self.dtype)
            return conv(channels, 1, name=name, dtype=self.dtype)

        hidden = group_norm(x, self.groups, 1e-6, name="norm")
        hidden = projection("proj_in")(hidden)
        hidden = hidden.reshape(batch, height * width, channels)
        for i in range(self.depth):
            block = TransformerBlock(self.num_heads, dtype=self.dtype, name=f"transformer_blocks_{i}")
            hidden = block(hidden, condition.sites(i, 1, self.num_heads))
        hidden = hidden.reshape(x.shape)
        return x + projection("proj_out")(hidden)
