"""The UNet: sizes, the order of its cross-attentions, log weights and factors, remat, sharding."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from mvader_jax.condition import PADDING, SUPPRESSED, Condition, pad
from mvader_jax.errors import UserError
from mvader_jax.models import unet_blocks
from mvader_jax.models.attention import attend
from mvader_jax.models.unet import UNet, UNetConfig, cross_attention_paths
from mvader_jax.models.unet_blocks import GroupNorm
from mvader_jax.parallel.sharding import (
    MESH_AXES,
    abstract_init,
    batch_sharding,
    init_params,
    param_shardings,
)

SMALL = UNetConfig(4, 4, (16, 24), 1, (True, True), 20, (2, 3), 4, 1e-5, 8)
ROWS, LENGTH = 2, 6


def condition_of(config: UNetConfig, rows: int = ROWS, length: int = LENGTH) -> Condition:
    hidden = jax.random.normal(jax.random.key(5), (rows, length, config.cross_attention_dim))
    return Condition(hidden, jnp.zeros((rows, length)))


def shapes(config: UNetConfig) -> Mapping[tuple[str, ...], Any]:
    latents = jnp.zeros((1, 8, 8, config.in_channels))
    return flatten_dict(abstract_init(UNet(config), latents, jnp.zeros(1), condition_of(config, 1, 2))[0])


def count(tree: Mapping[tuple[str, ...], Any]) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in tree.values())


@pytest.fixture(scope="module")
def latents() -> jax.Array:
    return jax.random.normal(jax.random.key(2), (ROWS, 4, 6, 4))


@pytest.fixture(scope="module")
def params(latents: jax.Array) -> Any:
    return init_params(UNet(SMALL), jax.random.key(1), latents, jnp.zeros(ROWS), condition_of(SMALL))


TIMESTEPS = jnp.array([981, 3])
apply = jax.jit(
    lambda params, latents, condition: UNet(SMALL).apply({"params": params}, latents, TIMESTEPS, condition)
)


def test_stable_diffusion_has_its_number_of_parameters() -> None:
    tree = shapes(UNetConfig.sd14())
    assert count(tree) == 859_520_964
    assert tree["down_blocks_0", "attentions_0", "transformer_blocks_0", "attn2", "to_k", "kernel"].shape == (
        768,
        320,
    )
    assert tree["up_blocks_1", "upsamplers_0", "conv", "kernel"].shape == (3, 3, 1280, 1280)


@pytest.mark.parametrize(("width", "total"), [(768, 19_169_280), (4096, 102_236_160), (5120, 127_795_200)])
def test_cross_attentions_of_stable_diffusion(width: int, total: int) -> None:
    config = UNetConfig(cross_attention_dim=width)
    paths = cross_attention_paths(config)
    tree = shapes(config)
    keys_and_values = {
        k: v for k, v in tree.items() if "/".join(k[:-2]) in paths and k[-2] in ("to_k", "to_v")
    }
    assert len(keys_and_values) == 2 * len(paths) == 32
    assert count(keys_and_values) == total
    widths = [tree[(*path.split("/"), "to_k", "kernel")].shape[1] for path in paths]
    assert widths == [320, 320, 640, 640, 1280, 1280, 1280, 1280, 1280, 1280, 640, 640, 640, 320, 320, 320]


def test_tiny_is_small_enough_for_a_cpu() -> None:
    assert 3e6 < count(shapes(UNetConfig.tiny())) < 6e6


def test_paths_where_a_level_has_no_attention() -> None:
    config = UNetConfig(
        block_out_channels=(16, 24), attention=(False, True), layers_per_block=1, norm_groups=8
    )
    assert cross_attention_paths(config) == [
        "down_blocks_1/attentions_0/transformer_blocks_0/attn2",
        "mid_block/attentions_0/transformer_blocks_0/attn2",
        "up_blocks_0/attentions_0/transformer_blocks_0/attn2",
        "up_blocks_0/attentions_1/transformer_blocks_0/attn2",
    ]


def test_every_kernel_names_its_axes() -> None:
    example = (jnp.zeros((1, 8, 8, 4)), jnp.zeros(1), condition_of(SMALL, 1, 2))
    abstract, names = abstract_init(UNet(SMALL), *example)
    for path, leaf in flatten_dict(abstract).items():
        assert leaf.ndim < 2 or None not in flatten_dict(names)[path], path
    mesh = Mesh(np.array(jax.devices()).reshape(1, 1, 4, 2), MESH_AXES)
    full = UNetConfig.sd14()
    abstract, names = abstract_init(UNet(full), *example[:2], condition_of(full, 1, 2))
    sharding = param_shardings(abstract, names, mesh)["mid_block"]["resnets_0"]["conv1"]["kernel"]
    assert sharding.shard_shape((3, 3, 1280, 1280)) == (3, 3, 320, 640)


def test_factors_count_in_the_order_of_execution(params: Any, latents: jax.Array) -> None:
    """With one cross-attention heard at a time, the eps depends on that row of the factors alone."""
    flat = flatten_dict(params, sep="/")
    paths = cross_attention_paths(SMALL)
    heads = 6  # room for the widest level; a level reads as many as it has
    log_weights = jax.random.normal(jax.random.key(8), (ROWS, LENGTH))

    @jax.jit
    @jax.grad
    def gradient(factors: jax.Array, params: Any) -> jax.Array:
        condition = condition_of(SMALL).replace(log_weights=log_weights, factors=factors)
        return UNet(uniform).apply({"params": params}, latents, TIMESTEPS, condition).var()

    uniform = UNetConfig(4, 4, (12, 24), 1, (True, True), 20, heads, 4, 1e-5, 8)
    flat = flatten_dict(
        init_params(UNet(uniform), jax.random.key(1), latents, TIMESTEPS, condition_of(uniform)), sep="/"
    )
    for row, path in enumerate(paths):
        alone = {
            k: jnp.zeros_like(v) if "/attn2/to_out_0" in k and not k.startswith(path) else v
            for k, v in flat.items()
        }
        found = gradient(jnp.ones((len(paths), heads)), unflatten_dict(alone, sep="/"))
        assert list(np.flatnonzero(np.any(np.asarray(found) != 0, axis=1))) == [row]


def test_factors_of_one_and_zero(params: Any, latents: jax.Array) -> None:
    uniform = UNetConfig(4, 4, (16, 24), 1, (True, True), 20, 4, 4, 1e-5, 8)
    run = jax.jit(lambda condition: UNet(uniform).apply({"params": params}, latents, TIMESTEPS, condition))
    plain = condition_of(uniform)
    weighted = plain.replace(log_weights=jnp.zeros((ROWS, LENGTH)).at[:, 1].set(-2.0).at[:, 5].set(PADDING))
    padded = plain.replace(log_weights=jnp.zeros((ROWS, LENGTH)).at[:, 5].set(PADDING))
    ones = jnp.ones((len(cross_attention_paths(uniform)), 4))
    assert np.array_equal(run(weighted.replace(factors=ones)), run(weighted))
    assert np.array_equal(run(weighted.replace(factors=0 * ones)), run(padded))
    assert not np.array_equal(run(weighted), run(padded))


def test_weights_of_one_are_bitwise_no_weights(
    params: Any, latents: jax.Array, monkeypatch: pytest.MonkeyPatch
) -> None:
    weighted = apply(params, latents, condition_of(SMALL))

    def unweighted(q: jax.Array, k: jax.Array, v: jax.Array, **_: Any) -> jax.Array:
        return attend(q, k, v)

    monkeypatch.setattr(unet_blocks, "attend", unweighted)
    run = jax.jit(lambda *args: UNet(SMALL).apply({"params": params}, *args))
    assert np.array_equal(run(latents, TIMESTEPS, condition_of(SMALL)), weighted)


def test_padding_is_never_seen(params: Any, latents: jax.Array) -> None:
    short = condition_of(SMALL, length=4)
    long = pad(short, LENGTH)
    found = apply(params, latents, long)
    np.testing.assert_allclose(found, apply(params, latents, short), atol=1e-5)
    rubbish = long.replace(hidden=long.hidden.at[:, 4:].set(37.0))
    assert np.array_equal(apply(params, latents, rubbish), found)


def test_a_weight_of_zero_leaves_a_token_out(params: Any, latents: jax.Array) -> None:
    full = condition_of(SMALL)
    suppressed = full.replace(log_weights=full.log_weights.at[:, 1].set(SUPPRESSED))
    keep = np.array([0, 2, 3, 4, 5])
    without = Condition(full.hidden[:, keep], full.log_weights[:, keep])
    np.testing.assert_allclose(apply(params, latents, suppressed), apply(params, latents, without), atol=1e-5)
    all_zero = full.replace(log_weights=jnp.full((ROWS, LENGTH), SUPPRESSED))
    np.testing.assert_allclose(apply(params, latents, all_zero), apply(params, latents, full), atol=5e-3)


def test_a_weight_between_moves_between(params: Any, latents: jax.Array) -> None:
    full = condition_of(SMALL)

    def eps(theta: float) -> np.ndarray:
        return np.asarray(
            apply(params, latents, full.replace(log_weights=full.log_weights.at[:, 1].set(np.log(theta))))
        )

    out = np.asarray(
        apply(params, latents, full.replace(log_weights=full.log_weights.at[:, 1].set(SUPPRESSED)))
    )
    distances = [np.abs(eps(theta) - out).max() for theta in (1.0, 0.5, 0.1, 0.01)]
    assert distances == sorted(distances, reverse=True) and distances[-1] > 0


def test_remat_gives_the_same_gradients(params: Any, latents: jax.Array) -> None:
    def loss(remat: bool, params: Any) -> jax.Array:
        eps = UNet(SMALL, remat=remat).apply({"params": params}, latents, TIMESTEPS, condition_of(SMALL))
        return jnp.mean(eps**2)

    kept, again = (jax.jit(jax.grad(functools.partial(loss, remat)))(params) for remat in (False, True))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), again, kept)

    def blocks(remat: bool) -> int:
        return str(jax.make_jaxpr(jax.grad(functools.partial(loss, remat)))(params)).count("remat")

    # Every resnet (2 down, 2 middle, 4 up) and every transformer (2, 1, 4).
    assert blocks(False) == 0 and blocks(True) >= 15


def test_sharded_is_the_same(params: Any) -> None:
    mesh = Mesh(np.array(jax.devices()).reshape(1, 2, 2, 2), MESH_AXES)
    latents = jax.random.normal(jax.random.key(3), (8, 4, 6, 4))
    timesteps = jnp.arange(8) * 100
    condition = condition_of(SMALL, 8)
    _, names = abstract_init(UNet(SMALL), latents, timesteps, condition)
    placed = jax.device_put(params, param_shardings(params, names, mesh))
    batch = jax.tree.map(
        lambda x: jax.device_put(x, batch_sharding(mesh, x.ndim)), (latents, timesteps, condition)
    )
    run = jax.jit(lambda params, *inputs: UNet(SMALL).apply({"params": params}, *inputs))
    with jax.set_mesh(mesh):
        found = run(placed, *batch)
    np.testing.assert_allclose(found, run(params, latents, timesteps, condition), atol=1e-5)


def test_computes_in_bfloat16(params: Any, latents: jax.Array) -> None:
    exact = apply(params, latents, condition_of(SMALL))
    found = UNet(SMALL, dtype=jnp.bfloat16).apply({"params": params}, latents, TIMESTEPS, condition_of(SMALL))
    assert found.dtype == jnp.bfloat16
    assert 0 < np.abs(found.astype(np.float32) - exact).max() < 0.05 * np.abs(exact).max()


def test_group_norm_far_from_zero() -> None:
    """By the definition in float64, where E[x^2] - E[x]^2 in float32 would have no digit left."""
    x = np.random.default_rng(0).normal(3000.0, 1.0, (2, 5, 3, 12))
    groups = x.reshape(2, 15, 3, 4)
    expected = (groups - groups.mean((1, 3), keepdims=True)) / groups.std((1, 3), keepdims=True)
    params = {"scale": np.full(12, 2.0, np.float32), "bias": np.full(12, 0.5, np.float32)}
    found = GroupNorm(3, 1e-6).apply({"params": params}, jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(found, 2 * expected.reshape(x.shape) + 0.5, atol=5e-3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"attention": (True,)}, "names 1 levels and block_out_channels 2"),
        ({"num_heads": (2, 2, 2)}, "one a level"),
        ({"num_heads": (2, 7)}, "level 1 has 24 channels"),
        ({"norm_groups": 5}, "level 0 has 16 channels"),
    ],
)
def test_a_config_that_does_not_fit_together(changes: dict[str, Any], words: str) -> None:
    fields = {"block_out_channels": (16, 24), "attention": (True, True), "num_heads": 2, "norm_groups": 4}
    with pytest.raises(UserError, match=words):
        UNetConfig(**{**fields, **changes})


@pytest.mark.parametrize(
    ("shape", "width", "sites", "words"),
    [
        ((1, 4, 4, 3), 20, 7, "3 channels; this UNet takes 4"),
        ((1, 4, 5, 4), 20, 7, "4 x 5; .* multiples of 2"),
        ((1, 4, 4, 4), 21, 7, "21 wide; .* takes 20"),
        ((1, 4, 4, 4), 20, 6, "for 6 cross-attentions of 2 heads; this UNet has 7 of 2"),
    ],
)
def test_inputs_that_do_not_fit(shape: tuple[int, ...], width: int, sites: int, words: str) -> None:
    condition = Condition(jnp.zeros((1, 3, width)), jnp.zeros((1, 3)), jnp.ones((sites, 2)))
    with pytest.raises(UserError, match=words):
        UNet(SMALL).init(jax.random.key(0), jnp.zeros(shape), jnp.zeros(1), condition)
