"""The UNet: sizes, the order of its cross-attentions, log weights and factors, remat, sharding."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from mvader_jax.condition import PADDING, SUPPRESSED, Condition, concatenate, pad, take
from mvader_jax.errors import UserError
from mvader_jax.models import convolution, unet_blocks
from mvader_jax.models.attention import attend
from mvader_jax.models.remat import Remat
from mvader_jax.models.unet import (
    UNet,
    UNetConfig,
    cross_attention_paths,
    factors_shape,
    with_keys_values,
)
from mvader_jax.models.unet_blocks import GroupNorm
from mvader_jax.parallel.sharding import MESH_AXES, abstract_init, batch_sharding, param_shardings

HEADS, SITES, ROWS, LENGTH = 2, 7, 2, 6
SMALL = UNetConfig(4, 4, (16, 24), 1, (True, True), 20, HEADS, 4, 1e-5, 8)
ONE_LEVEL = UNetConfig(4, 4, (16,), 1, (True,), 20, HEADS, 4, 1e-5, 8)


def condition_of(config: UNetConfig, rows: int = ROWS, length: int = LENGTH) -> Condition:
    hidden = np.random.default_rng(5).normal(size=(rows, length, config.cross_attention_dim))
    return Condition(jnp.asarray(hidden, jnp.float32), jnp.zeros((rows, length)))


def example(config: UNetConfig, rows: int = ROWS) -> tuple[jax.Array, jax.Array, Condition]:
    """Latents that are not square, timesteps and a condition."""
    size = (rows, 2 * config.multiple, 3 * config.multiple, config.in_channels)
    latents = np.random.default_rng(2).normal(size=size)
    return jnp.asarray(latents, jnp.float32), jnp.arange(rows) * 100 + 3, condition_of(config, rows)


def random_params(config: UNetConfig) -> Any:
    """Drawn on the host: nothing to compile, and biases and norms that are not zeros and ones."""
    rng = np.random.default_rng(1)

    def draw(leaf: Any) -> jax.Array:
        deviation = 0.1 if leaf.ndim == 1 else np.prod(leaf.shape[:-1]) ** -0.5
        return jnp.asarray((leaf.ndim == 1) + rng.normal(0, deviation, leaf.shape), jnp.float32)

    return jax.tree.map(draw, abstract_init(UNet(config), *example(config))[0])


def shapes(config: UNetConfig) -> Mapping[tuple[str, ...], Any]:
    return flatten_dict(abstract_init(UNet(config), *example(config, 1))[0])


def count(tree: Mapping[tuple[str, ...], Any]) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in tree.values())


@pytest.fixture(scope="module")
def params() -> Any:
    return random_params(SMALL)


@jax.jit
def run(params: Any, condition: Condition) -> jax.Array:
    latents, timesteps, _ = example(SMALL)
    return UNet(SMALL).apply({"params": params}, latents, timesteps, condition)


def differ(a: jax.Array, b: jax.Array) -> float:
    return float(jnp.max(jnp.abs(a - b)))


def test_stable_diffusion_has_its_number_of_parameters() -> None:
    tree = shapes(UNetConfig.sd14())
    assert count(tree) == 859_520_964
    assert tree["down_blocks_0", "attentions_0", "transformer_blocks_0", "attn2", "to_k", "kernel"].shape == (
        768,
        320,
    )
    assert tree["up_blocks_1", "upsamplers_0", "conv", "kernel"].shape == (3, 3, 1280, 1280)
    second = shapes(UNetConfig.sd2())
    assert count(second) == 865_910_724
    assert second["mid_block", "attentions_0", "proj_in", "kernel"].shape == (1280, 1280)


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
    assert list(cross_attention_paths(config)) == [
        "down_blocks_1/attentions_0/transformer_blocks_0/attn2",
        "mid_block/attentions_0/transformer_blocks_0/attn2",
        "up_blocks_0/attentions_0/transformer_blocks_0/attn2",
        "up_blocks_0/attentions_1/transformer_blocks_0/attn2",
    ]


def test_every_kernel_names_its_axes() -> None:
    full = UNetConfig.sd14()
    abstract, names = abstract_init(UNet(full), *example(full, 1))
    for path, leaf in flatten_dict(abstract).items():
        assert leaf.ndim < 2 or None not in flatten_dict(names)[path], path
    mesh = Mesh(np.array(jax.devices()).reshape(1, 1, 4, 2), MESH_AXES)
    sharding = param_shardings(abstract, names, mesh)["mid_block"]["resnets_0"]["conv1"]["kernel"]
    assert sharding.shard_shape((3, 3, 1280, 1280)) == (3, 3, 320, 640)


def test_factors_count_in_the_order_of_execution(params: Any) -> None:
    """With one cross-attention heard at a time, eps depends on that row of the factors alone."""
    flat = flatten_dict(params, sep="/")
    log_weights = jnp.asarray(np.random.default_rng(8).normal(size=(ROWS, LENGTH)), jnp.float32)
    condition = condition_of(SMALL).replace(log_weights=log_weights)
    paths = cross_attention_paths(SMALL)
    assert len(paths) == SITES
    for site, path in enumerate(paths):
        others = [p + "/to_out_0/" for p in paths if p != path]
        alone = unflatten_dict(
            {k: 0 * v if any(k.startswith(other) for other in others) else v for k, v in flat.items()},
            sep="/",
        )
        ones = jnp.ones((SITES, HEADS))
        plain = run(alone, condition.replace(factors=ones))
        heard = [
            differ(run(alone, condition.replace(factors=ones.at[i].set(0.0))), plain) > 0
            for i in range(SITES)
        ]
        assert heard == [i == site for i in range(SITES)]


def test_factors_of_one_and_zero(params: Any) -> None:
    plain = condition_of(SMALL)
    ones = jnp.ones((SITES, HEADS))
    padded = plain.replace(log_weights=plain.log_weights.at[:, 5].set(PADDING))
    weighted = padded.replace(log_weights=padded.log_weights.at[:, 1].set(-2.0))
    assert np.array_equal(run(params, weighted.replace(factors=ones)), run(params, weighted))
    assert np.array_equal(run(params, weighted.replace(factors=0 * ones)), run(params, padded))
    assert differ(run(params, weighted), run(params, padded)) > 1e-3


def test_weights_of_one_are_bitwise_no_weights() -> None:
    """Operation by operation; another program, without the addition, may be fused and rounded differently."""
    rng = np.random.default_rng(3)
    q, k, v = (jnp.asarray(rng.normal(size=(ROWS, LENGTH, HEADS, 5)), jnp.float32) for _ in range(3))
    with jax.disable_jit():
        weighted = attend(q, k, v, log_weights=jnp.zeros((ROWS, LENGTH)), factors=jnp.full(HEADS, 0.5))
        assert np.array_equal(weighted, attend(q, k, v))


def test_weights_of_one_change_nothing_in_a_whole_model(params: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def unweighted(q: jax.Array, k: jax.Array, v: jax.Array, **_: Any) -> jax.Array:
        return attend(q, k, v)

    monkeypatch.setattr(unet_blocks, "attend", unweighted)
    latents, timesteps, _ = example(SMALL)

    @jax.jit
    def without(params: Any, condition: Condition) -> jax.Array:
        return UNet(SMALL).apply({"params": params}, latents, timesteps, condition)

    condition = condition_of(SMALL)
    lowered = condition.replace(log_weights=condition.log_weights.at[:, 1].set(-2.0))
    # The patched model ignores weights, so that what is compared with is the plain path indeed.
    assert np.array_equal(without(params, condition), without(params, lowered))
    np.testing.assert_allclose(without(params, condition), run(params, condition), atol=1e-5)


def test_padding_and_suppressed_tokens_are_never_seen(params: Any) -> None:
    short = condition_of(SMALL, length=4)
    exact = run(params, short)
    padded = run(params, pad(short, LENGTH))
    np.testing.assert_allclose(padded, exact, atol=1e-5)

    rubbish = pad(short, LENGTH)
    rubbish = rubbish.replace(hidden=rubbish.hidden.at[:, 4:].set(3.0))
    assert np.array_equal(run(params, rubbish), padded)

    # theta = 0 in the middle: positions do not enter here, so the rest is the shorter prompt.
    where = jnp.array([0, 2, 3, 5])
    full = condition_of(SMALL)
    suppressed = Condition(
        full.hidden.at[:, where].set(short.hidden), jnp.full((ROWS, LENGTH), SUPPRESSED).at[:, where].set(0.0)
    )
    np.testing.assert_allclose(run(params, suppressed), exact, atol=1e-5)

    # Every token at the same weight is every token at weight one, at the floor to float32's rounding of it.
    lowered = full.replace(log_weights=full.log_weights - 0.7)
    np.testing.assert_allclose(run(params, lowered), run(params, full), atol=1e-5)
    floor = full.replace(log_weights=full.log_weights + SUPPRESSED)
    np.testing.assert_allclose(run(params, floor), run(params, full), atol=1e-2)


def test_a_token_fades_with_its_weight(params: Any) -> None:
    full = condition_of(SMALL)
    out = run(params, full.replace(log_weights=full.log_weights.at[:, 1].set(SUPPRESSED)))
    thetas = (1.0, 0.5, 0.1, 0.01)
    fading = [
        differ(run(params, full.replace(log_weights=full.log_weights.at[:, 1].set(np.log(theta)))), out)
        for theta in thetas
    ]
    assert fading == sorted(fading, reverse=True)
    assert 0 < fading[-1] < 0.05 * fading[0]


@functools.cache
def gradients_on_one_device(rows: int) -> tuple[jax.Array, Any]:
    return jax.jit(jax.value_and_grad(loss))(random_params(ONE_LEVEL), *example(ONE_LEVEL, rows))


def loss(params: Any, *inputs: Any, remat: Remat = "none") -> jax.Array:
    return jnp.mean(UNet(ONE_LEVEL, remat=remat).apply({"params": params}, *inputs) ** 2)


def assert_same_gradients(found: Any, expected: Any) -> None:
    largest = max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(expected))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-5 * largest), found, expected
    )


def test_remat_gives_the_same_gradients() -> None:
    again = jax.value_and_grad(functools.partial(loss, remat="blocks"))
    inputs = (random_params(ONE_LEVEL), *example(ONE_LEVEL, 8))
    value, gradients = jax.jit(again)(*inputs)
    expected_value, expected = gradients_on_one_device(8)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    assert_same_gradients(gradients, expected)
    # Five resnets and four transformers are computed again.
    assert (
        str(jax.make_jaxpr(again)(*inputs)).count("remat2[")
        + str(jax.make_jaxpr(again)(*inputs)).count("checkpoint[")
        >= 9
    )
    assert "checkpoint[" not in str(jax.make_jaxpr(jax.value_and_grad(loss))(*inputs))


@pytest.mark.parametrize("platform", ["cpu", "tpu"])
def test_sharded_gradients_are_the_same(platform: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the mesh where the partitioner, left to itself, exchanges rows between devices; also as TPUs convolve."""
    mesh = Mesh(np.array(jax.devices()).reshape(1, 2, 2, 2), MESH_AXES)
    params, inputs = random_params(ONE_LEVEL), example(ONE_LEVEL, 8)
    _, names = abstract_init(UNet(ONE_LEVEL), *inputs)
    placed = jax.device_put(params, param_shardings(params, names, mesh))
    batch = jax.tree.map(lambda x: jax.device_put(x, batch_sharding(mesh, x.ndim)), inputs)
    expected_value, expected = gradients_on_one_device(8)
    monkeypatch.setattr(convolution, "current_platform", lambda: platform)
    monkeypatch.setattr(convolution, "_cut", lambda pictures, width: True)
    with jax.set_mesh(mesh):
        # A new function each time: jit would give back the program of the other platform.
        value, gradients = jax.jit(lambda *inputs: jax.value_and_grad(loss)(*inputs))(placed, *batch)
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    assert_same_gradients(gradients, expected)


