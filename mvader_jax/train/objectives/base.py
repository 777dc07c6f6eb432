"""What every objective is: a pure function of components, a batch and a key."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

#: name -> float32 [2], a sum and the count it runs over, so that means over steps, microbatches and
#: modalities of unequal size stay exact.
Metrics = dict[str, jax.Array]

#: (components, batch, key, groups) -> (loss, metrics). `groups` is how many groups the batch's rows
#: are laid out in (see data/rows.py); objectives without mixed rows ignore it.
LossFn = Callable[[Mapping[str, Any], Mapping[str, Any], jax.Array, int], tuple[jax.Array, Metrics]]


def unit_pixels(pixels: jax.Array) -> jax.Array:
    """float32 in [-1, 1], as the VAE takes them, from the uint8 pixels of a batch."""
    return pixels.astype(jnp.float32) * (1 / 127.5) - 1.0


def mean_metric(values: jax.Array, mask: jax.Array | None = None) -> jax.Array:
    """A metric from per-row values [B], over the rows where `mask` is set."""
    weight = jnp.ones(values.shape, jnp.float32) if mask is None else mask.astype(jnp.float32)
    return jnp.stack([jnp.sum(values.astype(jnp.float32) * weight), jnp.sum(weight)])
