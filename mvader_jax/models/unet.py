"""Stable Diffusion's UNet (diffusers UNet2DConditionModel), NHWC, attending to a Condition."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from mvader_jax.condition import Condition
from mvader_jax.models.unet_blocks import (
    Downsample,
    ResnetBlock,
    TimeEmbedding,
    Transformer2D,
    Upsample,
    conv,
    group_norm,
    timestep_embedding,
)
from mvader_jax.parallel.sharding import constrain

Dtype = Any


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """attention: whether a level has transformers beside its resnets, from the highest resolution down.
    sample_size: latents a side it was trained at; num_heads: at every level."""

    in_channels: int = 4
    out_channels: int = 4
    block_out_channels: tuple[int, ...] = (320, 640, 1280, 1280)
    layers_per_block: int = 2
    attention: tuple[bool, ...] = (True, True, True, False)
    cross_attention_dim: int = 768
    num_heads: int = 8
    norm_groups: int = 32
    norm_eps: float = 1e-5
    sample_size: int = 64

    @classmethod
    def sd14(cls) -> UNetConfig:
        """Stable Diffusion 1.1 to 1.5: 859,520,964 parameters."""
        return cls()

    @classmethod
    def tiny(cls) -> UNetConfig:
        """8 x 8 x 4 latents, small enough to train on a CPU."""
        return cls(
            block_out_channels=(64, 128),
            layers_per_block=1,
            attention=(True, True),
            cross_attention_dim=160,
            num_heads=4,
            norm_groups=16,
            sample_size=8,
        )


def cross_attention_paths(config: UNetConfig) -> list[str]:
    """Tree paths of the cross-attentions, in the order they run (that of `Condition.factors`)."""
    paths = []
    levels = list(enumerate(config.attention))
    for level, here in levels:
        paths += [f"down_blocks_{level}/attentions_{i}" for i in range(config.layers_per_block) if here]
    paths.append("mid_block/attentions_0")
    for i, (_, here) in enumerate(reversed(levels)):
        paths += [f"up_blocks_{i}/attentions_{j}" for j in range(config.layers_per_block + 1) if here]
    return [f"{path}/transformer_blocks_0/attn2" for path in paths]


class _Block(nn.Module):
    """What the three kinds of blocks share: resnets, and transformers where the level has them.

    first_site: the index of this block's first cross-attention in `Condition.factors`.
    """

    config: UNetConfig
    level: int
    first_site: int
    dtype: Dtype
    remat: bool

    def residual(self, index: int, x: jax.Array, time: jax.Array) -> jax.Array:
        c = self.config
        module = nn.remat(ResnetBlock) if self.remat else ResnetBlock
        features = c.block_out_channels[self.level]
        return module(features, c.norm_groups, c.norm_eps, self.dtype, name=f"resnets_{index}")(x, time)

    def transformer(self, index: int, x: jax.Array, condition: Condition) -> jax.Array:
        c = self.config
        module = nn.remat(Transformer2D) if self.remat else Transformer2D
        factors = None if condition.factors is None else condition.factors[self.first_site + index]
        block = module(c.num_heads, c.norm_groups, self.dtype, name=f"attentions_{index}")
        return block(x, condition.hidden, condition.log_weights, factors)


class DownBlock(_Block):
    """Returns the features and what each of its layers leaves for the way up."""

    @nn.compact
    def __call__(
        self, x: jax.Array, time: jax.Array, condition: Condition
    ) -> tuple[jax.Array, list[jax.Array]]:
        c = self.config
        skips = []
        for i in range(c.layers_per_block):
            x = self.residual(i, x, time)
            if c.attention[self.level]:
                x = self.transformer(i, x, condition)
            skips.append(x)
        if self.level < len(c.block_out_channels) - 1:
            x = Downsample(c.block_out_channels[self.level], dtype=self.dtype, name="downsamplers_0")(x)
            skips.append(x)
        return x, skips


class MidBlock(_Block):
    """Resnet, transformer, resnet at the lowest resolution."""

    @nn.compact
    def __call__(self, x: jax.Array, time: jax.Array, condition: Condition) -> jax.Array:
        x = self.residual(0, x, time)
        x = self.transformer(0, x, condition)
        return self.residual(1, x, time)


class UpBlock(_Block):
    """Takes from the end of `skips` what the way down left."""

    @nn.compact
    def __call__(
        self, x: jax.Array, time: jax.Array, condition: Condition, skips: list[jax.Array]
    ) -> jax.Array:
        c = self.config
        for i in range(c.layers_per_block + 1):
            x = self.residual(i, jnp.concatenate([x, skips[-1 - i]], axis=-1), time)
            if c.attention[self.level]:
                x = self.transformer(i, x, condition)
        if self.level > 0:
            x = Upsample(c.block_out_channels[self.level], self.dtype, name="upsamplers_0")(x)
        return x


class UNet(nn.Module):
    """Predicts the noise in latents. remat: recompute blocks in the backward pass instead of keeping them."""

    config: UNetConfig
    dtype: Dtype = jnp.float32
    remat: bool = False

    @nn.compact
    def __call__(self, latents: jax.Array, timesteps: jax.Array, condition: Condition) -> jax.Array:
        """latents: [B, h, w, C]; timesteps: [B]; condition: B rows. Returns eps [B, h, w, C] in `dtype`.

        h and w must divide by 2 ** (levels - 1).
        """
        c = self.config
        width = c.block_out_channels[0]
        condition = condition.replace(hidden=condition.hidden.astype(self.dtype))
        sinusoids = timestep_embedding(timesteps, width).astype(self.dtype)
        time = TimeEmbedding(4 * width, self.dtype, name="time_embedding")(sinusoids)
        x = conv(width, 3, name="conv_in", dtype=self.dtype)(latents.astype(self.dtype))
        x = constrain(x, "batch", "kernel", "kernel", "activation")

        skips, site = [x], 0
        last = len(c.block_out_channels) - 1
        for level in range(last + 1):
            block = DownBlock(c, level, site, self.dtype, self.remat, name=f"down_blocks_{level}")
            x, left = block(x, time, condition)
            skips += left
            site += c.layers_per_block * c.attention[level]

        x = MidBlock(c, last, site, self.dtype, self.remat, name="mid_block")(x, time, condition)
        site += 1

        layers = c.layers_per_block + 1
        for i, level in enumerate(reversed(range(last + 1))):
            taken, skips = skips[-layers:], skips[:-layers]
            x = UpBlock(c, level, site, self.dtype, self.remat, name=f"up_blocks_{i}")(
                x, time, condition, taken
            )
            site += layers * c.attention[level]

        x = nn.silu(group_norm(x, c.norm_groups, c.norm_eps, name="conv_norm_out"))
        return conv(c.out_channels, 3, name="conv_out", dtype=self.dtype)(x)
