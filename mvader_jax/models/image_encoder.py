"""CLIP's ModifiedResNet without its attention pool (openai/CLIP clip/model.py), NHWC.

Batch norm runs on stored statistics: they are parameters that nothing trains.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float

from mvader_jax.bounds import Bound, PositiveInt
from mvader_jax.parallel.sharding import constrain, partitioned
from mvader_jax.settings import Checked

Dtype = Any
_EPS = 1e-5
_STATISTICS = "statistics"
#: The network divides each side by 32.
_DIVIDES = Bound(lambda x: 0 < x <= 1 << 14 and x % 32 == 0, "a positive multiple of 32, at most 16384")


@dataclasses.dataclass(frozen=True)
class ImageEncoderConfig(Checked):
    """layers: blocks of the four stages; width: channels of the first; image_size: pixels a side."""

    layers: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (6, 8, 18, 8)
    width: PositiveInt = 96
    image_size: Annotated[int, _DIVIDES] = 384

    @property
    def num_tokens(self) -> int:
        """Tokens an image becomes: the network divides each side by 32."""
        return (self.image_size // 32) ** 2

    @property
    def token_width(self) -> int:
        return 32 * self.width

    @classmethod
    def rn50x16(cls) -> ImageEncoderConfig:
        """CLIP RN50x16 at 384 pixels: 144 tokens of 3072."""
        return cls()

    @classmethod
    def tiny(cls) -> ImageEncoderConfig:
        """16 tokens of 384; smaller pictures are enlarged to its 128 pixels."""
        return cls(layers=(1, 1, 1, 1), width=12, image_size=128)


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(var + eps) * scale + bias with stored mean and var.

    Where the collection "statistics" is mutable, the batch's own are used and kept there (`calibrate`).
    """

    zero_scale: bool = False

    @nn.compact
    def __call__(self, x: Float[jax.Array, "N H W C"]) -> Float[jax.Array, "N H W C"]:
        width = x.shape[-1:]
        ones, zeros = nn.initializers.ones, nn.initializers.zeros
        scale = self.param("scale", ones, width)
        bias = self.param("bias", zeros, width)
        mean = jax.lax.stop_gradient(self.param("mean", zeros, width))
        var = jax.lax.stop_gradient(self.param("var", ones, width))
        if self.is_mutable_collection(_STATISTICS):
            axes = tuple(range(x.ndim - 1))
            mean, var = jnp.mean(x.astype(jnp.float32), axes), jnp.var(x.astype(jnp.float32), axes)
            self.variable(_STATISTICS, "mean", lambda: mean).value = mean
            self.variable(_STATISTICS, "var", lambda: var).value = var
        gain = scale * jax.lax.rsqrt(var + _EPS)
        return x * gain.astype(x.dtype) + (bias - mean * gain).astype(x.dtype)


def _conv(
    features: int, size: int, name: str, dtype: Dtype, stride: int = 1
) -> Callable[[jax.Array], jax.Array]:
    """A convolution whose activations stay sharded by batch alone (see `convolution.Conv` for why)."""
    pad = size // 2
    init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
    module = nn.Conv(
        features,
        (size, size),
        strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        kernel_init=partitioned(init, "kernel", "kernel", "channels_in", "channels_out"),
        dtype=dtype,
        name=name,
    )
    return lambda x: _pin(module(_pin(x)))


def _pin(x: jax.Array) -> jax.Array:
    return constrain(x, "batch", "sequence", "sequence", "activation")


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 to four times the width; strides are average pools (anti-aliased)."""

    width: int
    stride: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[jax.Array, "N H W C"]) -> Float[jax.Array, "N h w D"]:
        y = nn.relu(BatchNorm(name="bn1")(_conv(self.width, 1, "conv1", self.dtype)(x)))
        y = nn.relu(BatchNorm(name="bn2")(_conv(self.width, 3, "conv2", self.dtype)(y)))
        y = _pool(y, self.stride)
        y = BatchNorm(name="bn3")(_conv(4 * self.width, 1, "conv3", self.dtype)(y))
        if self.stride > 1 or x.shape[-1] != 4 * self.width:
            x = _conv(4 * self.width, 1, "downsample_0", self.dtype)(_pool(x, self.stride))
            x = BatchNorm(name="downsample_1")(x)
        return nn.relu(x + y)


class ImageEncoder(nn.Module):
    """Pixels [N, H, W, 3], normalised as CLIP's, to tokens [N, T, C], row by row."""

    config: ImageEncoderConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, pixels: Float[jax.Array, "N H W 3"]) -> Float[jax.Array, "N T C"]:
        c = self.config
        x = pixels.astype(self.dtype)
        for i, (features, stride) in enumerate(((c.width // 2, 2), (c.width // 2, 1), (c.width, 1)), start=1):
            x = nn.relu(BatchNorm(name=f"bn{i}")(_conv(features, 3, f"conv{i}", self.dtype, stride)(x)))
        x = _pool(x, 2)
        for stage, blocks in enumerate(c.layers):
            for i in range(blocks):
                stride = 2 if stage > 0 and i == 0 else 1
                x = Bottleneck(c.width * 2**stage, stride, self.dtype, name=f"layer{stage + 1}_{i}")(x)
        return x.reshape(x.shape[0], -1, x.shape[-1])


def calibrate(config: ImageEncoderConfig, params: Any, pixels: Float[jax.Array, "N H W 3"]) -> Any:
    """`params` with every batch norm's mean and variance set from a batch, for training from scratch.

    Each norm sees inputs that the norms before it have normalised already.
    """
    _, updated = ImageEncoder(config).apply({"params": params}, pixels, mutable=[_STATISTICS])
    return unflatten_dict({**flatten_dict(params), **flatten_dict(updated[_STATISTICS])})


def _pool(x: jax.Array, stride: int) -> jax.Array:
    return x if stride == 1 else nn.avg_pool(x, (stride, stride), (stride, stride))
