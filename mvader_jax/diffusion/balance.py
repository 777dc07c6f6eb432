"""Automatic theta: log theta of each element is moved, call by call, until the element gets the share of the UNet's
cross-attention that its prompt asks for. Nothing is trained.

At scores that stand still this is iterative proportional fitting (Sinkhorn's scaling of a matrix's columns, where the
softmax keeps its rows), which gets nearer with every move. They do not stand still from call to call, so thetas are
carried on and moved after each.

Its published relative, dynamic attention rebalancing (MICON-Bench, Wu et al. 2026), finds the regions of reference
images that get too much or too little attention, by the attention itself, and turns them down or up. Here whole
elements are turned, texts too, and how much each is to get is said beforehand.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float32

from mvader_jax.condition import SUPPRESSED, Condition
from mvader_jax.diffusion.levels import Kept

#: log theta moves by no more than this, up or down: by a factor of a thousand.
LIMIT = math.log(1000.0)
#: A share below which it is not told how small it is.
_FLOOR = 1e-6

#: (latents [kB, ...], timesteps [kB], Condition of kB rows) -> [kB, ...], and what each element got, [kB, E], where the
#: condition marks elements.
Observed = Callable[[jax.Array, jax.Array, Condition], tuple[jax.Array, Any]]


def nothing_moved(conditions: Sequence[Condition]) -> Kept | None:
    """What `balanced` keeps of conditions in the order of `guided` before their first call, [k, B, E]; None where none
    wants shares."""
    counts = [condition.wanted.shape[1] for condition in conditions if condition.wanted is not None]
    if not counts:
        return None
    return Kept(jnp.zeros((len(conditions), conditions[0].hidden.shape[0], max(counts)), jnp.float32))


def balanced(observed: Observed, moved: Kept) -> Callable[[jax.Array, jax.Array, Condition], jax.Array]:
    """eps for `guided` and `alone`, under the thetas that the calls before have moved; it moves them further.

    moved: log theta of each element beside its weight, float32 [k, B, E]. A call of fewer conditions is one of the last.
    """

    def eps(x: jax.Array, t: jax.Array, condition: Condition) -> jax.Array:
        if condition.wanted is None:
            return observed(x, t, condition)[0]
        wanted = jnp.asarray(condition.wanted)
        rows, count = moved.value.shape[1], wanted.shape[1]
        here = slice(-(len(wanted) // rows), None), slice(None), slice(count)
        logs = moved.value[here].reshape(wanted.shape)
        predicted, got = observed(x, t, under(condition, logs))
        moved.value = moved.value.at[here].set(move(logs, got, wanted).reshape(-1, rows, count))
        return predicted

    return eps


def under(condition: Condition, logs: Float32[jax.Array, "B E"]) -> Condition:
    """The condition with `logs` added to the log weights of its elements' positions; none is brought back that is
    suppressed."""
    # No product of matrices, which an accelerator rounds.
    assert condition.elements is not None
    added = (jnp.asarray(condition.elements) * logs[:, None, :]).sum(axis=-1)
    weights = jnp.asarray(condition.log_weights)
    return dataclasses.replace(
        condition, log_weights=jnp.where(weights > SUPPRESSED, weights + added, weights)
    )


def move(
    logs: Float32[jax.Array, "B E"], got: Float32[jax.Array, "B E"], wanted: Float32[jax.Array, "B E"]
) -> Float32[jax.Array, "B E"]:
    """log theta after a call in which the elements got so much attention; of those that want none it stays.

    got: of all attention, or in any other unit. The mean of a row's log thetas stays too, so that its elements together
    stand beside positions of no element (the start and the end of CLIP's prompts) as they did.
    """
    asked = wanted > 0
    got = jnp.where(asked, got, 0.0)
    share = got / jnp.maximum(got.sum(axis=1, keepdims=True), _FLOOR)
    missing = jnp.log(jnp.where(asked, wanted, 1.0)) - jnp.log(
        jnp.where(asked, jnp.maximum(share, _FLOOR), 1.0)
    )
    mean = missing.sum(axis=1, keepdims=True) / jnp.maximum(asked.sum(axis=1, keepdims=True), 1)
    return jnp.clip(logs + jnp.where(asked, missing - mean, 0.0), -LIMIT, LIMIT)
