"""Stable Diffusion's autoencoder (diffusers AutoencoderKL): images to latents and back, NHWC."""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from mvader_jax.bounds import PositiveFloat, PositiveInt
from mvader_jax.errors import UserError
from mvader_jax.models.attention import attend
from mvader_jax.models.convolution import conv
from mvader_jax.models.unet_blocks import Downsample, ResnetBlock, Upsample, dense, group_norm
from mvader_jax.settings import Checked

Dtype = Any
_EPS = 1e-6


@dataclasses.dataclass(frozen=True)
class VAEConfig(Checked):
    """block_out_channels: from the highest resolution down.

    scaling_factor: what latents are multiplied by for the diffusion model, by callers, not here.
    sample_size: pixels a side it was trained at. Raises UserError where norm_groups does not divide.
    """

    in_channels: PositiveInt = 3
    block_out_channels: tuple[PositiveInt, ...] = (128, 256, 512, 512)
    layers_per_block: PositiveInt = 2
    latent_channels: PositiveInt = 4
    norm_groups: PositiveInt = 32
    scaling_factor: PositiveFloat = 0.18215
    sample_size: PositiveInt = 512

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.block_out_channels:
            raise UserError(
                "the VAE's block_out_channels is empty; it needs one entry a level, and at least one"
            )
        for level, channels in enumerate(self.block_out_channels):
            if channels % self.norm_groups:
                raise UserError(
                    f"the VAE's level {level} has {channels} channels, which must divide by norm_groups "
                    f"({self.norm_groups})"
                )

    @property
    def multiple(self) -> int:
        """Pixels a latent pixel covers a side; what the height and width of images must divide by."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @classmethod
    def sd14(cls) -> VAEConfig:
        """Stable Diffusion 1.x: 83,653,863 parameters."""
        return cls()

    @classmethod
    def tiny(cls) -> VAEConfig:
        """64 x 64 pixels to 8 x 8 x 4 latents, small enough for a CPU."""
        return cls(
            block_out_channels=(8, 16, 32, 64),
            layers_per_block=1,
            norm_groups=2,
            scaling_factor=1.0,
            sample_size=64,
        )


class AttentionBlock(nn.Module):
    """Single-head self-attention over positions, with biases, after a GroupNorm."""

    groups: int
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B h w C"]:
        batch, height, width, channels = x.shape
        hidden = group_norm(x, self.groups, _EPS, name="group_norm")
        hidden = hidden.reshape(batch, height * width, channels)
        q, k, v = (
            dense(channels, ("channels_in", "heads"), name=name, dtype=self.dtype)(hidden)[:, :, None, :]
            for name in ("to_q", "to_k", "to_v")
        )
        hidden = attend(q, k, v)[:, :, 0, :]
        hidden = dense(channels, ("heads", "channels_in"), name="to_out_0", dtype=self.dtype)(hidden)
        return x + hidden.reshape(x.shape)


class MidBlock(nn.Module):
    """Resnet, attention, resnet at the lowest resolution."""

    config: VAEConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B h w C"]:
        features, groups = x.shape[-1], self.config.norm_groups
        x = ResnetBlock(features, groups, _EPS, self.dtype, name="resnets_0")(x)
        x = AttentionBlock(groups, self.dtype, name="attentions_0")(x)
        return ResnetBlock(features, groups, _EPS, self.dtype, name="resnets_1")(x)


class Level(nn.Module):
    """The resnets of one resolution, and the change to the next (`sampling`: "down", "up" or "")."""

    config: VAEConfig
    features: int
    layers: int
    sampling: str
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B _ _ {self.features}"]:
        for i in range(self.layers):
            x = ResnetBlock(self.features, self.config.norm_groups, _EPS, self.dtype, name=f"resnets_{i}")(x)
        if self.sampling == "down":
            x = Downsample(self.features, symmetric=False, dtype=self.dtype, name="downsamplers_0")(x)
        elif self.sampling == "up":
            x = Upsample(self.features, dtype=self.dtype, name="upsamplers_0")(x)
        return x


class Encoder(nn.Module):
    """Images to mean and log variance, before `quant_conv`."""

    config: VAEConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[jax.Array, "B H W Cin"]
    ) -> Float[jax.Array, "B h w {2*self.config.latent_channels}"]:
        c = self.config
        x = conv(c.block_out_channels[0], 3, name="conv_in", dtype=self.dtype)(x)
        last = len(c.block_out_channels) - 1
        for i, features in enumerate(c.block_out_channels):
            sampling = "down" if i < last else ""
            x = Level(c, features, c.layers_per_block, sampling, self.dtype, name=f"down_blocks_{i}")(x)
        x = MidBlock(c, self.dtype, name="mid_block")(x)
        x = nn.silu(group_norm(x, c.norm_groups, _EPS, name="conv_norm_out"))
        return conv(2 * c.latent_channels, 3, name="conv_out", dtype=self.dtype)(x)


class Decoder(nn.Module):
    """What leaves `post_quant_conv`, to images."""

    config: VAEConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B H W Cout"]:
        c = self.config
        x = conv(c.block_out_channels[-1], 3, name="conv_in", dtype=self.dtype)(x)
        x = MidBlock(c, self.dtype, name="mid_block")(x)
        last = len(c.block_out_channels) - 1
        for i, features in enumerate(reversed(c.block_out_channels)):
            sampling = "up" if i < last else ""
            x = Level(c, features, c.layers_per_block + 1, sampling, self.dtype, name=f"up_blocks_{i}")(x)
        x = nn.silu(group_norm(x, c.norm_groups, _EPS, name="conv_norm_out"))
        return conv(c.in_channels, 3, name="conv_out", dtype=self.dtype)(x)


class VAE(nn.Module):
    """The autoencoder. Latents are unscaled: callers apply `config.scaling_factor`."""

    config: VAEConfig
    dtype: Dtype = jnp.float32

    def setup(self) -> None:
        c = self.config
        self.encoder = Encoder(c, self.dtype)
        self.decoder = Decoder(c, self.dtype)
        self.quant_conv = conv(2 * c.latent_channels, 1, name="quant_conv", dtype=self.dtype)
        self.post_quant_conv = conv(c.latent_channels, 1, name="post_quant_conv", dtype=self.dtype)

    def encode(
        self, images: Float[jax.Array, "B H W Cin"]
    ) -> tuple[Float[jax.Array, "B h w C"], Float[jax.Array, "B h w C"]]:
        """Images in [-1, 1] -> mean and log variance of the posterior.

        Raises UserError where H or W do not divide by `config.multiple`.
        """
        height, width = images.shape[1:3]
        if height % self.config.multiple or width % self.config.multiple:
            raise UserError(
                f"the images are {height} x {width}; this VAE takes heights and widths that are multiples of "
                f"{self.config.multiple}"
            )
        moments = self.quant_conv(self.encoder(images.astype(self.dtype)))
        mean, logvar = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(logvar, -30.0, 20.0)

    def decode(self, latents: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B H W Cout"]:
        """Unscaled latents -> images, around [-1, 1]."""
        return self.decoder(self.post_quant_conv(latents.astype(self.dtype)))

    def __call__(self, images: Float[jax.Array, "B H W C"], key: jax.Array) -> Float[jax.Array, "B H W C"]:
        """Images through a sample of their posterior and back."""
        mean, logvar = self.encode(images)
        return self.decode(mean + jnp.exp(0.5 * logvar) * jax.random.normal(key, mean.shape, mean.dtype))
