"""The attention that each element of a prompt gets from a UNet's cross-attentions: of the picture, and where.

predicted, left = unet.apply(params, latents, t, condition, mutable=[ATTENTION])    # condition.elements tells which
element_shares(left)            # [B, E]: the means of all heads, queries and cross-attentions
element_maps(left, size)        # [B, E, h, w]: the means of all heads and cross-attentions; their means are the shares
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float32

from mvader_jax.models.unet_blocks import ATTENTION


def element_shares(left: Mapping[str, Any]) -> Float32[jax.Array, "B E"]:
    """The part of the attention that each element gets, 0 to 1; the rest goes to positions of no element.

    left: the collections that a UNet's `apply` returns beside its prediction.
    """
    return jnp.mean(jnp.stack([got.mean(axis=1) for got in _got(left)]), axis=0)


def element_maps(left: Mapping[str, Any], size: tuple[int, int]) -> Float32[jax.Array, "B E h w"]:
    """`element_shares` of each place of the latents, whose height and width `size` is.

    The maps of lower levels are repeated: every cross-attention counts the same.
    """
    height, width = size
    maps = []
    for got in _got(left):
        rows, queries, count = got.shape
        times = round((height * width / queries) ** 0.5)
        small = got.reshape(rows, height // times, width // times, count)
        maps.append(jnp.repeat(jnp.repeat(small, times, axis=1), times, axis=2))
    return jnp.mean(jnp.stack(maps), axis=0).transpose(0, 3, 1, 2)


def _got(left: Mapping[str, Any]) -> list[Float32[jax.Array, "B S E"]]:
    """Of every cross-attention, [B, queries, E]. Raises ValueError where none left anything."""
    if ATTENTION not in left:
        raise ValueError("the condition marks no elements, or `apply` was not given mutable=[ATTENTION]")
    return jax.tree.leaves(left[ATTENTION])
