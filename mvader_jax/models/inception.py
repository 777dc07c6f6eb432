"""InceptionV3 as FID measures with it: TensorFlow's network of 2015-12-05, with its own pools (mseitzer/pytorch-fid).

It differs from the later Inception of torchvision: average pools leave padding out of the mean, the last block pools
by the maximum, and there are 1008 classes. Module names are torchvision's.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from mvader_jax.bounds import Bound, PositiveInt
from mvader_jax.parallel.sharding import constrain, partitioned
from mvader_jax.settings import Checked

Dtype = Any
_EPS = 1e-3
#: (name, features, kernel, stride, "SAME" or "VALID") of a convolution.
Conv = tuple[str, int, tuple[int, int], int, str]
_DIVIDES = Bound(lambda x: x in (1, 2, 4, 8, 16), "1, 2, 4, 8 or 16")


@dataclasses.dataclass(frozen=True)
class InceptionConfig(Checked):
    """classes: logits. divisor: every layer has so many times fewer channels than the public network."""

    classes: PositiveInt = 1008
    divisor: Annotated[int, _DIVIDES] = 1

    @property
    def width(self) -> int:
        """Features of a picture."""
        return 2048 // self.divisor

    @property
    def image_size(self) -> int:
        """Pixels per side that the network was made for; FID resizes every picture to them."""
        return 299

    @classmethod
    def tiny(cls) -> InceptionConfig:
        """The same graph with 128 features."""
        return cls(classes=63, divisor=16)


def _conv(name: str, features: int, *kernel: int, stride: int = 1, padding: str = "SAME") -> Conv:
    return name, features, (kernel[0], kernel[-1]), stride, padding


#: Before the blocks; None is a maximum over 3 x 3 with stride 2.
_STEM: tuple[Conv | None, ...] = (
    _conv("Conv2d_1a_3x3", 32, 3, stride=2, padding="VALID"),
    _conv("Conv2d_2a_3x3", 32, 3, padding="VALID"),
    _conv("Conv2d_2b_3x3", 64, 3),
    None,
    _conv("Conv2d_3b_1x1", 80, 1),
    _conv("Conv2d_4a_3x3", 192, 3, padding="VALID"),
    None,
)


@dataclasses.dataclass(frozen=True)
class _Block:
    """What is concatenated: chains of convolutions, each perhaps ending in several side by side (`forks`, by the
    chain's number), and a pool: "mean" or "max" of stride 1 before a convolution, or "reduce", which halves."""

    chains: tuple[tuple[Conv, ...], ...]
    pool: str
    pooled: int = 0
    forks: tuple[tuple[int, tuple[Conv, ...]], ...] = ()


def _a(pooled: int) -> _Block:
    chains = (
        (_conv("branch1x1", 64, 1),),
        (_conv("branch5x5_1", 48, 1), _conv("branch5x5_2", 64, 5)),
        (_conv("branch3x3dbl_1", 64, 1), _conv("branch3x3dbl_2", 96, 3), _conv("branch3x3dbl_3", 96, 3)),
    )
    return _Block(chains, "mean", pooled)


def _b() -> _Block:
    last = _conv("branch3x3dbl_3", 96, 3, stride=2, padding="VALID")
    chains = (
        (_conv("branch3x3", 384, 3, stride=2, padding="VALID"),),
        (_conv("branch3x3dbl_1", 64, 1), _conv("branch3x3dbl_2", 96, 3), last),
    )
    return _Block(chains, "reduce")


def _c(inner: int) -> _Block:
    double = [_conv("branch7x7dbl_1", inner, 1)]
    double += [_conv(f"branch7x7dbl_{i}", inner, *((7, 1), (1, 7))[i % 2]) for i in (2, 3, 4)]
    chains = (
        (_conv("branch1x1", 192, 1),),
        (_conv("branch7x7_1", inner, 1), _conv("branch7x7_2", inner, 1, 7), _conv("branch7x7_3", 192, 7, 1)),
        (*double, _conv("branch7x7dbl_5", 192, 1, 7)),
    )
    return _Block(chains, "mean", 192)


def _d() -> _Block:
    wide = (_conv("branch7x7x3_2", 192, 1, 7), _conv("branch7x7x3_3", 192, 7, 1))
    chains = (
        (_conv("branch3x3_1", 192, 1), _conv("branch3x3_2", 320, 3, stride=2, padding="VALID")),
        (_conv("branch7x7x3_1", 192, 1), *wide, _conv("branch7x7x3_4", 192, 3, stride=2, padding="VALID")),
    )
    return _Block(chains, "reduce")


def _e(pool: str) -> _Block:
    chains = (
        (_conv("branch1x1", 320, 1),),
        (_conv("branch3x3_1", 384, 1),),
        (_conv("branch3x3dbl_1", 448, 1), _conv("branch3x3dbl_2", 384, 3)),
    )

    def fork(name: str) -> tuple[Conv, ...]:
        return _conv(f"{name}a", 384, 1, 3), _conv(f"{name}b", 384, 3, 1)

    return _Block(chains, pool, 192, ((1, fork("branch3x3_2")), (2, fork("branch3x3dbl_3"))))


_BLOCKS = {
    "Mixed_5b": _a(32),
    "Mixed_5c": _a(64),
    "Mixed_5d": _a(64),
    "Mixed_6a": _b(),
    "Mixed_6b": _c(128),
    "Mixed_6c": _c(160),
    "Mixed_6d": _c(160),
    "Mixed_6e": _c(192),
    "Mixed_7a": _d(),
    "Mixed_7b": _e("mean"),
    "Mixed_7c": _e("max"),
}


class ConvNorm(nn.Module):
    """A convolution, batch norm on stored statistics, ReLU. The norm is folded into the kernel.

    average: of a 1x1 convolution that reads averages of 3 x 3 pixels: they are taken of what it gives, which has fewer
    channels.
    """

    features: int
    kernel: tuple[int, int]
    stride: int
    padding: str
    dtype: Dtype
    average: bool = False

    @nn.compact
    def __call__(self, x: Float[jax.Array, "N H W C"]) -> Float[jax.Array, "N h w D"]:
        init = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
        axes = ("kernel", "kernel", "channels_in", "channels_out")
        shape = (*self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", partitioned(init, *axes), shape)
        width, ones, zeros = (self.features,), nn.initializers.ones, nn.initializers.zeros
        scale, bias = self.param("scale", ones, width), self.param("bias", zeros, width)
        mean, var = self.param("mean", zeros, width), self.param("var", ones, width)
        gain = scale * jax.lax.rsqrt(var + _EPS)
        y = self._product(x, (kernel * gain).astype(self.dtype)) + (bias - mean * gain).astype(self.dtype)
        return nn.relu(_average(y) if self.average else y)

    def _product(
        self, x: Float[jax.Array, "N H W C"], kernel: Float[jax.Array, "a b C D"]
    ) -> Float[jax.Array, "N h w D"]:
        if self.kernel == (1, 1):
            return _pin(_pin(x) @ kernel[0, 0])
        # XLA's convolution for CPUs takes up to five times as long where it does not keep the size.
        kept = self.padding == "VALID" and self.stride == 1
        y = jax.lax.conv_general_dilated(
            _pin(x),
            kernel,
            (self.stride, self.stride),
            "SAME" if kept else self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return _pin(y[:, 1:-1, 1:-1] if kept else y)


def _pin(x: jax.Array) -> jax.Array:
    return constrain(x, "batch", "sequence", "sequence", "activation")


class Inception(nn.Module):
    """Pixels of -1 to 1, [N, 299, 299, 3] -> (features of the last pool, logits)."""

    config: InceptionConfig
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(
        self, pixels: Float[jax.Array, "N H W 3"]
    ) -> tuple[Float[jax.Array, "N C"], Float[jax.Array, "N K"]]:
        x = pixels.astype(self.dtype)
        for conv in _STEM:
            x = _reduce(x) if conv is None else self._conv(conv)(x)
        for name, block in _BLOCKS.items():
            x = self._block(name, block, x)
        features = x.astype(jnp.float32).mean(axis=(1, 2))
        init = partitioned(nn.initializers.lecun_normal(), "channels_in", "channels_out")
        return features, nn.Dense(self.config.classes, kernel_init=init, name="fc")(features)

    def _conv(self, conv: Conv, block: str = "", *, average: bool = False) -> ConvNorm:
        name, features, kernel, stride, padding = conv
        where = f"{block}_{name}" if block else name
        width = features // self.config.divisor
        return ConvNorm(width, kernel, stride, padding, self.dtype, average, name=where)

    def _block(self, name: str, block: _Block, x: jax.Array) -> jax.Array:
        forks, outputs = dict(block.forks), []
        for number, chain in enumerate(block.chains):
            y = x
            for conv in chain:
                y = self._conv(conv, name)(y)
            outputs += [self._conv(conv, name)(y) for conv in forks[number]] if number in forks else [y]
        if block.pool == "reduce":
            outputs.append(_reduce(x))
        else:
            average = block.pool == "mean"
            pooled = x if average else nn.max_pool(x, (3, 3), padding="SAME")
            outputs.append(self._conv(_conv("branch_pool", block.pooled, 1), name, average=average)(pooled))
        return jnp.concatenate(outputs, axis=-1)


def _reduce(x: jax.Array) -> jax.Array:
    return nn.max_pool(x, (3, 3), (2, 2))


def _average(x: jax.Array) -> jax.Array:
    """Of 3 x 3 pixels, of those alone that are there."""
    return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)
