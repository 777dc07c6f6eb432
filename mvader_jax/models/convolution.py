"""Square convolutions, NHWC, each in the form that its platform computes fastest; all give the same to rounding."""

from __future__ import annotations

import contextlib
import contextvars
import math
from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float

from mvader_jax.models.attention_kernels import current_platform
from mvader_jax.parallel.sharding import constrain, gathered, mesh_axes, partitioned

Dtype = Any
_KERNEL = nn.initializers.lecun_normal()
#: Of a picture [B, H, W, C] whose columns are the batch: a kernel slides over pictures (a size of 1) and rows.
_COLUMNS = jax.lax.ConvDimensionNumbers((2, 3, 0, 1), (3, 2, 0, 1), (2, 3, 0, 1))
#: Strips that XLA for TPUs (libtpu 0.0.42) cuts a picture in, where a device has fewer pictures than this.
_STRIPS = 8
_plainly: contextvars.ContextVar[bool] = contextvars.ContextVar("plainly", default=False)


@contextlib.contextmanager
def plainly() -> Iterator[None]:
    """Convolutions are traced as anyone writes them, and as MaxDiffusion's are: what the other forms are measured against."""
    token = _plainly.set(True)
    try:
        yield
    finally:
        _plainly.reset(token)


class Conv(nn.Module):
    """A square convolution: [B, h, w, C] -> [B, h / stride, w / stride, features].

    padding: rows and columns of zeros before and after; size // 2 of each where None.
    doubled: of x at twice its height and width, each value four times (nearest neighbour); of stride 1.

    Its activations stay sharded by batch alone. Left to itself, XLA's partitioner (jax 0.10) gives a
    convolution whose channels are sharded, forward or backward, the rows of another device on a mesh
    with data, fsdp and tensor axes, and the numbers are silently wrong.
    """

    features: int
    size: int
    stride: int = 1
    padding: tuple[int, int] | None = None
    doubled: bool = False
    dtype: Dtype = jnp.float32

    @nn.compact
    def __call__(self, x: Float[jax.Array, "B h w C"]) -> Float[jax.Array, "B _ _ F"]:
        init = partitioned(_KERNEL, "kernel", "kernel", "channels_in", "channels_out")
        kernel = self.param("kernel", init, (self.size, self.size, x.shape[-1], self.features), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, (self.features,), jnp.float32)
        same = (self.size // 2, self.size // 2)
        pad = same if self.padding is None else self.padding
        x, platform = _pin(x.astype(self.dtype)), "plain" if _plainly.get() else current_platform()
        width = x.shape[2] * (1 + self.doubled)
        columns = platform == "tpu" and self.stride == 1 and self.size == 3 and pad == same
        columns = columns and _cut(x.shape[0], width)
        if self.doubled:
            x = _pin(jnp.repeat(_twice(x) if columns else jnp.repeat(x, 2, axis=2), 2, axis=1))
        kernel = kernel.astype(self.dtype)
        if self.stride == 1 and _better_as_product(platform, x, self.size):
            y = _as_product(x, kernel, pad)
        elif columns:
            y = by_columns(x, kernel)
        else:
            y = jax.lax.conv_general_dilated(
                x,
                kernel,
                window_strides=(self.stride, self.stride),
                padding=(pad, pad),
                dimension_numbers=("NHWC", "HWIO", "NHWC"),
            )
        return _pin(y + bias.astype(self.dtype))


def conv(features: int, size: int, *, name: str, dtype: Dtype) -> Conv:
    """A convolution of stride 1 that keeps the size."""
    return Conv(features, size, dtype=dtype, name=name)


def _better_as_product(platform: str, x: jax.Array, size: int) -> bool:
    """Whether one product of all patches beats XLA's convolution.

    Of size 1: XLA for TPUs turns a convolution's pictures in memory, or cuts them, and no product's (docs/planning.md).
    On CPUs also where the patches are few, measured at 4 to 4096 positions of 64 to 2560 channels (docs/speed.md).
    """
    few = x.shape[1] * x.shape[2] <= x.shape[3] // 4
    return (size == 1 and platform in ("cpu", "tpu")) or (few and platform == "cpu")


def _as_product(x: jax.Array, kernel: jax.Array, pad: tuple[int, int]) -> jax.Array:
    """The convolution of stride 1 as patches [B, h, w, size^2 C] times the kernel [size^2 C, features]."""
    size = kernel.shape[0]
    x = jnp.pad(x, ((0, 0), pad, pad, (0, 0)))
    height, width = x.shape[1] - size + 1, x.shape[2] - size + 1
    shifts = [x[:, i : i + height, j : j + width] for i in range(size) for j in range(size)]
    return jnp.concatenate(shifts, axis=-1) @ kernel.reshape(-1, kernel.shape[-1])


def _cut(pictures: int, width: int) -> bool:
    """Whether XLA for TPUs would cut pictures in strips: where they are few, and wide enough."""
    mesh = jax.sharding.get_abstract_mesh()
    ways = math.prod(mesh.shape.get(axis, 1) for axis in mesh_axes("batch"))
    return pictures < _STRIPS * ways and width > _STRIPS


@jax.custom_vjp
def by_columns(
    x: Float[jax.Array, "B h w C"], kernel: Float[jax.Array, "N N C F"]
) -> Float[jax.Array, "B h w F"]:
    """The convolution of odd size N and stride 1 that keeps the size of x, for TPUs (docs/planning.md).

    A TPU multiplies matrices of channels and the one axis next to them, for which XLA takes the batch: where that is
    small it cuts pictures in strips until it has more of them, and turns every picture in memory. Here the columns are
    the batch, as they lie: taps along the width are channels of shifted copies. The gradients keep x, not the copies.
    """
    return _by_columns(x, kernel)


def _by_columns(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The convolution itself: inside a function with derivatives of its own, remat's policies would not see it."""
    size, out = kernel.shape[0], kernel.shape[-1]
    return jax.lax.conv_general_dilated(
        _taps(x, size),
        kernel.reshape(1, size, -1, out),
        window_strides=(1, 1),
        padding=((0, 0), (size // 2, size // 2)),
        dimension_numbers=_COLUMNS,
    )


def _taps(x: jax.Array, size: int) -> jax.Array:
    """What `size` taps along the width see at each position, side by side: [B, h, w, size C]."""
    width = x.shape[2]
    x = jnp.pad(x, ((0, 0), (0, 0), (size // 2, size // 2), (0, 0)))
    return jnp.concatenate([x[:, :, i : i + width] for i in range(size)], axis=-1)


def _by_columns_forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _by_columns(x, kernel), (x, kernel)


def _by_columns_backward(kept: tuple[jax.Array, jax.Array], g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    size, height = kernel.shape[0], x.shape[1]
    taps, rows = _taps(x, size), []
    # The name under which a plan counts a convolution's products.
    with jax.named_scope("conv_general_dilated"):
        for below in range(-(size // 2), size // 2 + 1):  # how far the row of x that g meets is below its own
            seen = taps[:, max(below, 0) : height + min(below, 0)]
            rows.append(jnp.einsum("bhwc,bhwf->cf", seen, g[:, max(-below, 0) : height - max(below, 0)]))
    turned = gathered(kernel[::-1, ::-1], "kernel", "kernel", "channels_in", "channels_out").swapaxes(2, 3)
    return _by_columns(g, turned), jnp.stack(rows).reshape(kernel.shape)


by_columns.defvjp(_by_columns_forward, _by_columns_backward)


def _twice(x: jax.Array) -> jax.Array:
    """Every column twice, [B, h, 2 w, C]: exactly, by a product, for which a TPU takes less time than for moving them."""
    ones = jnp.repeat(jnp.eye(x.shape[2], dtype=x.dtype), 2, axis=0)
    return jnp.einsum("vw,bhwc->bhvc", ones, x, precision="highest")


def _pin(x: jax.Array) -> jax.Array:
    return constrain(x, "batch", "sequence", "sequence", "activation")
