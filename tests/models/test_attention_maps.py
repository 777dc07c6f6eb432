"""The attention that each element of a prompt gets: what the UNet's own scores say, by every kernel."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvader_jax.condition import PADDING, SUPPRESSED, Condition
from mvader_jax.models import attention_kernels
from mvader_jax.models.attention import attention_of, key_bias
from mvader_jax.models.attention_maps import element_maps, element_shares
from mvader_jax.models.unet import UNet, UNetConfig, cross_attention_paths, with_keys_values
from mvader_jax.models.unet_blocks import ATTENTION
from mvader_jax.parallel.sharding import abstract_init

CONFIG = UNetConfig(4, 4, (8, 16), 1, (True, True), 8, (2, 4), 4, 1e-5, 4)
ROWS, LENGTH, SIZE = 2, 6, (4, 6)
RNG = np.random.default_rng(0)
#: Two elements and a place for a third; the last position of the second row is padding.
MARKS = np.zeros((ROWS, LENGTH, 3), np.float32)
MARKS[:, :2, 0] = MARKS[:, 2:5, 1] = MARKS[0, 5, 1] = 1
LOGS = np.log(RNG.uniform(0.2, 2, (ROWS, LENGTH)))
LOGS[0, 3], LOGS[1, 5] = SUPPRESSED, PADDING
CONDITION = Condition(
    jnp.asarray(RNG.normal(size=(ROWS, LENGTH, 8)), jnp.float32),
    jnp.asarray(LOGS, jnp.float32),
    jnp.asarray(RNG.uniform(0, 2, (7, 4)), jnp.float32),
    elements=jnp.asarray(MARKS),
)
LATENTS = jnp.asarray(RNG.normal(size=(ROWS, *SIZE, 4)), jnp.float32)
TIMES = jnp.array([3, 700])


@pytest.fixture(scope="module")
def params() -> Any:
    def draw(leaf: Any) -> jax.Array:
        scale = 0.1 if leaf.ndim == 1 else 2 * np.prod(leaf.shape[:-1]) ** -0.5
        return jnp.asarray((leaf.ndim == 1) + RNG.normal(0, scale, leaf.shape), jnp.float32)

    return jax.tree.map(draw, abstract_init(UNet(CONFIG), LATENTS, TIMES, CONDITION)[0])


@jax.jit
def watched(params: Any, condition: Condition) -> tuple[jax.Array, Any]:
    return UNet(CONFIG).apply({"params": params}, LATENTS, TIMES, condition, mutable=[ATTENTION])


def computed(params: Any) -> list[np.ndarray]:
    """Of every cross-attention [B, queries, 3], from what enters it, in float64."""
    found = []

    def intercept(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        if context.module.name == "attn2" and context.method_name == "__call__":
            found.append(("/".join(context.module.path), np.asarray(args[0], np.float64)))
        return next_fun(*args, **kwargs)

    with nn.intercept_methods(intercept):
        UNet(CONFIG).apply({"params": params}, LATENTS, TIMES, CONDITION)
    heads_of = cross_attention_paths(CONFIG)
    assert [path for path, _ in found] == list(heads_of)
    shares = []
    for site, (path, x) in enumerate(found):
        own = functools.reduce(lambda tree, name: tree[name], path.split("/"), params)
        heads = heads_of[path]
        q, k = (
            np.stack(np.split(of @ np.asarray(own[name]["kernel"], np.float64), heads, axis=-1), axis=1)
            for name, of in (("to_q", x), ("to_k", np.asarray(CONDITION.hidden, np.float64)))
        )
        scores = np.einsum("bhqk,bhsk->bhqs", q, k) / np.sqrt(q.shape[-1])
        scores += np.asarray(key_bias(CONDITION.log_weights, CONDITION.factors[site, :heads]), np.float64)
        probs = np.exp(scores - scores.max(-1, keepdims=True))
        probs /= probs.sum(-1, keepdims=True)
        shares.append(np.einsum("bhqs,bse->bqe", probs, MARKS) / heads)
    return shares


def test_shares_are_those_of_the_scores_themselves(params: Any) -> None:
    expected = computed(params)
    _, left = watched(params, CONDITION)
    shares = np.asarray(element_shares(left))
    np.testing.assert_allclose(shares, np.mean([x.mean(1) for x in expected], axis=0), atol=1e-6)
    np.testing.assert_allclose(shares.sum(1), 1, atol=1e-6)
    assert shares[:, 2].tolist() == [0, 0] and shares[:, :2].min() > 0.02


def test_maps_say_where_and_their_means_are_the_shares(params: Any) -> None:
    expected = computed(params)
    _, left = watched(params, CONDITION)
    maps = np.asarray(element_maps(left, SIZE))
    np.testing.assert_allclose(maps.mean((2, 3)), element_shares(left), atol=1e-6)
    whole = [
        np.kron(x.reshape(ROWS, 4 // times, 6 // times, 3), np.ones((1, times, times, 1)))
        for x in expected
        for times in [round((24 / x.shape[1]) ** 0.5)]
    ]
    np.testing.assert_allclose(maps, np.mean(whole, axis=0).transpose(0, 3, 1, 2), atol=1e-6)
    assert maps.shape == (ROWS, 3, *SIZE) and maps[:, 0].std() > 0.005


def test_positions_of_no_element_keep_their_part(params: Any) -> None:
    _, left = watched(params, CONDITION.replace(elements=CONDITION.elements.at[:, 0].set(0)))
    _, whole = watched(params, CONDITION)
    fewer, all_of_it = np.asarray(element_shares(left)), np.asarray(element_shares(whole))
    assert np.all(fewer[:, 0] < all_of_it[:, 0] - 0.01)
    np.testing.assert_allclose(fewer[:, 1], all_of_it[:, 1], atol=1e-6)


def test_looking_changes_nothing(params: Any) -> None:
    """The prediction is bitwise that of a condition that marks nothing; also with keys and values made before."""
    plain = CONDITION.replace(elements=None)

    def predict(condition: Condition) -> jax.Array:
        return jax.jit(UNet(CONFIG).apply)({"params": params}, LATENTS, TIMES, condition)

    want = np.asarray(predict(plain))
    np.testing.assert_array_equal(predict(CONDITION), want)
    seen, left = watched(params, CONDITION)
    np.testing.assert_array_equal(seen, want)
    _, again = watched(params, with_keys_values(CONFIG, params, CONDITION, jnp.float32))
    np.testing.assert_allclose(element_shares(again), element_shares(left), atol=1e-6)
    _, nothing = watched(params, plain)
    with pytest.raises(ValueError, match="marks no elements"):
        element_shares(nothing)


@pytest.mark.parametrize("kernel", ["plain", "blocks", "splash", "cudnn"])
@pytest.mark.parametrize("count", [4, 64])
def test_every_kernel_tells(monkeypatch: pytest.MonkeyPatch, kernel: str, count: int) -> None:
    """Fewer elements than a head has dimensions, and more."""
    queries, keys, heads, width = 160, 100, 2, 40
    q = jnp.asarray(RNG.normal(size=(1, queries, heads, width)), jnp.bfloat16)
    k = jnp.asarray(RNG.normal(size=(1, keys, heads, width)), jnp.bfloat16)
    logs = jnp.asarray(RNG.normal(size=(1, keys)), jnp.float32).at[0, 90:].set(PADDING)
    marks = jax.nn.one_hot(jnp.asarray(RNG.integers(0, count, (1, keys))), count)
    scores = np.einsum("bqhk,bshk->bhqs", np.float64(q), np.float64(k)) / np.sqrt(width) + np.float64(logs)
    probs = np.exp(scores - scores.max(-1, keepdims=True))
    want = np.einsum("bhqs,bse->bqe", probs / probs.sum(-1, keepdims=True), np.float64(marks)) / heads
    monkeypatch.setattr(attention_kernels, "choose", lambda *_, **__: kernel)
    for name in ("splash", "cudnn"):
        inside = {"splash": {"interpret": True}, "cudnn": {"implementation": "xla"}}[name]
        real = getattr(attention_kernels, name)
        monkeypatch.setattr(
            attention_kernels, name, lambda *a, real=real, inside=inside, **o: real(*a, **{**o, **inside})
        )
    got = np.asarray(attention_of(marks, q, k, log_weights=logs))
    np.testing.assert_allclose(got, want, atol=0.01)
    np.testing.assert_allclose(got.sum(-1), 1, atol=0.02)


def test_the_kernel_of_a_gpu_takes_as_many_elements_as_dimensions() -> None:
    q, many = (2, 4096, 8, 40), (2, 300, 8, 256)
    assert attention_kernels.choose("gpu", jnp.bfloat16, q, (*many[:3], 64), biased=True) == "cudnn"
    assert attention_kernels.choose("gpu", jnp.bfloat16, q, many, biased=True) == "plain"
