"""The two arrays-of-everything that flow between the parts: `PromptBatch` in, `Condition` out.

Axis names used throughout the project: B batch, S sequence, I images a row, T tokens an image,
D width, H heads (Hc: of a cross-attention), K head width, E elements of a prompt. Images and latents are NHWC.
Shapes in signatures (jaxtyping) are checked in the tests alone: `tests/checked.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Float32, Int, Int32

Array = jax.Array | np.ndarray

#: log weight of a position that does not exist. Finite, so that no softmax row is ever NaN, and far
#: below SUPPRESSED, so that a prompt whose every element has weight 0 still ignores its padding.
PADDING = -1e9
#: log weight of a token with theta = 0 (eq. 2 of the paper): its attention prob underflows to exactly 0
#: beside any token of ordinary weight.
SUPPRESSED = -1e4


def shapes(value: Any) -> str:
    """A dataclass of arrays in a line, its `__repr__`: Condition(hidden float32 [1, 8, 64], ...)."""
    held = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    parts = ", ".join(f"{name} {_shape(part)}" for name, part in held.items() if part is not None)
    return f"{type(value).__name__}({parts})"


def _shape(part: Any) -> str:
    if hasattr(part, "shape") and hasattr(part, "dtype"):
        return f"{part.dtype} {list(part.shape)}"
    sizes = [getattr(leaf, "size", 1) for leaf in jax.tree.leaves(part)]
    # A dataclass tells itself; trees of parameters are dictionaries and tuples.
    return f"{len(sizes)} arrays of {sum(sizes):,}" if type(part).__repr__ in _PLAIN else repr(part)


_PLAIN = (dict.__repr__, tuple.__repr__, list.__repr__)


@flax.struct.dataclass
class PromptBatch:
    """A batch of prompts as the embedders read it; NumPy, made on the host by `tokenizer`.

    token_ids: 0 where an image token or padding stands.
    pixels: preprocessed for the image encoder, or its features; I may be 0.
    image_index: which of the row's I*T image tokens stands here, -1 for text and padding.
    log_weights: added to the scores of every decoder self-attention:
        0 for weight 1, log theta, SUPPRESSED for theta = 0, PADDING past the prompt's end.
    condition_log_weights: the same for the UNet's cross-attentions. The two differ
        only where a prompt asks for its weights at one site alone.
    factors: None is 1 everywhere; multiplies `log_weights` in decoder layer l, head h.
    condition_factors: becomes the Condition's `factors`.
    elements, wanted: become the Condition's.
    """

    token_ids: Int32[Array, "B S"]
    pixels: Float[Array, "B I h w 3"] | Float[Array, "B I T C"]
    image_index: Int32[Array, "B S"]
    log_weights: Float32[Array, "B S"]
    condition_log_weights: Float32[Array, "B S"]
    factors: Float32[Array, "B L H"] | None = None
    condition_factors: Float32[Array, "B N Hc"] | None = None
    elements: Float32[Array, "B S E"] | None = None
    wanted: Float32[Array, "B E"] | None = None

    __repr__ = shapes

    def condition(self, hidden: Float[Array, "B S D"]) -> Condition:
        """What the UNet attends to: an embedder's hidden states under the weights that the prompts have there."""
        logs = jnp.asarray(self.condition_log_weights)
        return Condition(hidden, logs, self.condition_factors, elements=self.elements, wanted=self.wanted)


#: Keys and values of one cross-attention.
KeysValues = tuple[Float[jax.Array, "B S Hn K"], Float[jax.Array, "B S Hn K"]]


@flax.struct.dataclass
class Condition:
    """What the UNet attends to.

    hidden: the embedder's last hidden states.
    log_weights: added to every cross-attention score of that key (eq. 2).
    factors: of all rows, or of each; multiplies `log_weights` in cross-attention
        n, head h, counted in the order of execution. Where levels have fewer heads than H, theirs are the
        first. None means 1 everywhere.
    keys_values: of every cross-attention n, what it makes of `hidden`, where that is done once for many calls
        (`models.unet.with_keys_values`); None where each call makes them.
    elements: 1 where a position belongs to an element of the prompt, else 0: what `models.attention_maps` counts the
        attention of. None where nobody asks. E may be more than a prompt has.
    wanted: the share of the elements' attention that each is to receive (`diffusion.balance`), 0 of those that are
        suppressed or not there. None where the weights stay as they are.
    """

    hidden: Float[Array, "B S D"]
    log_weights: Float32[Array, "B S"]
    factors: Float32[Array, "N H"] | Float32[Array, "B N H"] | None = None
    keys_values: tuple[KeysValues, ...] | None = None
    elements: Float32[Array, "B S E"] | None = None
    wanted: Float32[Array, "B E"] | None = None

    def sites(self, first: int, count: int, heads: int) -> Condition:
        """What the `count` cross-attentions from number `first` on see, which have this many heads."""
        here = slice(first, first + count)
        return dataclasses.replace(
            self,
            factors=None if self.factors is None else self.factors[..., here, :heads],
            keys_values=None if self.keys_values is None else self.keys_values[here],
        )

    __repr__ = shapes


def pad(condition: Condition, length: int) -> Condition:
    """`condition` with positions that do not exist added at its end, up to `length`."""
    extra = length - condition.hidden.shape[1]
    if extra == 0:
        return condition
    return dataclasses.replace(
        condition,
        hidden=jnp.pad(condition.hidden, ((0, 0), (0, extra), (0, 0))),
        log_weights=jnp.pad(condition.log_weights, ((0, 0), (0, extra)), constant_values=PADDING),
        # Of hidden states of 0 they are 0: Stable Diffusion's to_k and to_v have no bias.
        keys_values=jax.tree.map(
            lambda x: jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, 0))), condition.keys_values
        ),
        elements=jax.tree.map(lambda x: jnp.pad(x, ((0, 0), (0, extra), (0, 0))), condition.elements),
    )


