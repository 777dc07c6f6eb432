"""The settings of a LoRA that trains."""

from __future__ import annotations

import dataclasses

from mvader_jax.bounds import PositiveFloat, PositiveInt, RegularExpression, Share
from mvader_jax.settings import Checked


@dataclasses.dataclass(frozen=True)
class LoraConfig(Checked):
    """Low-rank changes of a component's weights, in place of the weights themselves."""

    #: The width between a weight's two factors; at most the smaller of its sides.
    rank: PositiveInt
    #: Which of the component's matrices and convolutions: a regular expression found in their paths, as in
    #: `attn.*/to_[qkvo].*`, or `resnets`.
    targets: RegularExpression
    #: What the product is scaled by, over the rank; the rank itself where there is none.
    alpha: PositiveFloat | None = None
    #: The share of a weight's ranks that are left out, anew for each weight and step, the others scaled up (kohya's
    #: rank_dropout, with one draw for a microbatch; PEFT's lora_dropout drops inputs of the first factor instead).
    rank_dropout: Share = 0.0

    @property
    def scale(self) -> float:
        """alpha / rank."""
        return 1.0 if self.alpha is None else self.alpha / self.rank
