"""Stable Diffusion's UNet (diffusers UNet2DConditionModel), NHWC, attending to a Condition."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Num

from mvader_jax.bounds import LARGEST_INT, PositiveFloat, PositiveInt, between
from mvader_jax.condition import Condition
from mvader_jax.errors import UserError
from mvader_jax.models.convolution import conv
from mvader_jax.models.remat import Remat, rematerialised
from mvader_jax.models.unet_blocks import (
    Downsample,
    ResnetBlock,
    TimeEmbedding,
    Transformer2D,
    Upsample,
    group_norm,
    guidance_embedding,
    split_heads,
    timestep_embedding,
)
from mvader_jax.settings import Checked

Dtype = Any
#: Of the embedding of a guidance scale.
GuidanceWidth = Annotated[int, between(4, LARGEST_INT)]


@dataclasses.dataclass(frozen=True)
class UNetConfig(Checked):
    """Levels are counted from the highest resolution down.

    attention: whether a level has transformers beside its resnets (the middle block always has one).
    cross_attention_dim: width of `Condition.hidden`. num_heads, transformer_depth (blocks per transformer): of every
    level, or one per level.
    linear_projection: whether a transformer's projections in and out are matrices in place of 1x1 convolutions.
    sample_size: latents a side it was trained at.
    time_cond_proj_dim: width of the embedding of the guidance scale, of a UNet that takes it as an input, as those
    that are distilled to few steps do; None for one that is guided from outside.
    Raises UserError where these do not fit together.
    """

    in_channels: PositiveInt = 4
    out_channels: PositiveInt = 4
    block_out_channels: tuple[PositiveInt, ...] = (320, 640, 1280, 1280)
    layers_per_block: PositiveInt = 2
    attention: tuple[bool, ...] = (True, True, True, False)
    cross_attention_dim: PositiveInt = 768
    num_heads: PositiveInt | tuple[PositiveInt, ...] = 8
    norm_groups: PositiveInt = 32
    norm_eps: PositiveFloat = 1e-5
    sample_size: PositiveInt = 64
    transformer_depth: PositiveInt | tuple[PositiveInt, ...] = 1
    linear_projection: bool = False
    time_cond_proj_dim: GuidanceWidth | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        levels = len(self.block_out_channels)
        if levels == 0 or len(self.attention) != levels:
            raise UserError(
                f"the UNet's attention names {len(self.attention)} levels and block_out_channels {levels}; "
                "both need one entry a level, and at least one"
            )
        for name in ("num_heads", "transformer_depth"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != levels:
                raise UserError(f"the UNet's {name} is {value}; give one number, or one a level ({levels})")
        for level, channels in enumerate(self.block_out_channels):
            attends = self.attention[level] or level == levels - 1
            if channels % self.norm_groups or (attends and channels % self.heads(level)):
                raise UserError(
                    f"the UNet's level {level} has {channels} channels, which must divide by norm_groups "
                    f"({self.norm_groups}) and by num_heads ({self.heads(level)})"
                )

    def heads(self, level: int) -> int:
        """Attention heads of a level."""
        return self.num_heads if isinstance(self.num_heads, int) else self.num_heads[level]

    def depth(self, level: int) -> int:
        """Blocks of each transformer of a level."""
        depth = self.transformer_depth
        return depth if isinstance(depth, int) else depth[level]

    @property
    def distilled(self) -> bool:
        """Whether it takes the guidance scale as an input, and so draws in few steps of one call each."""
        return self.time_cond_proj_dim is not None

    @property
    def multiple(self) -> int:
        """What the height and width of latents must divide by."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @classmethod
    def sd14(cls) -> UNetConfig:
        """Stable Diffusion 1.1 to 1.5: 859,520,964 parameters."""
        return cls()

    @classmethod
    def sd2(cls) -> UNetConfig:
        """Stable Diffusion 2.0 and 2.1: heads of 64 dimensions, 865,910,724 parameters."""
        return cls(cross_attention_dim=1024, num_heads=(5, 10, 20, 20), linear_projection=True)

    @classmethod
    def tiny(cls) -> UNetConfig:
        """8 x 8 x 4 latents, 3 M parameters: small enough to train on a CPU."""
        return cls(
            block_out_channels=(48, 112),
            layers_per_block=1,
            attention=(True, True),
            cross_attention_dim=160,
            num_heads=4,
            norm_groups=16,
            sample_size=8,
        )


def factors_shape(config: UNetConfig) -> tuple[int, int]:
    """[N, H] of `Condition.factors`: cross-attentions, and the most heads of any of them."""
    heads = cross_attention_paths(config).values()
    return len(heads), max(heads)