def test_computes_in_bfloat16(params: Any) -> None:
    exact = run(params, condition_of(SMALL))
    apply = jax.jit(UNet(SMALL, dtype=jnp.bfloat16).apply)
    found = apply({"params": params}, *example(SMALL))
    assert found.dtype == jnp.bfloat16
    assert 0 < differ(found.astype(jnp.float32), exact) < 0.05 * float(jnp.max(jnp.abs(exact)))


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


def test_factors_of_deep_transformers_are_in_the_order_of_execution() -> None:
    config = UNetConfig(4, 4, (8, 16), 1, (True, True), 8, 2, 4, 1e-5, 4, (1, 2))
    latents, t = jnp.ones((1, 4, 4, 4)), jnp.zeros(1)
    plain = Condition(jnp.ones((1, 3, 8)), jnp.array([[0.0, -1.0, -2.0]]))
    seen: list[int] = []

    def order(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.module.name == "attn2" and context.method_name == "__call__":
            seen.append(paths.index("/".join(context.module.path)))
        return next_fun(*args, **kwargs)

    paths = list(cross_attention_paths(config))
    with nn.intercept_methods(order):
        jax.eval_shape(UNet(config).init, jax.random.key(0), latents, t, plain)
    assert seen == list(range(len(paths))) and factors_shape(config) == (len(paths), 2) == (11, 2)


DEEP = UNetConfig(4, 4, (8, 16), 1, (True, True), 8, (1, 2), 4, 1e-5, 4, (1, 2))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_keys_and_values_made_once_are_those_made_in_every_call(dtype: Any) -> None:
    """Also after rows were taken, padded and put together; and the network then reads no `to_k` or `to_v`."""
    rng = np.random.default_rng(3)
    rows, sites = 3, factors_shape(DEEP)

    def condition(length: int) -> Condition:
        return Condition(
            jnp.asarray(rng.normal(size=(rows, length, 8)), jnp.float32),
            jnp.asarray(rng.normal(size=(rows, length)), jnp.float32),
            jnp.asarray(rng.uniform(0, 2, (rows, *sites)), jnp.float32),
        )

    latents = jnp.asarray(rng.normal(size=(5, 4, 4, 4)), jnp.float32)
    short, long = condition(3), condition(6)
    unet = UNet(DEEP, dtype)
    params = random_params(DEEP)

    def together(*pair: Condition) -> Condition:
        first, second = pair
        return concatenate(pad(take(first, jnp.array([2, 0])), 6), second)

    ready = together(*(with_keys_values(DEEP, params, c, dtype) for c in (short, long)))
    assert ready.keys_values is not None and len(ready.keys_values) == sites[0]
    apply = jax.jit(unet.apply)
    want = apply({"params": params}, latents, jnp.arange(5.0), together(short, long))
    unread = flatten_dict(params, sep="/")
    for path in cross_attention_paths(DEEP):
        for name in ("to_k", "to_v"):
            unread[f"{path}/{name}/kernel"] *= jnp.nan
    got = apply({"params": unflatten_dict(unread, sep="/")}, latents, jnp.arange(5.0), ready)
    tolerance = 1e-6 if dtype == jnp.float32 else 2e-2
    np.testing.assert_allclose(np.float32(got), np.float32(want), atol=tolerance, rtol=tolerance)
