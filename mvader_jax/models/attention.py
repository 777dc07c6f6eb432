"""The one door to attention: scaled dot products with log weights added to the scores (eq. 2)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float, Float32

from mvader_jax.condition import PADDING, SUPPRESSED
from mvader_jax.models import attention_kernels


def attend(
    q: Float[jax.Array, "B Sq H K"],
    k: Float[jax.Array, "B Sk H K"],
    v: Float[jax.Array, "B Sk H V"],
    *,
    log_weights: Float[jax.Array, "B Sk"] | None = None,
    causal: bool = False,
    factors: Float[jax.Array, " H"] | Float[jax.Array, "B H"] | None = None,
) -> Float[jax.Array, "B Sq H V"]:
    """Multi-head attention, eq. 2 of the paper: softmax(q k / sqrt(K) + log theta) v.

    q: [B, Sq, H, K]; k: [B, Sk, H, K]; v: [B, Sk, H, V]. log_weights: [B, Sk], added to every score of that key;
    zeros give bitwise the unweighted result. factors: [H] or [B, H], at least 0, multiplies the log weights
    of a head: theta to the power of the factor, so 0 stays 0 unless the factor is 0; padding stays padding.
    causal: query i sees keys up to i (Sq == Sk).
    Scores and softmax are float32. The kernel is the platform's and the shape's (`attention_kernels.choose`).
    Returns [B, Sq, H, V] in v's dtype, which is q's.
    """
    bias = None if log_weights is None else key_bias(log_weights, factors)
    platform = attention_kernels.current_platform()
    kernel = attention_kernels.choose(platform, q.dtype, q.shape, v.shape, biased=bias is not None)
    if kernel != "plain":
        return attention_kernels.run(kernel, q, k, v, bias, causal=causal)
    return plain(q, k, v, bias, causal=causal)


def attention_of(
    marks: Float[jax.Array, "B Sk E"],
    q: Float[jax.Array, "B Sq H K"],
    k: Float[jax.Array, "B Sk H K"],
    *,
    log_weights: Float[jax.Array, "B Sk"] | None = None,
    factors: Float[jax.Array, " H"] | Float[jax.Array, "B H"] | None = None,
) -> Float32[jax.Array, "B Sq E"]:
    """The part of each query's attention that goes to the keys of each mark, the mean of the heads.

    marks: 1 where a key has the mark, else 0: they are the values of an attention with the same probs, so that every
    kernel can tell. The rest as `attend`; what `attend` itself returns stays bitwise the same. XLA computes the probs
    of both once, on the plain path.
    """
    values = jnp.broadcast_to(marks.astype(q.dtype)[:, :, None, :], (*k.shape[:3], marks.shape[-1]))
    return attend(q, k, values, log_weights=log_weights, factors=factors).astype(jnp.float32).mean(axis=2)


def plain(
    q: Float[jax.Array, "B Sq H K"],
    k: Float[jax.Array, "B Sk H K"],
    v: Float[jax.Array, "B Sk H V"],
    bias: Float[jax.Array, " B #H 1 Sk"] | None,
    *,
    causal: bool = False,
) -> Float[jax.Array, "B Sq H V"]:
    """The reference: scores in memory, float32. bias: float32 [B, H or 1, 1, Sk]; the rest as `attend`."""
    scores = jnp.einsum("bqhk,bshk->bhqs", q, k, preferred_element_type=jnp.float32)
    scores = scores * jnp.float32(q.shape[-1] ** -0.5)
    if bias is not None:
        scores = scores + bias
    if causal:
        length = q.shape[1]
        visible = jnp.tril(jnp.ones((length, k.shape[1]), bool))
        scores = jnp.where(visible, scores, attention_kernels.HIDDEN)
    probs = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bhqs,bshk->bqhk", probs, v)


def key_bias(
    log_weights: Float[jax.Array, "B Sk"], factors: Float[jax.Array, " H"] | Float[jax.Array, "B H"] | None
) -> Float32[jax.Array, " B #H 1 Sk"]:
    """[B, Sk] log weights and [H] or [B, H] factors -> float32 bias [B, H or 1, 1, Sk]."""
    bias = log_weights.astype(jnp.float32)[:, None, None, :]
    if factors is None:
        return bias
    by_head = jnp.asarray(factors, jnp.float32)[..., :, None, None]
    fixed = (bias <= PADDING) | ((bias <= SUPPRESSED) & (by_head > 0))
    return jnp.where(fixed, bias, jnp.clip(bias * by_head, SUPPRESSED, -SUPPRESSED))