def cross_attention_paths(config: UNetConfig) -> dict[str, int]:
    """Tree path of every cross-attention -> its heads, in the order they run (that of `Condition.factors`)."""
    layers, levels = config.layers_per_block, [i for i, here in enumerate(config.attention) if here]
    last = len(config.attention) - 1
    transformers = [(level, f"down_blocks_{level}/attentions_{i}") for level in levels for i in range(layers)]
    transformers.append((last, "mid_block/attentions_0"))
    transformers += [
        (level, f"up_blocks_{last - level}/attentions_{i}")
        for level in reversed(levels)
        for i in range(layers + 1)
    ]
    return {
        f"{path}/transformer_blocks_{i}/attn2": config.heads(level)
        for level, path in transformers
        for i in range(config.depth(level))
    }


def with_keys_values(
    config: UNetConfig, params: Mapping[str, Any], condition: Condition, dtype: Dtype
) -> Condition:
    """`condition` with the keys and values of every cross-attention, which no timestep changes.

    params: the UNet's. A UNet given the result in `dtype` does not read `to_k` and `to_v` any more.
    """
    hidden = condition.hidden.astype(dtype)
    found = []
    for path, heads in cross_attention_paths(config).items():
        attention = functools.reduce(lambda tree, name: tree[name], path.split("/"), params)
        key, value = (hidden @ attention[name]["kernel"].astype(dtype) for name in ("to_k", "to_v"))
        found.append((split_heads(key, heads), split_heads(value, heads)))
    return dataclasses.replace(condition, keys_values=tuple(found))


class _Block(nn.Module):
    """What the three kinds of blocks share: resnets, and transformers where the level has them.

    first_site: the index of this block's first cross-attention in `Condition.factors`.
    """

    config: UNetConfig
    level: int
    first_site: int
    dtype: Dtype
    remat: Remat

    def residual(
        self, index: int, x: Float[jax.Array, "B h w _"], time: Float[jax.Array, "B T"]
    ) -> Float[jax.Array, "B h w C"]:
        c = self.config
        module = rematerialised(ResnetBlock, self.remat)
        features = c.block_out_channels[self.level]
        return module(features, c.norm_groups, c.norm_eps, self.dtype, name=f"resnets_{index}")(x, time)

    def transformer(
        self, index: int, x: Float[jax.Array, "B h w C"], condition: Condition
    ) -> Float[jax.Array, "B h w C"]:
        c = self.config
        module = rematerialised(Transformer2D, self.remat)
        heads, depth = c.heads(self.level), c.depth(self.level)
        block = module(
            heads, c.norm_groups, self.dtype, depth, c.linear_projection, name=f"attentions_{index}"
        )
        return block(x, condition.sites(self.first_site + index * depth, depth, heads))


class DownBlock(_Block):
    """Returns the features and what each of its layers leaves for the way up."""

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "B h w _"],
        time: Float[jax.Array, "B T"],
        condition: Condition,
        layers: int | None = None,
    ) -> tuple[Float[jax.Array, "B _ _ C"], list[Float[jax.Array, "B _ _ C"]]]:
        """layers: only the first so many, and nothing that leads further down."""
        c = self.config
        skips = []
        for i in range(c.layers_per_block if layers is None else layers):
            x = self.residual(i, x, time)
            if c.attention[self.level]:
                x = self.transformer(i, x, condition)
            skips.append(x)
        if layers is None and self.level < len(c.block_out_channels) - 1:
            x = Downsample(c.block_out_channels[self.level], dtype=self.dtype, name="downsamplers_0")(x)
            skips.append(x)
        return x, skips


class MidBlock(_Block):
    """Resnet, transformer, resnet at the lowest resolution."""

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B h w C"], time: Float[jax.Array, "B T"], condition: Condition
    ) -> Float[jax.Array, "B h w C"]:
        x = self.residual(0, x, time)
        x = self.transformer(0, x, condition)
        return self.residual(1, x, time)


class UpBlock(_Block):
    """Takes from `skips` what the way down left, the last of it first."""

    @nn.compact
    def __call__(
        self,
        x: Float[jax.Array, "B h w _"],
        time: Float[jax.Array, "B T"],
        condition: Condition,
        skips: list[Float[jax.Array, "B h w _"]],
        first: int = 0,
        kept: int | None = None,
    ) -> Float[jax.Array, "B _ _ C"]:
        """first: the layer that x enters. kept: the layer before which x is left in `intermediates`."""
        c = self.config
        last = c.layers_per_block
        for i in range(first, last + 1):
            if i == kept:
                self.sow("intermediates", "deep", x)
            x = self.residual(i, jnp.concatenate([x, skips[last - i]], axis=-1), time)
            if c.attention[self.level]:
                x = self.transformer(i, x, condition)
        if self.level > 0:
            x = Upsample(c.block_out_channels[self.level], self.dtype, name="upsamplers_0")(x)
        return x


