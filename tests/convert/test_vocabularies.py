"""CLIP's vocabulary comes in and goes out: words that were learnt, and what pads a prompt."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import twins
from converting import convert, converted
from transformers import CLIPTokenizer
from vocabularies import clip_vocabulary

from mvader_jax.convert.compose import compose
from mvader_jax.convert.export import export
from mvader_jax.errors import UserError
from mvader_jax.prompt.tokenizer import TokenizerConfig
from mvader_jax.storage.bundle import load_bundle


def test_tokenizer_travels(tmp_path: Path) -> None:
    source = twins.save_diffusers(tmp_path / "sd", twins.clip_text())
    folder = clip_vocabulary(source / "tokenizer")
    bundle = converted(source, tmp_path / "bundle")
    assert bundle.tokenizer is not None
    assert bundle.model.tokenizer == TokenizerConfig(
        "clip", eos_id=299, bos_id=298, pad_id=299, add_bos=True, add_eos=True, length=20, max_positions=20
    )
    export(tmp_path / "bundle", tmp_path / "out", "diffusers")
    theirs = CLIPTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    for text in ("the cat", "The  CAT and a hat!", "thethe"):
        batch = bundle.to_batch([text])
        expected = theirs(text, padding="max_length", max_length=20, truncation=True).input_ids
        assert batch.token_ids[0].tolist() == expected
    # The same where a source brings none and the user names one.
    alone = twins.save_folder(
        tmp_path / "text", twins.clip_text().state_dict(), twins.clip_text().config.to_dict()
    )
    given = converted(alone, tmp_path / "given", tokenizer=folder)
    assert given.tokenizer is not None and given.model.tokenizer == bundle.model.tokenizer
    with pytest.raises(UserError, match="has no tokenizer"):
        convert(alone, tmp_path / "x", tokenizer=tmp_path)


ADDED = {"<cat-toy>": 300, "<Big One>": 301}


@pytest.mark.parametrize(
    "style", ["added_tokens.json", "tokenizer_config.json", "tokenizer.json", "transformers"]
)
def test_learnt_words_travel(style: str, tmp_path: Path) -> None:
    """A textual inversion's words and rows: the ids are transformers' on the way in, and again on the way out."""
    source = twins.save_diffusers(tmp_path / "sd", twins.clip_text(vocab_size=302))
    folder = clip_vocabulary(source / "tokenizer")
    flags = {"lstrip": False, "normalized": True, "rstrip": False, "single_word": False, "special": False}
    if style == "added_tokens.json":
        (folder / style).write_text(json.dumps(ADDED))
    elif style == "tokenizer_config.json":
        decoder = {str(number): {"content": word, **flags} for word, number in ADDED.items()}
        settings = {"tokenizer_class": "CLIPTokenizer", "added_tokens_decoder": decoder}
        (folder / style).write_text(json.dumps(settings))
    else:
        tokenizer = CLIPTokenizer.from_pretrained(folder)
        tokenizer.add_tokens(list(ADDED))
        shutil.rmtree(folder)
        tokenizer.save_pretrained(folder)
        if style == "transformers":
            clip_vocabulary(folder)
    theirs = CLIPTokenizer.from_pretrained(folder)
    bundle = converted(source, tmp_path / "bundle")
    assert bundle.model.tokenizer is not None and bundle.model.tokenizer.eos_id == 299
    export(tmp_path / "bundle", tmp_path / "out", "diffusers")
    back = CLIPTokenizer.from_pretrained(tmp_path / "out" / "tokenizer")
    again = converted(tmp_path / "out", tmp_path / "again")
    for text in ("the cat", "a <cat-toy>, the cat", "<CAT-TOY>the <big one>hat <Big One>"):
        expected = theirs(text, padding="max_length", max_length=20, truncation=True).input_ids
        assert (300 in expected) == ("toy" in text.lower())
        for ours in (bundle, again):
            assert ours.to_batch([text]).token_ids[0].tolist() == expected, text
        assert back(text, padding="max_length", max_length=20, truncation=True).input_ids == expected
    assert json.loads((tmp_path / "out" / "tokenizer" / "added_tokens.json").read_text()) == ADDED


def test_added_tokens_that_do_not_fit(tmp_path: Path) -> None:
    source = twins.save_diffusers(tmp_path / "sd", twins.clip_text(vocab_size=301))
    folder = clip_vocabulary(source / "tokenizer")
    for added, reason in [
        ({"<x>": 305}, "'<x>' has the id 305 in its files, but 300 in the vocabulary"),
        ({"<x>": 3}, "'<x>' has the id 3 in its files"),
        ({"<x>": "300"}, "an added token has the id '300', which is no whole number"),
        ([], "is not a JSON object"),
    ]:
        (folder / "added_tokens.json").write_text(json.dumps(added))
        with pytest.raises(UserError, match=reason):
            convert(source, tmp_path / "bundle")
    # More words than rows: those beyond are left out, and named.
    (folder / "added_tokens.json").write_text(json.dumps({"<one>": 300, "<two>": 301}))
    report = convert(source, tmp_path / "bundle")
    assert any(
        "left out: 1 added tokens that the model has no rows for (<two>)" in note for note in report.notes
    )
    bundle = load_bundle(tmp_path / "bundle", components=[])
    assert (
        300 in bundle.to_batch(["<one> <two>"]).token_ids
        and bundle.to_batch(["<two>"]).token_ids.max() == 300 - 1
    )
    # A vocabulary of another model.
    other = twins.save_diffusers(tmp_path / "other", twins.clip_text(vocab_size=200))
    clip_vocabulary(other / "tokenizer")
    with pytest.raises(UserError, match="vocabulary goes to token 299, but the model has 200 rows"):
        convert(other, tmp_path / "x")


def test_what_pads_a_prompt_is_read(tmp_path: Path) -> None:
    source = twins.save_diffusers(tmp_path / "sd", twins.clip_text())
    folder = clip_vocabulary(source / "tokenizer")
    names = {"bos_token": "<|startoftext|>", "eos_token": {"content": "<|endoftext|>"}, "pad_token": "!"}
    (folder / "special_tokens_map.json").write_text(json.dumps(names))
    bundle = converted(source, tmp_path / "bundle")
    expected = CLIPTokenizer.from_pretrained(folder, pad_token="!")(
        "the cat", padding="max_length", max_length=20
    )
    assert bundle.to_batch(["the cat"]).token_ids[0].tolist() == expected.input_ids
    (folder / "special_tokens_map.json").write_text(json.dumps({**names, "eos_token": "!"}))
    with pytest.raises(UserError, match="its eos_token is token 0, but CLIP's is 299"):
        convert(source, tmp_path / "x")
    (folder / "special_tokens_map.json").write_text(json.dumps({**names, "pad_token": "<pad>"}))
    with pytest.raises(UserError, match="pad_token is '<pad>', which the vocabulary does not have"):
        convert(source, tmp_path / "x")


def test_a_tokenizer_without_a_reader_is_refused(tmp_path: Path) -> None:
    source = twins.save_diffusers(tmp_path / "sd", twins.vae())
    with pytest.raises(UserError, match="--tokenizer has no place here"):
        convert(source, tmp_path / "x", tokenizer=clip_vocabulary(tmp_path / "vocabulary"))
    convert(source, tmp_path / "vae")
    with pytest.raises(UserError, match="--tokenizer has no place here: without a decoder"):
        compose(tmp_path / "x", {"vae": tmp_path / "vae"}, tokenizer=tmp_path / "vocabulary")
