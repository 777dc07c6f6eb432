"""What an embedder is: the part of a model that turns prompts into what the UNet attends to."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp

from mvader_jax.condition import Condition, PromptBatch
from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.image_encoder import ImageEncoderConfig
from mvader_jax.models.remat import Remat

Components = Mapping[str, Any]
Dtype = Any


class Embedder(abc.ABC):
    """A model's embedder, made by `of` from the parts that the model's config has."""

    #: The component that reads tokens: a model's tokenizer is the one of this component's bundle.
    reader: ClassVar[str]
    #: Whether it reads prompts of several times `max_positions`, each of these as a prompt of its own.
    chunks: ClassVar[bool] = False

    @classmethod
    @abc.abstractmethod
    def of(cls, model: ModelConfig) -> Embedder:
        """Raises UserError where the model's config lacks a part that no prompt can do without."""

    @property
    @abc.abstractmethod
    def components(self) -> tuple[str, ...]:
        """What it reads of a bundle, in the order in which fresh ones are drawn."""

    @property
    def image_encoder(self) -> ImageEncoderConfig | None:
        """What pictures go through; None where it takes texts only."""
        return None

    @property
    @abc.abstractmethod
    def vocab_size(self) -> int:
        """Rows of its token embedding; ids beyond them have no states."""

    @property
    @abc.abstractmethod
    def max_positions(self) -> int:
        """The longest prompt, in tokens."""

    @property
    @abc.abstractmethod
    def heads(self) -> tuple[int, int]:
        """Layers, and heads of each, that a prompt's decoder factors are for."""

    @property
    @abc.abstractmethod
    def width(self) -> int:
        """Width of the hidden states."""

    @abc.abstractmethod
    def embed_rows(
        self,
        components: Components,
        batches: Sequence[PromptBatch],
        *,
        dtype: Dtype = jnp.float32,
        remat: Remat = "none",
    ) -> list[Condition]:
        """Hidden states and log weights of batches of prompts, each padded to a length of its own.

        dtype: what is computed in. remat: what of the layers is kept for a backward pass. Raises UserError
        naming a component that is missing.
        """


def needed(components: Components, name: str) -> Any:
    """A component's parameters. Raises UserError where they are not there."""
    if name not in components:
        raise UserError(
            f"embedding this prompt needs the component {name!r}; there are: {', '.join(sorted(components))}"
        )
    return components[name]