class UNet(nn.Module):
    """Predicts the noise in latents.

    remat: what of the resnets and transformers is kept for the backward pass. outer: layers at the highest resolution
    that a call with `deep` computes.
    """

    config: UNetConfig
    dtype: Dtype = jnp.float32
    remat: Remat = "none"
    outer: int = 1

    @nn.compact
    def __call__(
        self,
        latents: Float[jax.Array, "B h w Cin"],
        timesteps: Num[jax.Array, " B"],
        condition: Condition,
        deep: Float[jax.Array, "B h w C"] | None = None,
        guidance: Float[jax.Array, " B"] | None = None,
    ) -> Float[jax.Array, "B h w Cout"]:
        """condition: B rows. guidance: the guidance scales, of a distilled UNet alone.

        deep: what entered the last `outer` layers at an earlier timestep (DeepCache, Ma et al. 2024): they alone are
        then computed, from it and what the first `outer - 1` layers make of the latents. A call without it leaves its
        own in the collection `intermediates`.
        Returns the noise predicted in the latents, in `dtype`. Raises UserError where h or w do not divide by
        `config.multiple`, where the channels of the latents or the width of the condition are not the config's,
        and where guidance is missing or means nothing.
        """
        c = self.config
        _check(c, latents, condition, guidance)
        width = c.block_out_channels[0]
        condition = dataclasses.replace(condition, hidden=condition.hidden.astype(self.dtype))
        sinusoids = timestep_embedding(timesteps, width).astype(self.dtype)
        scales = None
        if guidance is not None and c.time_cond_proj_dim is not None:
            scales = guidance_embedding(guidance, c.time_cond_proj_dim).astype(self.dtype)
        time = TimeEmbedding(4 * width, self.dtype, name="time_embedding")(sinusoids, scales)
        x = conv(width, 3, name="conv_in", dtype=self.dtype)(latents.astype(self.dtype))

        skips, site = [x], 0
        last, layers = len(c.block_out_channels) - 1, c.layers_per_block + 1
        for level in range(last + 1):
            if deep is None or level == 0:
                down = DownBlock(c, level, site, self.dtype, self.remat, name=f"down_blocks_{level}")
                x, left = down(x, time, condition, None if deep is None else self.outer - 1)
                skips += left
            site += c.layers_per_block * c.attention[level] * c.depth(level)

        if deep is None:
            x = MidBlock(c, last, site, self.dtype, self.remat, name="mid_block")(x, time, condition)
        site += c.depth(last)

        for i, level in enumerate(reversed(range(last + 1))):
            up = UpBlock(c, level, site, self.dtype, self.remat, name=f"up_blocks_{i}")
            if level == 0 and deep is not None:
                x = up(deep.astype(self.dtype), time, condition, skips, layers - self.outer)
            elif deep is None:
                taken, skips = skips[-layers:], skips[:-layers]
                x = up(x, time, condition, taken, kept=None if level else layers - self.outer)
            site += layers * c.attention[level] * c.depth(level)

        x = nn.silu(group_norm(x, c.norm_groups, c.norm_eps, name="conv_norm_out"))
        return conv(c.out_channels, 3, name="conv_out", dtype=self.dtype)(x)


def _check(config: UNetConfig, latents: jax.Array, condition: Condition, guidance: jax.Array | None) -> None:
    if config.distilled != (guidance is not None):
        raise UserError(
            "this UNet takes the guidance scale as an input (it was distilled to few steps), and there is none"
            if config.distilled
            else "this UNet takes no guidance scale as an input: it was not distilled to few steps"
        )
    _, height, width, channels = latents.shape
    if channels != config.in_channels:
        raise UserError(f"the latents have {channels} channels; this UNet takes {config.in_channels}")
    if height % config.multiple or width % config.multiple:
        raise UserError(
            f"the latents are {height} x {width}; this UNet takes heights and widths that are multiples of "
            f"{config.multiple}"
        )
    if condition.hidden.shape[-1] != config.cross_attention_dim:
        raise UserError(
            f"the condition is {condition.hidden.shape[-1]} wide; this UNet's cross-attention takes "
            f"{config.cross_attention_dim}"
        )
    if condition.factors is not None and condition.factors.shape[-2:] != factors_shape(config):
        given, own = condition.factors.shape[-2:], factors_shape(config)
        raise UserError(
            f"the condition's factors are for {given[0]} cross-attentions of {given[1]} heads; this UNet has "
            f"{own[0]} of {own[1]}"
        )
