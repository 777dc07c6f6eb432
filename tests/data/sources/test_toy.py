"""A source of one's own: one file and one registration line; configs, the loader and overrides know it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mvader_jax.data.batches import Shape
from mvader_jax.data.config import DataConfig
from mvader_jax.data.loader import captions_of, make_loader
from mvader_jax.data.sources.base import Source, split_numbers
from mvader_jax.errors import UserError
from mvader_jax.prompt.tokenizer import train_tokenizer
from mvader_jax.settings import from_dict, override, to_dict
from mvader_jax.train.objectives import Autoencoding, Contrastive, Diffusion

# ---- the one file --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Greys(Source):
    """Grey squares. levels: how many there are."""

    levels: int = 3

    def pictures(self, split, seed, size):
        return [GreyPictures(split_numbers(self.levels, split), size)]


class GreyPictures:
    def __init__(self, numbers, size):
        self.numbers, self.size = numbers, size

    def __len__(self):
        return len(self.numbers)

    def record(self, index, rng):
        level = self.numbers[index]
        return {"image": np.full((self.size, self.size, 3), level, np.uint8), "caption": f"grey {level}"}

    def where(self, index):
        return f"grey {self.numbers[index]}"


# ---- the one line --------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(Source.kinds, "greys", Greys)


# --------------------------------------------------------------------------------------------------------------


def test_a_batch_of_it_is_read_through_the_loader():
    config = override(DataConfig(image_size=8, threads=1), ["source=greys", "source.levels=13"])
    assert from_dict(DataConfig, to_dict(config)) == config
    tokenizer = train_tokenizer(captions_of(config, 12), 300)
    loader = make_loader(config, Diffusion(), tokenizer, Shape(12, image_tokens=4, encoder_size=8))
    batch = next(loader)
    levels = batch["pixels"][:, 0, 0, 0].tolist()
    assert sorted(levels) == list(range(1, 13))  # number 0 is held out
    told = [
        tokenizer.decode(ids[logs == 0])
        for ids, logs in zip(batch["text_prompt"].token_ids, batch["text_prompt"].log_weights, strict=True)
    ]
    assert told == [f"grey {level}" for level in levels[-len(told) :]]
    held_out = next(make_loader(config, Autoencoding(), None, Shape(2), "validation"))
    assert not held_out["pixels"].any()


def test_what_it_does_not_have_it_refuses():
    config = DataConfig(Greys(), image_size=8)
    tokenizer = train_tokenizer(["grey"], 300)
    with pytest.raises(UserError, match="needs pairs; data of source 'greys' has none"):
        make_loader(config, Contrastive(), tokenizer, Shape(2))
    with pytest.raises(UserError, match="those of source 'greys' have none"):
        make_loader(dataclasses.replace(config, aspect_buckets=((8, 8),)), Autoencoding(), None, Shape(2))
    with pytest.raises(UserError, match=r"unknown key 'num_records' .* \(greys\); known: levels"):
        override(config, ["source.num_records=3"])
