"""What hidden states that were computed before cost in storage and reading, and from when on they pay."""

from __future__ import annotations

import math
from typing import Any

import jax

from mvader_jax.condition import PromptBatch


def states_note(states: tuple[int, ...], batch: Any, samples: int, seconds: float | None) -> str:
    """A sentence of a plan. states: as `EncodedShapes.states`; batch: of a step of `samples`, which takes `seconds`.

    Encoding walks the decoder through both prompts of a sample, a step only through those that its rows have room for.
    """
    pictures, words, _, width = states
    record = 2 * (pictures + words) * width
    prompts = jax.tree.leaves(batch, is_leaf=lambda x: isinstance(x, PromptBatch))
    walked = sum(p.token_ids.size for p in prompts if isinstance(p, PromptBatch)) / samples
    epochs = math.ceil((pictures + words) / walked)
    read = (
        ""
        if seconds is None
        else f", {samples * record / seconds / 1e9:.1f} GB/s from the bucket at this step"
    )
    return (
        f"states: {record / 1e6:.2f} MB a sample in the bucket{read}; computing them is the decoder's work of "
        f"{(pictures + words) / walked:.1f} epochs, so that they save work from epoch {epochs} on"
    )
