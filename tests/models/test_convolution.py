"""Convolutions: each platform's form gives the numbers and the gradients of the plain one."""

from __future__ import annotations

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mvader_jax.models import convolution
from mvader_jax.models.convolution import Conv, by_columns, plainly
from mvader_jax.models.remat import Remat, rematerialised
from mvader_jax.models.unet_blocks import Upsample
from mvader_jax.parallel.mesh import MeshConfig, make_mesh
from mvader_jax.parallel.pods import parse_topology
from mvader_jax.parallel.sharding import MESH_AXES, abstract_init
from mvader_jax.plan.compile import effort_option
from mvader_jax.plan.topology import devices
from mvader_jax.train.flops import count_flops


@pytest.mark.parametrize(("side", "width", "channels", "size"), [(5, 3, 64, 3), (4, 4, 64, 3), (9, 7, 6, 1)])
def test_a_convolution_as_a_product_is_the_convolution(
    monkeypatch: pytest.MonkeyPatch, side: int, width: int, channels: int, size: int
) -> None:
    module = Conv(10, size)
    x = jax.random.normal(jax.random.key(0), (2, side, width, channels))
    params = nn.meta.unbox(module.init(jax.random.key(1), x))

    def both(params: Any, x: jax.Array) -> Any:
        # A new function each time: jit would give back the program of the other way.
        return jax.jit(jax.value_and_grad(lambda p, x: jnp.sum(jnp.sin(module.apply(p, x))), (0, 1)))(
            params, x
        )

    assert "conv_general_dilated" not in str(jax.make_jaxpr(lambda x: module.apply(params, x))(x))
    product = both(params, x)
    monkeypatch.setattr(convolution, "current_platform", lambda: "gpu")
    assert "conv_general_dilated" in str(jax.make_jaxpr(lambda x: module.apply(params, x))(x))
    for a, b in zip(jax.tree.leaves(product), jax.tree.leaves(both(params, x)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_doubled_picture_of_few_is_the_repeated_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a TPU: the picture bit for bit, the convolution's numbers and gradients."""
    rng = np.random.default_rng(4)
    x = jnp.asarray(rng.normal(size=(2, 8, 6, 5)), jnp.float32)
    upsample = Upsample(7)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32),
        abstract_init(upsample, x)[0],
    )
    assert np.array_equal(convolution._twice(x), jnp.repeat(x, 2, axis=2))

    def found(platform: str) -> Any:
        monkeypatch.setattr(convolution, "current_platform", lambda: platform)

        def total(params: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
            y = upsample.apply({"params": params}, x)
            return jnp.sum(y * jnp.cos(jnp.arange(y.size).reshape(y.shape))), y

        return jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(params, x)

    want, got = found("cpu"), found("tpu")
    assert got[1].shape == (2, 16, 12, 7)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), got, want)


def plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    pad = (kernel.shape[0] // 2,) * 2
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), (pad, pad), dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@pytest.mark.parametrize(("shape", "size"), [((2, 5, 4, 6), 3), ((3, 1, 2, 4), 3), ((1, 4, 7, 3), 5)])
def test_columns_as_the_batch_are_the_convolution(shape: tuple[int, ...], size: int) -> None:
    rng = np.random.default_rng(6)
    x = jnp.asarray(rng.normal(size=shape), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(size, size, shape[-1], 7)), jnp.float32)

    def both(convolve: Any) -> Any:
        return jax.jit(jax.value_and_grad(lambda *of: jnp.sum(jnp.sin(convolve(*of))), (0, 1)))(x, kernel)

    check = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(check, both(by_columns), both(plain))


def test_gradients_keep_what_was_convolved_and_no_copies() -> None:
    x, kernel = jnp.ones((2, 8, 8, 16)), jnp.ones((3, 3, 16, 16))
    _, back = jax.vjp(by_columns, x, kernel)
    assert sum(leaf.size for leaf in jax.tree.leaves(back)) == x.size + kernel.size


def test_remat_of_products_keeps_the_convolution() -> None:
    class Wave(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array, kernel: jax.Array) -> jax.Array:
            return jnp.sum(jnp.sin(by_columns(jnp.sin(x), kernel)))

    def products(remat: Remat) -> float:
        wave = rematerialised(Wave, remat)()
        gradients = jax.grad(lambda *of: wave.apply({}, *of), (0, 1))
        return count_flops(jax.make_jaxpr(gradients)(jnp.ones((1, 4, 4, 2)), jnp.ones((3, 3, 2, 2))))

    assert products("products") == products("none") < products("blocks")


def test_a_tpu_takes_columns_where_pictures_are_few_and_wide_and_keep_their_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken: list[tuple[int, ...]] = []

    def counted(x: jax.Array, kernel: jax.Array) -> jax.Array:
        taken.append(kernel.shape)
        return by_columns(x, kernel)

    monkeypatch.setattr(convolution, "by_columns", counted)
    modules = [Conv(4, 3), Conv(4, 1), Conv(4, 3, stride=2), Conv(4, 3, padding=(0, 1))]

    def shapes(pictures: int, width: int = 9) -> list[tuple[int, ...]]:
        taken.clear()
        for module in modules:
            abstract_init(module, jnp.ones((pictures, 4, width, 5)))
        return list(taken)

    assert shapes(1) == []
    monkeypatch.setattr(convolution, "current_platform", lambda: "tpu")
    assert shapes(1) == shapes(7) == [(3, 3, 5, 4)]
    assert shapes(8) == shapes(1, width=8) == []
    with jax.set_mesh(Mesh(np.array(jax.devices()).reshape(1, 2, 2, 2), MESH_AXES)):
        assert shapes(28) == [(3, 3, 5, 4)] and shapes(32) == []
    with plainly():
        assert shapes(1) == []


@pytest.mark.parametrize("doubled", [True, False], ids=["doubled", "as it is"])
def test_columns_move_the_kernel_between_chips_and_no_picture(doubled: bool) -> None:
    """Of the compiled gradients: left to itself, XLA gathers the pictures of all chips on every one, forms their columns
    there, and turns narrow slices of the kernel round the chips instead of gathering it."""
    mesh = make_mesh(MeshConfig(fsdp=4), devices(parse_topology("v5e:2x2")))

    def shape(*dims: int, cut: int | None = None) -> jax.ShapeDtypeStruct:
        spec = PartitionSpec(*("fsdp" if axis == cut else None for axis in range(len(dims))))
        return jax.ShapeDtypeStruct(dims, jnp.float32, sharding=NamedSharding(mesh, spec))

    params = {"kernel": shape(3, 3, 256, 128, cut=2), "bias": shape(128)}
    x = shape(8, 16, 16, 256, cut=0)
    module = Conv(128, 3, doubled=doubled, dtype=jnp.bfloat16)

    def total(params: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(module.apply({"params": params}, x).astype(jnp.float32) ** 2)

    with jax.set_mesh(mesh):
        places = jax.tree.map(lambda leaf: leaf.sharding, (params, x))
        lowered = (
            jax.jit(jax.grad(total, (0, 1)), out_shardings=places)
            .trace(params, x)
            .lower(lowering_platforms=("tpu",))
        )
        text = lowered.compile(compiler_options=effort_option(-1.0)).as_text()
    moved = re.findall(
        r"= \(?\w+\[([\d,]*)\]\S* .*?(all-gather|all-to-all|collective-permute)(?:-start)?\(", text
    )
    assert moved == [("3,3,256,128", "all-gather")]