def concatenate(*conditions: Condition) -> Condition:
    """The rows of all, which have equal lengths."""
    dtype = conditions[0].hidden.dtype
    shape = _factors_shape(*conditions)
    ready = [c.keys_values for c in conditions]
    return Condition(
        jnp.concatenate([c.hidden.astype(dtype) for c in conditions]),
        jnp.concatenate([c.log_weights for c in conditions]),
        None if shape is None else jnp.concatenate([_row_factors(c, shape) for c in conditions]),
        None if None in ready else jax.tree.map(lambda *rows: jnp.concatenate(rows), *ready),
        _joined(conditions, "elements", conditions[0].hidden.shape[1]),
        _joined(conditions, "wanted"),
    )


def take(condition: Condition, rows: Int[Array, " N"]) -> Condition:
    """The rows of these numbers, in this order."""
    shape = _factors_shape(condition)
    return Condition(
        jnp.asarray(condition.hidden)[rows],
        jnp.asarray(condition.log_weights)[rows],
        None if shape is None else _row_factors(condition, shape)[rows],
        jax.tree.map(lambda x: x[rows], condition.keys_values),
        *(None if x is None else jnp.asarray(x)[rows] for x in (condition.elements, condition.wanted)),
    )


def where(chosen: jax.Array, first: Condition, second: Condition) -> Condition:
    """Rows of `first` where `chosen` (bool [B]) is set, of `second` elsewhere, as long as the longer of them.

    Either may have a single row, which then stands for all. The dtype is that of `second`.
    """
    length = max(first.hidden.shape[1], second.hidden.shape[1])
    first, second = pad(first, length), pad(second, length)
    shape = _factors_shape(first, second)
    return Condition(
        jnp.where(chosen[:, None, None], first.hidden.astype(second.hidden.dtype), second.hidden),
        jnp.where(chosen[:, None], first.log_weights, second.log_weights),
        None
        if shape is None
        else jnp.where(chosen[:, None, None], _row_factors(first, shape), _row_factors(second, shape)),
    )


def spread(rows: Condition, groups: int, samples: int, start: int) -> Condition:
    """Rows of `groups` groups -> those of `samples` samples in each: a group's k rows are its samples `start`
    and on, zeros the others."""
    shape = _factors_shape(rows)
    return Condition(
        spread_rows(rows.hidden, groups, samples, start),
        spread_rows(rows.log_weights, groups, samples, start),
        None if shape is None else spread_rows(_row_factors(rows, shape), groups, samples, start),
    )


def spread_rows(rows: Array, groups: int, samples: int, start: int) -> jax.Array:
    """[groups*k, ...] -> [groups*samples, ...]: as `spread`, of one array."""
    count = rows.shape[0] // groups
    grouped = rows.reshape(groups, count, *rows.shape[1:])
    gaps = [(0, 0), (start, samples - start - count)] + [(0, 0)] * (rows.ndim - 1)
    return jnp.pad(grouped, gaps).reshape(groups * samples, *rows.shape[1:])


def _joined(conditions: Sequence[Condition], name: str, *length: int) -> Any:
    """A field [B, *length, E] of all, filled up to the most elements of any; None where none has it."""
    arrays = [getattr(condition, name) for condition in conditions]
    known = [array for array in arrays if array is not None]
    if not known:
        return None
    inner = (*length, max(array.shape[-1] for array in known))
    numpy: Any = np if all(isinstance(array, np.ndarray) for array in known) else jnp

    def filled(condition: Condition, array: Any) -> Any:
        if array is None:
            return np.zeros((len(condition.hidden), *inner), np.float32)
        more = [(0, wide - own) for wide, own in zip(inner, array.shape[1:], strict=True)]
        return numpy.pad(array, [(0, 0), *more])

    return numpy.concatenate([filled(*each) for each in zip(conditions, arrays, strict=True)])


def _factors_shape(*conditions: Condition) -> tuple[int, ...] | None:
    """[N, H] of those that have factors; None where none has."""
    return next((c.factors.shape[-2:] for c in conditions if c.factors is not None), None)


def _row_factors(condition: Condition, shape: tuple[int, ...]) -> jax.Array:
    """[B, N, H]; a Condition without factors has factors of 1."""
    factors = jnp.ones(()) if condition.factors is None else jnp.asarray(condition.factors)
    return jnp.broadcast_to(factors, (condition.hidden.shape[0], *shape))


def stack(conditions: Sequence[Condition], length: int) -> Condition:
    """The first row of each, on the host, padded to `length` with positions that do not exist."""
    conditions = [jax.tree.map(lambda x: np.asarray(x[:1]), condition) for condition in conditions]
    hidden, weights = [], []
    for condition in conditions:
        extra = length - condition.hidden.shape[1]
        hidden.append(np.pad(condition.hidden[0], ((0, extra), (0, 0))))
        weights.append(np.pad(condition.log_weights[0], (0, extra), constant_values=PADDING))
    factors = [condition.factors for condition in conditions]
    known = next((f for f in factors if f is not None), None)
    rows = None
    if known is not None:
        rows = np.stack([np.ones_like(known[0]) if f is None else np.asarray(f[0]) for f in factors])
    elements, wanted = _joined(conditions, "elements", length), _joined(conditions, "wanted")
    return Condition(np.stack(hidden), np.stack(weights), rows, elements=elements, wanted=wanted)
