"""What every objective is: one frozen object that carries its own settings and knows all that depends on it.

Training, plans and precomputation ask it; nobody else tells objectives apart. Adding one: a file here, and a
line in `__init__.py`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Float32, Shaped

from mvader_jax.condition import Array, PromptBatch
from mvader_jax.data.batches import Batch, BatchFn, Feed, Shape
from mvader_jax.data.config import DataConfig
from mvader_jax.data.order import Dataset
from mvader_jax.data.scenes.world import Split
from mvader_jax.data.sources.encoded import EncodedShapes
from mvader_jax.data.sources.open import open_pictures
from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.remat import Remat
from mvader_jax.prompt.tokenizer import Tokenizer, TokenizerConfig
from mvader_jax.settings import Choice
from mvader_jax.storage.bundle import Bundle
from mvader_jax.train.samples import Drawing

#: name -> float32 [2], a sum and the count it runs over, so that means over steps, microbatches and
#: modalities of unequal size stay exact.
Metrics = dict[str, jax.Array]

#: {component: its parameters}.
Components = Mapping[str, Any]

#: (components, batch, key, groups) -> (loss, metrics). `groups` is how many groups the batch's rows
#: are laid out in (see data/rows.py); objectives without mixed rows ignore it.
LossFn = Callable[[Components, Batch, jax.Array, int], tuple[jax.Array, Metrics]]


@dataclasses.dataclass(frozen=True)
class Objective(Choice, abc.ABC):
    """What a stage minimises. Its fields are its settings, `kind` the name it is registered under."""

    #: Whether a batch may be computed in microbatches: its loss is a mean over rows that know nothing of
    #: each other.
    accumulates: ClassVar[bool] = True
    #: Whether it reads texts, so that a stage needs a tokenizer.
    reads_text: ClassVar[bool] = True
    #: Whether the pictures of its batches may all be cropped to another shape than the square.
    takes_buckets: ClassVar[bool] = True
    #: Whether its networks can compute activations again in place of keeping them.
    rematerialises: ClassVar[bool] = True
    #: Whether latents or features that were computed before may stand for its pictures.
    takes_precomputed: ClassVar[bool] = True

    #: Components that train whole, whose running average the loss reads too, as `average_of(NAME)`.
    averages: ClassVar[tuple[str, ...]] = ()
    #: Components that what trains learns from, which no group may train.
    teachers: ClassVar[tuple[str, ...]] = ()

    def check(self, data: DataConfig) -> None:
        """Raises UserError for settings of the data that it cannot use."""
        if data.precomputed and not self.takes_precomputed:
            raise UserError(f"the {self.kind} objective reads no precomputed latents or features")
        if data.aspect_buckets and not self.takes_buckets:
            raise UserError(f"aspect_buckets do nothing for the {self.kind} objective; leave them out")
        if data.aspect_buckets and data.precomputed:
            raise UserError("aspect_buckets do not go with precomputed latents")

    def check_model(self, model: ModelConfig) -> None:
        """Raises UserError where its own settings ask of a model what it cannot do."""
        del model

    @abc.abstractmethod
    def components(
        self, model: ModelConfig, known: Collection[str] = (), drawn: bool = False
    ) -> tuple[str, ...]:
        """Which components a stage computes with.

        known: parts of the batch that come precomputed; drawn: whether pictures are drawn while it trains.
        """

    def extended(self, model: ModelConfig) -> ModelConfig:
        """The model with the parts that a stage adds to it. Raises UserError where it cannot be."""
        return model

    def stage_model(self, model: ModelConfig) -> ModelConfig:
        """The model as a stage sees it."""
        return model

    def sources(self, data: DataConfig, split: Split) -> Sequence[Dataset]:
        """Where its records come from. Raises UserError where they do not exist or do not suit it."""
        return open_pictures(data, split)

    @abc.abstractmethod
    def batches(
        self, feed: Feed, data: DataConfig, shape: Shape, tokenizer: Tokenizer | None, split: Split
    ) -> BatchFn:
        """Makes this process's rows of a step's batch, in NumPy; a function of the step's number."""

    @abc.abstractmethod
    def abstract_batch(
        self, data: DataConfig, shape: Shape, tokenizer: TokenizerConfig | None, encoded: EncodedShapes
    ) -> Batch:
        """The batch that `batches` makes, as shapes and dtypes. encoded: of what comes precomputed."""

    @abc.abstractmethod
    def loss(self, model: ModelConfig, *, dtype: str = "float32", remat: Remat = "none") -> LossFn:
        """The loss of a batch. dtype: that its networks compute in; remat: what is kept for the backward pass."""

    def encoder_input(self, batch: Batch) -> Float[Array, "N h w 3"]:
        """The pictures of a batch as the image encoder reads them: a fresh one is calibrated on them.

        Raises UserError where it shows none.
        """
        raise UserError(f"the {self.kind} objective shows no pictures to an image encoder")

    def states(self, model: ModelConfig) -> tuple[int, ...]:
        """`EncodedShapes.states` of its prompts. Raises UserError where hidden states cannot be computed before."""
        raise UserError(f"the {self.kind} objective reads no precomputed states")

    def null_prompt(self, model: ModelConfig) -> PromptBatch | None:
        """The prompt, one row, that stands for rows whose condition is dropped; None where none does."""
        del model
        return None

    def condition_width(self, model: ModelConfig) -> int:
        """Width of the hidden states that a network reads as its condition. Raises UserError where none does."""
        raise UserError(f"optimizer.whiten is for networks that read a condition; {self.kind} trains none")

    def drawing(self) -> Drawing | None:
        """What is drawn while it trains; None for nothing."""
        return None

    def drawn(self, bundle: Bundle) -> Bundle:
        """What is drawn with while it trains, of the components that it computes with."""
        return bundle

    def finished(self, bundle: Bundle, batches: Iterator[Batch]) -> Bundle:
        """The bundle as its stage leaves it, where settings of it are measured. batches: held-out ones."""
        del batches
        return bundle


def average_of(component: str) -> str:
    """The name under which a loss reads the running average of a component that trains."""
    return f"{component}_average"


def picture_parts(model: ModelConfig, known: Collection[str]) -> tuple[str, ...]:
    """Components that make positions of a decoder's prompt out of pictures, or of features where known."""
    encoder = ("image_encoder",) if "features" not in known else ()
    return ("adapters",) * (model.adapters is not None) + (*encoder, "image_prefix")


def without_pictures(model: ModelConfig) -> ModelConfig:
    """The bare language model: without the parts that make it multimodal."""
    return dataclasses.replace(model, adapters=None, image_encoder=None, image_prefix=None)


def needed_tokenizer(objective: Objective, tokenizer: Tokenizer | None) -> Tokenizer:
    """Raises UserError where there is none."""
    if tokenizer is None:
        raise UserError(f"the {objective.kind} objective needs a tokenizer")
    return tokenizer


def mean_metric(
    values: Shaped[jax.Array, "*B"], mask: Bool[jax.Array, "*B"] | None = None
) -> Float32[jax.Array, "2"]:
    """A metric from the values of rows, or of their positions, over those where `mask` is set."""
    weight = jnp.ones(values.shape, jnp.float32) if mask is None else mask.astype(jnp.float32)
    return jnp.stack([jnp.sum(values.astype(jnp.float32) * weight), jnp.sum(weight)])
