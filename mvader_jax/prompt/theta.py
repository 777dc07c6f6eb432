"""theta of every token, from the weights of a prompt's elements, spans and regions; and its factors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Float32, Float64

from mvader_jax.errors import UserError
from mvader_jax.prompt.checks import Factors
from mvader_jax.prompt.elements import Text


def log_theta(thetas: Float[np.ndarray, " T"]) -> Float32[np.ndarray, " T"]:
    """log theta, SUPPRESSED for 0; float32, finite for every theta >= 0."""
    from mvader_jax.condition import SUPPRESSED  # this file itself needs no JAX

    with np.errstate(divide="ignore"):
        logs = np.log(np.minimum(thetas, np.finfo(np.float64).max))
    return np.maximum(logs, SUPPRESSED).astype(np.float32)


def span_factors(text: Text, offsets: Sequence[tuple[int, int]]) -> Float64[np.ndarray, " {len(offsets)}"]:
    """float64 [tokens]: the factor of every token of a text under its spans. offsets: its tokens' in the text."""
    weights = np.ones(len(offsets))
    for span, weight in text.span_weights:
        start = text.text.find(span)
        touched = np.zeros(len(offsets), bool)
        while start >= 0:
            end = start + len(span)
            for i, (low, high) in enumerate(offsets):
                # The blank that BPE keeps with the word after it belongs to neither span.
                low += len(text.text[low:high]) - len(text.text[low:high].lstrip())
                touched[i] |= low < end and high > start
            start = text.text.find(span, start + 1)
        weights[touched] *= weight
    return weights


def balanced(
    weights: list[float], inside: list[Float64[np.ndarray, " _"]]
) -> list[Float64[np.ndarray, " _"]]:
    """Thetas that sum to weight * N / E in each element, divided as `inside` (see `prompt.Prompt`)."""
    alive = [weight > 0 and bool(factors.any()) for weight, factors in zip(weights, inside, strict=True)]
    if not any(alive):
        return [np.zeros(factors.size) for factors in inside]
    mean_tokens = sum(f.size for f, lives in zip(inside, alive, strict=True) if lives) / sum(alive)
    thetas = []
    for weight, factors, lives in zip(weights, inside, alive, strict=True):
        # Scaled first by the largest, so that no sum overflows.
        shares = factors / factors.max() if lives else factors
        thetas.append(weight * (shares * (mean_tokens / shares.sum())) if lives else np.zeros(factors.size))
    return thetas


def wanted_shares(weights: list[float], inside: list[Float64[np.ndarray, " _"]]) -> Float64[np.ndarray, " E"]:
    """Shares of the attention in proportion to the weights, 0 of an element that has no token left."""
    alive = [weight if factors.any() else 0.0 for weight, factors in zip(weights, inside, strict=True)]
    # Scaled first by the largest, so that no sum overflows.
    scaled = np.array(alive) / (max(alive, default=0.0) or 1.0)
    return scaled / (scaled.sum() or 1.0)


def spread_factors(
    given: Sequence[Factors | None], shape: tuple[int, int] | None, site: str
) -> Float32[np.ndarray, "{len(given)} {shape[0]} {shape[1]}"] | None:
    """float32 [B, layers, heads], 1 where a prompt has none; None where none has."""
    if all(value is None for value in given):
        return None
    if shape is None:
        raise UserError(f"the prompt has {site} factors, but this bundle has no {site}")
    rows = []
    for value in given:
        array = np.ones((1, 1)) if value is None else np.asarray(value, np.float64)
        array = array[:, None] if array.ndim == 1 else array
        if any(have not in (1, own) for have, own in zip(array.shape, shape, strict=True)):
            raise UserError(
                f"the {site} factors are for {array.shape[0]} layers of {array.shape[1]} heads; "
                f"this model's {site} has {shape[0]} of {shape[1]}"
            )
        rows.append(np.broadcast_to(array, shape))
    return np.minimum(np.stack(rows), np.finfo(np.float32).max).astype(np.float32)
