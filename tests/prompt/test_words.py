"""Words that no training saw are told, in small closed worlds alone; so are words without quotation marks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import mvader_jax as mv
from mvader_jax.data.scenes.captions import caption
from mvader_jax.data.scenes.world import scene_at
from mvader_jax.errors import UserError
from mvader_jax.prompt.layout import lay_out
from mvader_jax.prompt.parse import loose_words
from mvader_jax.prompt.tokenizer import Tokenizer, train_tokenizer
from mvader_jax.prompt.words import unseen, words_of
from mvader_jax.storage.bundle_config import find_bundle

CAPTIONS = ["a red hat on the table", "ein grüner Hut, darauf 3 Kreise"] * 4


def told_of(tokenizer: Tokenizer, *prompts: object) -> list[str]:
    told: list[str] = []
    lay_out(tokenizer, prompts, notify=told.append)  # type: ignore[arg-type]
    return told


def test_a_small_world_knows_its_words(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(CAPTIONS, 2000)
    tokenizer.save(tmp_path)
    for one in (tokenizer, Tokenizer.load(tmp_path)):
        assert not told_of(one, "a red hat", ["the table", mv.Text("darauf Kreise, 3!")], None)
        assert told_of(one, "a Red lighthouse", "the sea") == [
            "no text that this bundle was trained on holds the words 'Red', 'lighthouse', 'sea'"
        ]
        assert told_of(one, "sea") == ["no text that this bundle was trained on holds the word 'sea'"]
        assert told_of(one, " ".join("uvwxyz"))[0].endswith("'y' and 1 more")
    # What is trained on later is known too; what grows beyond a small world knows no words.
    later = tokenizer.trained_on(["the sea"])
    assert not told_of(later, "a red sea") and told_of(tokenizer, "a red sea")
    assert tokenizer.trained_on(map(str, range(2000))).words is None
    Tokenizer(tokenizer.backend, tokenizer.config).save(tmp_path)
    assert Tokenizer.load(tmp_path).words is None
    (tmp_path / "words.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(UserError, match="is no list of words"):
        Tokenizer.load(tmp_path)


def test_an_open_vocabulary_tells_nothing() -> None:
    """Where pairs are left to join, or words are many, a word in pieces says nothing."""
    for tokenizer in (train_tokenizer(CAPTIONS, 262), train_tokenizer(map(str, range(2000)), 5000)):
        assert tokenizer.words is None and not told_of(tokenizer, "a lighthouse by the sea")


def test_the_embedded_model_knows_the_words_of_its_world() -> None:
    words = Tokenizer.load(find_bundle("tiny") / "tokenizer").words
    rng = np.random.default_rng(0)
    captions = [caption(scene_at(5, i), rng, language) for i in range(150) for language in ("en", "de")]
    assert words is not None and frozenset() < (words_of(captions) or {""}) <= words
    assert unseen(["a red circle, in red", "a Hat"], words) == ["Hat"]


@pytest.mark.parametrize(
    ("parts", "quoted"),
    [
        (["a", "red", "circle"], "a red circle"),
        (["red", "hat", "photo.png"], "red hat"),
        (["photo.png", "in", "blue"], "in blue"),
        (["a red circle"], ""),
        (["cat", "photo.png", "dog"], ""),
        (["cat"], ""),
        (["cat@0.5", "dog@0.3"], ""),
        (["text:cat", "text:dog"], ""),
        (["a cat", "a dog"], ""),
        ([], ""),
    ],
)
def test_words_without_quotation_marks(parts: list[str], quoted: str) -> None:
    hint = loose_words(parts)
    assert (f'quote it: "{quoted}"' in hint) if quoted else not hint
