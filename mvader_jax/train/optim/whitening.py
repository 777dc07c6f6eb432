"""The coordinates in which the hidden states of prompts vary alike in every direction.

A decoder's hidden states share one large mean, and what tells two prompts apart may lie in directions of a
hundred-thousandth of its variance: the gradient of the UNet's `to_k` and `to_v` hardly shows them, and a step along
the gradient hardly moves along them. Training V, where W = C^(-1/2) V and C is the second moment of the hidden
states, does not know the difference: the input's half of the natural gradient (K-FAC: Martens & Grosse 2015). The
network stays what it was; only the way there changes.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mvader_jax.condition import SUPPRESSED, PromptBatch
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.embed import embed_rows, embedder_of
from mvader_jax.train.config import Stage

#: Hidden states that the second moment is measured on, per dimension.
STATES = 256
#: Added to the second moment, as a share of its mean eigenvalue: no direction is stretched more than
#: 1 / sqrt(FLOOR) = 32 times as much as an average one.
FLOOR = 1e-3


def whitening_matrix(second_moment: np.ndarray) -> np.ndarray:
    """(C + FLOOR * mean eigenvalue)^(-1/2), symmetric, float64 [D, D]."""
    values, vectors = np.linalg.eigh(second_moment)
    values = np.maximum(values, 0.0) + FLOOR * values.mean()
    return np.asarray((vectors / np.sqrt(values)) @ vectors.T)


def measure_whitening(
    model: ModelConfig, components: Mapping[str, Any], stage: Stage, batches: Iterator[Mapping[str, Any]]
) -> np.ndarray:
    """The whitening of the hidden states of a stage's own prompts, images and captions as often as it reads them.

    Raises UserError for an objective whose networks read no condition.
    """
    width = stage.objective.condition_width(model)
    read = embedder_of(model).components
    parts = {name: tree for name, tree in components.items() if name in read}
    moment = jax.jit(functools.partial(_moment, model, jnp.dtype(stage.dtype)))
    total: Any = 0.0
    count = 0.0
    while count < STATES * width:
        batch = next(batches)
        products, states = moment(parts, [batch[name] for name in sorted(batch) if name.endswith("_prompt")])
        total = total + np.asarray(products, np.float64)
        count += float(states)
    return whitening_matrix(total / count)


def _moment(
    model: ModelConfig, dtype: Any, components: Mapping[str, Any], prompts: list[PromptBatch]
) -> tuple[jax.Array, jax.Array]:
    """(sum of h h^T over the tokens that count, float32 [D, D]; how many they are)."""
    products: Any = 0.0
    count: Any = 0.0
    for condition in embed_rows(model, components, prompts, dtype=dtype):
        seen = (condition.log_weights > SUPPRESSED).astype(jnp.float32)
        states = condition.hidden.astype(jnp.float32) * seen[:, :, None]
        products += jnp.einsum("bsd,bse->de", states, states, precision="highest")
        count += jnp.sum(seen)
    return products, count
