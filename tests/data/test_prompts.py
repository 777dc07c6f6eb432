import dataclasses

import numpy as np
import pytest

from mvader_jax.condition import PADDING
from mvader_jax.data.prompts import IGNORED, caption_rows, captioning_rows, image_rows
from mvader_jax.prompt.layout import lay_out
from mvader_jax.prompt.tokenizer import Tokenizer, TokenizerConfig, train_tokenizer

CAPTIONS = ["a small red circle", "a", "two large hollow crosses on a white background"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(CAPTIONS * 5, 300)


def same(a, b):
    for field in dataclasses.fields(a):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name), err_msg=field.name)


@pytest.mark.parametrize("kind", ["gpt2", "clip"])
def test_captions_are_laid_out_as_prompts_are(tokenizer, kind):
    config = dataclasses.replace(tokenizer.config, max_positions=64)
    if kind == "clip":
        config = TokenizerConfig(
            eos_id=0, bos_id=1, pad_id=0, add_bos=True, add_eos=True, length=60, max_positions=60
        )
    layout = Tokenizer(tokenizer.backend, config)
    rows = caption_rows(layout, CAPTIONS, 60)
    same(rows, lay_out(layout, CAPTIONS, length=60, num_images=0))


def test_images_are_laid_out_as_prompts_are(tokenizer):
    pictures = np.random.default_rng(0).integers(0, 256, (3, 20, 20, 3)).astype(np.uint8)
    expected = lay_out(tokenizer, list(pictures), image_size=20, image_tokens=9, length=9)
    same(image_rows(expected.pixels[:, 0], 9), expected)


def test_long_captions_are_cut_and_empty_ones_are_the_null_condition(tokenizer):
    rows = caption_rows(tokenizer, [CAPTIONS[2], ""], 5)
    assert rows.token_ids[0].tolist() == tokenizer.encode(CAPTIONS[2])[:5]
    assert (rows.log_weights[0] == 0).all()
    assert rows.token_ids[1, 0] == tokenizer.config.eos_id
    assert rows.log_weights[1].tolist() == [0, *[np.float32(PADDING)] * 4]
    same(caption_rows(tokenizer, [""], 5), lay_out(tokenizer, [None], length=5))


def test_a_cut_clip_caption_keeps_its_ends(tokenizer):
    config = TokenizerConfig(
        eos_id=0, bos_id=1, pad_id=0, add_bos=True, add_eos=True, length=6, max_positions=6
    )
    ids = caption_rows(Tokenizer(tokenizer.backend, config), [CAPTIONS[2]], 99).token_ids
    assert ids.shape == (1, 6)
    assert (ids[0, 0], ids[0, -1]) == (1, 0)


def test_captioning_learns_the_first_eos_only(tokenizer):
    ids = tokenizer.encode(CAPTIONS[0])
    prompt, labels = captioning_rows(
        tokenizer, [CAPTIONS[0]], len(ids) + 3, np.zeros((1, 8, 8, 3), np.float32), 4
    )
    assert labels[0].tolist() == [IGNORED] * 4 + [*ids, 0, IGNORED, IGNORED]
    assert prompt.token_ids[0, 4:].tolist() == [*ids, 0, 0, 0]
    assert (prompt.log_weights == 0).all()
