"""Eq. 2 at one attention, against NumPy; factors by layer and head in the decoder and CLIP's text tower."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mvader_jax.condition import PADDING, SUPPRESSED, Condition, concatenate, pad
from mvader_jax.models.attention import attend, key_bias
from mvader_jax.models.clip_text import ClipText, ClipTextConfig
from mvader_jax.models.decoder import Decoder, DecoderConfig

RNG = np.random.default_rng(0)
Q, K, V = (jnp.asarray(RNG.normal(size=(2, n, 3, 4)), jnp.float32) for n in (5, 7, 7))


def by_definition(theta: np.ndarray) -> np.ndarray:
    """Shares theta_j exp(s_ij), normalised. theta: [B, H, Sk]."""
    scores = np.einsum("bqhk,bshk->bhqs", np.float64(Q), np.float64(K)) / np.sqrt(4)
    shares = theta[:, :, None, :] * np.exp(scores)
    return np.einsum("bhqs,bshk->bqhk", shares / shares.sum(axis=-1, keepdims=True), np.float64(V))


def test_theta_multiplies_the_shares() -> None:
    theta = RNG.uniform(0.1, 5, (2, 7))
    out = attend(Q, K, V, log_weights=jnp.log(theta))
    np.testing.assert_allclose(out, by_definition(np.repeat(theta[:, None], 3, axis=1)), atol=1e-5)
    uniform = attend(Q, K, V, log_weights=jnp.full((2, 7), jnp.log(3.0)))
    np.testing.assert_allclose(uniform, by_definition(np.ones((2, 3, 7))), atol=1e-5)
    np.testing.assert_array_equal(attend(Q, K, V, log_weights=jnp.zeros((2, 7))), attend(Q, K, V))


@pytest.mark.parametrize("by_row", [False, True])
def test_factors_are_powers_of_theta(by_row: bool) -> None:
    theta = RNG.uniform(0.1, 5, (2, 7))
    theta[:, 1] = 0.0
    factors = np.array([[0.0, 0.5, 2.0], [1.0, 3.0, 0.0]])[: 2 if by_row else 1]
    logs = np.where(theta > 0, np.log(np.maximum(theta, 1e-30)), SUPPRESSED).astype(np.float32)
    out = attend(
        Q, K, V, log_weights=jnp.asarray(logs), factors=jnp.asarray(factors if by_row else factors[0])
    )
    np.testing.assert_allclose(out, by_definition(theta[:, None, :] ** factors[:, :, None]), atol=1e-5)


def test_bias_of_factors() -> None:
    logs = np.array([[0.0, np.log(2), SUPPRESSED, PADDING]], np.float32)
    bias = key_bias(jnp.asarray(logs), jnp.array([0.0, 0.5, 2.0, 3e38]))[0, :, 0]
    two = np.log(np.float32(2))
    expected = [
        [0, 0, 0, PADDING],
        [0, two / 2, SUPPRESSED, PADDING],
        [0, 2 * two, SUPPRESSED, PADDING],
        [0, -SUPPRESSED, SUPPRESSED, PADDING],
    ]
    np.testing.assert_allclose(bias, expected, rtol=1e-6)


def test_theta_zero_is_absence_and_all_zero_is_the_plain_prompt() -> None:
    logs = np.zeros((2, 7), np.float32)
    logs[:, [0, 3]], logs[:, 5:] = SUPPRESSED, PADDING
    kept = [1, 2, 4]
    expected = attend(Q, K[:, kept], V[:, kept])
    np.testing.assert_allclose(attend(Q, K, V, log_weights=jnp.asarray(logs)), expected, atol=1e-6)
    logs[:, :5] = SUPPRESSED
    expected = attend(Q, K[:, :5], V[:, :5])
    np.testing.assert_allclose(attend(Q, K, V, log_weights=jnp.asarray(logs)), expected, atol=5e-3)


def test_causal_rows_that_see_only_suppressed_keys_are_finite() -> None:
    logs = jnp.array([[SUPPRESSED, SUPPRESSED, 0, 0, PADDING]] * 2)
    out = attend(Q, K[:, :5], V[:, :5], log_weights=logs, causal=True)
    assert bool(jnp.all(jnp.isfinite(out)))
    np.testing.assert_allclose(out[:, 0], V[:, 0], atol=1e-6)


DECODER = DecoderConfig(16, 16, 8, 3, 2, 4, 16, 32, rotary_dim=4)
TEXT = ClipTextConfig(16, 8, 3, 2, 16, 32)


def random_params(module: Any, *inputs: Any, **options: Any) -> Any:
    shapes = jax.eval_shape(lambda: module.init(jax.random.key(0), *inputs, **options))
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.5, leaf.shape), jnp.float32), jax.tree.map(unboxed, shapes)
    )


def unboxed(leaf: Any) -> Any:
    return getattr(leaf, "value", leaf)


@pytest.mark.parametrize("kind", ["decoder", "clip_text"])
def test_factors_by_layer_and_head(kind: str) -> None:
    tokens = jnp.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    if kind == "decoder":
        module: Any = Decoder(DECODER)
        params = random_params(module, tokens, method="everything")
        first: Any = jnp.asarray(np.random.default_rng(2).normal(size=(2, 4, 8)), jnp.float32)
    else:
        module, first = ClipText(TEXT), tokens
        params = random_params(module, tokens)
    run = jax.jit(lambda logs, factors: module.apply(params, first, logs, factors))
    logs = jnp.log(jnp.array([[0.2, 1, 3, 1], [2, 0.5, 1, 1]]))
    ones = jnp.ones((2, 3, 2))
    weighted, plain = run(logs, ones), run(0 * logs, ones)
    np.testing.assert_allclose(weighted, module.apply(params, first, logs), atol=1e-6)
    np.testing.assert_array_equal(run(logs, 0 * ones), plain)
    # theta ** 2 everywhere is the prompt of squared weights.
    np.testing.assert_allclose(run(logs, 2 * ones), run(2 * logs, ones), atol=1e-5)
    # Every layer and head counts, and a row's factors act on that row alone.
    for layer in range(3):
        for head in range(2):
            factors = ones.at[1, layer, head].set(0.0)
            out = run(logs, factors)
            np.testing.assert_array_equal(out[0], weighted[0])
            assert float(jnp.abs(out[1] - weighted[1]).max()) > 1e-4
    shared = module.apply(params, first, logs, factors[1])
    np.testing.assert_allclose(shared[1], out[1], atol=1e-5)


def test_conditions_with_and_without_factors_are_joined() -> None:
    plain = Condition(jnp.zeros((2, 3, 4)), jnp.zeros((2, 3)))
    weighted = Condition(jnp.ones((1, 5, 4)), jnp.zeros((1, 5)), jnp.full((1, 6, 2), 0.5))
    joined = concatenate(pad(plain, 5), weighted)
    assert joined.hidden.shape == (3, 5, 4)
    np.testing.assert_array_equal(joined.log_weights[:, 3:], [[PADDING] * 2] * 2 + [[0, 0]])
    np.testing.assert_array_equal(joined.factors[:, 0, 0], [1, 1, 0.5])
    shared = concatenate(plain, plain.replace(factors=jnp.full((6, 2), 2.0)))
    np.testing.assert_array_equal(shared.factors[:, 0, 0], [1, 1, 2, 2])
    assert concatenate(plain, plain).factors is None
