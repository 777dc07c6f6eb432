"""The two arrays-of-everything that flow between the parts: `PromptBatch` in, `Condition` out.

Axis names used throughout the project: B batch, S sequence, I images a row, T tokens an image,
D width, H heads, K head width. Images and latents are NHWC.
"""

from __future__ import annotations

import dataclasses

import flax.struct
import jax
import numpy as np

Array = jax.Array | np.ndarray

#: log weight of a position that does not exist. Finite, so that no softmax row is ever NaN, and far
#: below SUPPRESSED, so that a prompt whose every element has weight 0 still ignores its padding.
PADDING = -1e9
#: log weight of a token with theta = 0 (eq. 2 of the paper): its share underflows to exactly 0
#: beside any token of ordinary weight.
SUPPRESSED = -1e4


@flax.struct.dataclass
class PromptBatch:
    """A batch of prompts as the embedders read it; NumPy, made on the host by `tokenizer`.

    token_ids: int32 [B, S]; 0 where an image token or padding stands.
    pixels: float32 [B, I, H, W, 3], preprocessed for the image encoder; I may be 0.
    image_index: int32 [B, S]; which of the row's I*T image tokens stands here, -1 for text and padding.
    log_weights: float32 [B, S]; added to the scores of every decoder self-attention:
        0 for weight 1, log theta, SUPPRESSED for theta = 0, PADDING past the prompt's end.
    condition_log_weights: float32 [B, S]; the same for the UNet's cross-attentions. The two differ
        only where a prompt asks for its weights at one site alone.
    factors: float32 [B, L, H] or None (1 everywhere); multiplies `log_weights` in decoder layer l, head h.
    condition_factors: float32 [B, N, H] or None; becomes the Condition's `factors`.
    """

    token_ids: Array
    pixels: Array
    image_index: Array
    log_weights: Array
    condition_log_weights: Array
    factors: Array | None = None
    condition_factors: Array | None = None


@flax.struct.dataclass
class Condition:
    """What the UNet attends to.

    hidden: [B, S, D]; the embedder's last hidden states.
    log_weights: float32 [B, S]; added to every cross-attention score of that key (eq. 2).
    factors: float32 [N, H], or [B, N, H] for rows that differ; multiplies `log_weights` in cross-attention
        n, head h, counted in the order of execution. Where levels have fewer heads than H, theirs are the
        first. None means 1 everywhere.
    """

    hidden: Array
    log_weights: Array
    factors: Array | None = None


def pad(condition: Condition, length: int) -> Condition:
    """`condition` with positions that do not exist added at its end, up to `length`."""
    import jax.numpy as jnp

    extra = length - condition.hidden.shape[1]
    if extra == 0:
        return condition
    return dataclasses.replace(
        condition,
        hidden=jnp.pad(condition.hidden, ((0, 0), (0, extra), (0, 0))),
        log_weights=jnp.pad(condition.log_weights, ((0, 0), (0, extra)), constant_values=PADDING),
    )


def concatenate(*conditions: Condition) -> Condition:
    """The rows of all, which have equal lengths."""
    import jax.numpy as jnp

    dtype = conditions[0].hidden.dtype
    factors = None
    known = [c.factors for c in conditions if c.factors is not None]
    if known:
        # A Condition without factors has factors of 1.
        factors = jnp.concatenate(
            [
                jnp.broadcast_to(
                    jnp.ones(()) if c.factors is None else c.factors,
                    (c.hidden.shape[0], *known[0].shape[-2:]),
                )
                for c in conditions
            ]
        )
    return Condition(
        jnp.concatenate([c.hidden.astype(dtype) for c in conditions]),
        jnp.concatenate([c.log_weights for c in conditions]),
        factors,
    )
