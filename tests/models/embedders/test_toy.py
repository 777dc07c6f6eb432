"""An embedder is one file and one line: this file is the one, `registered` is the other.

A bag of words: every token's own embedding, which knows nothing of its neighbours. It reads the decoder's
parameters, and no pictures.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp
import micro
import numpy as np
import pytest

import mvader_jax as mv
from mvader_jax.condition import Condition, PromptBatch
from mvader_jax.errors import UserError
from mvader_jax.models.config import ModelConfig
from mvader_jax.models.decoder import DecoderConfig
from mvader_jax.models.embed import EMBEDDERS, embed, embedder_of
from mvader_jax.models.embedders.base import Components, Dtype, Embedder, needed
from mvader_jax.models.remat import Remat
from mvader_jax.storage.bundle import load_bundle, save_bundle


@dataclasses.dataclass(frozen=True)
class BagOfWords(Embedder):
    reader: ClassVar[str] = "decoder"

    config: DecoderConfig

    @classmethod
    def of(cls, model: ModelConfig) -> BagOfWords:
        return cls(model.require(DecoderConfig))

    @property
    def components(self) -> tuple[str, ...]:
        return ("decoder",)

    @property
    def vocab_size(self) -> int:
        return self.config.vocab_size

    @property
    def max_positions(self) -> int:
        return self.config.max_positions

    @property
    def heads(self) -> tuple[int, int]:
        return 1, 1

    @property
    def width(self) -> int:
        return self.config.width

    def embed_rows(
        self,
        components: Components,
        batches: Sequence[PromptBatch],
        *,
        dtype: Dtype = jnp.float32,
        remat: Remat = "none",
    ) -> list[Condition]:
        table = jnp.asarray(needed(components, "decoder")["wte"]["embedding"], dtype)
        return [batch.condition(table[batch.token_ids]) for batch in batches]


MODEL = dataclasses.replace(micro.NANO, embedder="bag_of_words")


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EMBEDDERS, "bag_of_words", BagOfWords)


def test_it_draws_from_a_saved_bundle(tmp_path: Path) -> None:
    save_bundle(tmp_path / "bundle", micro.bundle(MODEL, "decoder", "unet", "vae"))
    pipe = mv.Pipeline(load_bundle(tmp_path / "bundle"))
    assert pipe.model.embedder == "bag_of_words"
    red, blue = (np.asarray(pipe(f"a {color} circle", steps=2)[0]) for color in ("red", "blue"))
    assert red.shape == (8, 8, 3) and not np.array_equal(red, blue)
    # Each word is its own embedding, wherever it stands.
    red = pipe.embed("a red circle").hidden[0]
    assert any(np.allclose(row, red[1]) for row in np.asarray(pipe.embed("circle red").hidden[0]))
    with pytest.raises(UserError, match="takes text only"):
        pipe([mv.Image(np.zeros((8, 8, 3), np.uint8))], steps=2)


def test_a_name_that_is_not_registered() -> None:
    model = dataclasses.replace(MODEL, embedder="bert")
    with pytest.raises(
        UserError, match="unknown embedder 'bert'; accepted: s_magma, clip_text, bag_of_words"
    ):
        embedder_of(model)


def test_a_model_without_the_part_that_reads() -> None:
    model = dataclasses.replace(MODEL, decoder=None)
    with pytest.raises(UserError, match="this model has no decoder; it has adapters, image_encoder"):
        embed(model, {}, micro.bundle(micro.NANO, "vae").to_batch(["red"]))
    for name in ("s_magma", "clip_text"):
        with pytest.raises(UserError, match="this model has no"):
            embedder_of(ModelConfig(embedder=name))
