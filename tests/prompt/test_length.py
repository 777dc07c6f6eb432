"""Prompts that are too long for a model: where they are cut, and who may read them in chunks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mvader_jax as mv
from mvader_jax.condition import PromptBatch
from mvader_jax.errors import UserError
from mvader_jax.prompt.layout import lay_out
from mvader_jax.prompt.tokenizer import Tokenizer, train_tokenizer

LONG = "a red hat on the table " * 8


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["a red hat on the table"] * 3, 300, max_positions=32)


def laid_out(tokenizer: Tokenizer, prompt: Any, **options: Any) -> tuple[PromptBatch, list[str]]:
    told: list[str] = []
    options = {"image_size": 8, "image_tokens": 4, "notify": told.append, **options}
    return lay_out(tokenizer, [prompt], **options), told


def test_the_end_of_the_texts_is_cut_and_told(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(LONG)
    assert len(ids) > 40
    batch, told = laid_out(tokenizer, LONG)
    assert batch.token_ids[0].tolist() == ids[:32]
    lost = tokenizer.decode(ids[32:]).strip()
    assert (
        len(told) == 1 and f"a prompt has {len(ids)} tokens, more than this model's 32 positions" in told[0]
    )
    assert f"left out is {lost[:20]!r}"[:-1] in told[0] and "chunk" not in told[0]
    # What fits is whole, and nothing is said.
    batch, told = laid_out(tokenizer, "a red hat")
    assert not told and batch.token_ids.shape[1] == 8


def test_pictures_stay_whole(tokenizer: Tokenizer) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    ids = tokenizer.encode(LONG)
    prompt = [mv.Text("a hat"), mv.Text(LONG, 0.5, spans={"hat": 4.0}), mv.Image(picture, 0.25)]
    batch, told = laid_out(tokenizer, prompt)
    first = tokenizer.encode("a hat")
    room = 32 - 4 - len(first)
    assert batch.token_ids[0].tolist() == [*first, *ids[:room], 0, 0, 0, 0] and len(told) == 1
    assert batch.image_index[0, -5:].tolist() == [-1, 0, 1, 2, 3]
    np.testing.assert_allclose(np.exp(batch.log_weights[0, -4:]), 0.25, rtol=1e-6)
    whole = lay_out(tokenizer, [prompt], image_size=8, image_tokens=4, max_positions=200)
    np.testing.assert_array_equal(batch.log_weights[0, :28], whole.log_weights[0, :28])
    # A whole text may go; pictures alone that are too many are refused.
    _, told = laid_out(tokenizer, [*[mv.Image(picture)] * 7, "a red hat on the table", LONG])
    assert len(told) == 1
    with pytest.raises(UserError, match=r"9 images of 4 tokens, \d+ in all, more than this model's 32"):
        laid_out(tokenizer, [*[mv.Image(picture)] * 9, "a hat"])
    balanced, _ = laid_out(tokenizer, mv.Prompt([*[mv.Image(picture)] * 8, "a hat"], balance=True))
    assert np.all(np.isfinite(balanced.log_weights))


def test_they_may_be_refused_and_chunks_are_not_for_all(tokenizer: Tokenizer) -> None:
    for options in ({"long_prompts": "refuse"}, {}):
        prompt = LONG if options else mv.Prompt([LONG], long_prompts="refuse")
        with pytest.raises(UserError, match=r"text tokens, .* in all, more than this model's 32 positions"):
            laid_out(tokenizer, prompt, **options)
    for text in (LONG, "a hat"):
        with pytest.raises(UserError, match="reads a prompt in one piece; accepted: cut and refuse"):
            laid_out(tokenizer, text, long_prompts="chunk")
    batch, told = laid_out(tokenizer, LONG, long_prompts="chunk", chunks=True)
    assert not told and batch.token_ids.shape[1] % 32 == 0
    for bad, make in (
        ("some", lambda: mv.Prompt(["x"], long_prompts="some")),
        ("7", lambda: mv.SamplingSettings(long_prompts=7)),
    ):
        with pytest.raises(UserError, match=f"long_prompts is '?{bad}'?; accepted: cut, refuse, chunk"):
            make()
