"""Model FLOPs counted from a trace, against counts by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvader_jax.condition import Condition
from mvader_jax.models.unet import UNet, UNetConfig
from mvader_jax.parallel.sharding import abstract_init
from mvader_jax.train.flops import count_flops, peak_flops, valid_taps

X = jnp.zeros((4, 8))
W = jnp.zeros((8, 8))


def test_products_loops_and_derivatives() -> None:
    product = 2 * 4 * 8 * 8
    assert count_flops(jax.make_jaxpr(lambda x, w: x @ w)(X, W)) == product
    assert count_flops(jax.make_jaxpr(jax.jit(lambda x, w: jnp.tanh(x) @ w))(X, W)) == product

    def loop(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda c, _: (c @ w, None), x, None, length=5)[0]

    assert count_flops(jax.make_jaxpr(loop)(X, W)) == 5 * product
    # Backward: one product for each of the two gradients.
    assert count_flops(jax.make_jaxpr(jax.grad(lambda w: loop(X, w).sum()))(W)) == 3 * 5 * product
    # A frozen matrix has no gradient, and a chosen branch counts once.
    branch = jax.make_jaxpr(lambda x, w: jax.lax.cond(x[0, 0] > 0, lambda: x @ w, lambda: x))(X, W)
    assert count_flops(branch) == product


def test_a_loop_without_a_count_that_multiplies_is_refused() -> None:
    def loop(x: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: jnp.sum(x) > 0, lambda x: x @ W, x)

    with pytest.raises(ValueError, match="how often it runs cannot be counted"):
        count_flops(jax.make_jaxpr(loop)(X))
    assert count_flops(jax.make_jaxpr(lambda x: jax.lax.while_loop(jnp.any, lambda x: x - 1, x))(X)) == 0


def test_convolutions() -> None:
    x, kernel = jnp.zeros((2, 8, 8, 3)), jnp.zeros((3, 3, 3, 16))

    def conv(x: jax.Array, kernel: jax.Array, stride: int = 1) -> jax.Array:
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(x, kernel, (stride, stride), "SAME", dimension_numbers=numbers)

    one = 2 * 2 * 8 * 8 * 16 * 9 * 3
    assert count_flops(jax.make_jaxpr(conv)(x, kernel)) == one
    assert count_flops(jax.make_jaxpr(lambda x, k: conv(x, k, 2))(x, kernel)) == one / 4
    # Of the 3 x 24 taps along a side two fall on the padding.
    assert count_flops(jax.make_jaxpr(conv)(x, kernel), padding=False) == pytest.approx(one * (22 / 24) ** 2)
    both = jax.make_jaxpr(jax.grad(lambda x, k: conv(x, k, 2).sum(), argnums=(0, 1)))(x, kernel)
    assert count_flops(both) == pytest.approx(3 * one / 4, rel=0.02)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "pad", "dilated", "spread"),
    [(8, 3, 1, 1, 1, 1), (8, 3, 2, 1, 1, 1), (5, 3, 1, 2, 2, 1), (7, 4, 1, 3, 1, 2), (16, 16, 1, 1, 1, 1)],
)
def test_taps_on_padding_are_no_work(
    size: int, kernel: int, stride: int, pad: int, dilated: int, spread: int
) -> None:
    end = (size - 1) * dilated + 1
    out = (end + 2 * pad - ((kernel - 1) * spread + 1)) // stride + 1
    positions = np.arange(out)[:, None] * stride + np.arange(kernel)[None, :] * spread - pad
    by_hand = np.sum((positions >= 0) & (positions < end) & (positions % dilated == 0))
    assert valid_taps(size, kernel, out, stride, pad, dilated, spread) == by_hand


def test_peaks() -> None:
    assert peak_flops("TPU v5 lite") == 197e12
    assert peak_flops("TPU v5p") == peak_flops("TPU v5") == 459e12
    assert peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert peak_flops("cpu") is None
    # Of a device: JAX shows a chip of TPU7x as two.
    assert peak_flops("TPU7x") == 2307e12 / 2


@pytest.mark.slow
def test_stable_diffusions_unet_is_the_hand_count() -> None:
    """64x64 latents, 77 x 768 context: 0.803 TFLOP a sample forward, 2.42 forward and backward."""
    unet = UNet(UNetConfig.sd14())
    inputs = (
        jax.ShapeDtypeStruct((1, 64, 64, 4), jnp.float32),
        jax.ShapeDtypeStruct((1,), jnp.int32),
        Condition(
            jax.ShapeDtypeStruct((1, 77, 768), jnp.float32), jax.ShapeDtypeStruct((1, 77), jnp.float32)
        ),
    )
    params, _ = abstract_init(unet, *jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), inputs))

    def forward(params: object, *inputs: object) -> jax.Array:
        return unet.apply({"params": params}, *inputs)

    assert count_flops(jax.make_jaxpr(forward)(params, *inputs)) == pytest.approx(0.803e12, rel=0.01)
    backward = jax.make_jaxpr(jax.grad(lambda p, *i: forward(p, *i).sum()))(params, *inputs)
    assert count_flops(backward) == pytest.approx(2.42e12, rel=0.02)
