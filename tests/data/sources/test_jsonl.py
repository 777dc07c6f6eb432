from __future__ import annotations

import json

import numpy as np
import PIL.Image
import pytest

from mvader_jax.data.batches import Shape
from mvader_jax.data.config import DataConfig
from mvader_jax.data.loader import captions_of, make_loader
from mvader_jax.data.order import DamagedRecord
from mvader_jax.data.sources import Pairs, Scenes
from mvader_jax.data.sources.jsonl import Interleaved, PairLines
from mvader_jax.errors import UserError
from mvader_jax.prompt.elements import Image, Prompt, Text
from mvader_jax.prompt.tokenizer import train_tokenizer
from mvader_jax.train.objectives import Contrastive, Diffusion


def write(path, lines):
    path.write_text("\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines))
    return str(path)


def test_pairs_draw_one_of_their_negatives(tmp_path):
    first = {"query": "q0", "positive": "p0", "negatives": ["n0", "n1", "n2"]}
    second = {"query": "größe", "positive": "p1", "negatives": ["n3"]}
    source = PairLines(
        [write(tmp_path / "a.jsonl", [first, "", second]), write(tmp_path / "b.jsonl", [second])]
    )
    assert len(source) == 3
    drawn = {source.record(0, np.random.default_rng(seed))["negative"] for seed in range(30)}
    assert drawn == {"n0", "n1", "n2"}
    assert source.record(1, np.random.default_rng(0)) == {
        "query": "größe",
        "positive": "p1",
        "negative": "n3",
    }
    assert source.where(2) == f"record 0 of {tmp_path / 'b.jsonl'}"


@pytest.mark.parametrize(
    "line",
    ["{", "[1]", {"query": "q", "positive": "p"}, {"query": "q", "positive": "p", "negatives": []},
     {"query": "", "positive": "p", "negatives": ["n"]}, {"query": "q", "positive": 3, "negatives": ["n"]},
     {"query": "q", "positive": "p", "negatives": [None]}, "[" * 100_000,
     '{"query": "lone \\ud83d", "positive": "p", "negatives": ["n"]}',
     '{"query": "q", "positive": "p", "negatives": ["n"], "x": ' + "9" * 5000 + "}"],
)  # fmt: skip
def test_bad_pairs_are_damaged_records(tmp_path, line):
    source = PairLines([write(tmp_path / "a.jsonl", [line])])
    with pytest.raises(DamagedRecord):
        source.record(0, np.random.default_rng(0))


def test_contrastive_batches_come_from_pairs(tmp_path):
    pairs = [
        {"query": f"question {i}", "positive": f"answer {i}", "negatives": [f"wrong {i}"]} for i in range(9)
    ]
    path = write(tmp_path / "a.jsonl", [{"query": "held out"}, *pairs, "{"])
    config = DataConfig(Pairs((path,)))
    texts = captions_of(config, 18)
    assert {"question 3", "answer 3"} <= set(texts)
    tokenizer = train_tokenizer(texts, 300)
    loader = make_loader(config, Contrastive(caption_length=12), tokenizer, Shape(5))
    batch = next(loader)
    for row in range(5):
        words = [
            tokenizer.decode(batch[name].token_ids[row][batch[name].log_weights[row] == 0])
            for name in ("query", "positive", "negative")
        ]
        number = words[0].split()[1]
        assert words == [f"question {number}", f"answer {number}", f"wrong {number}"]
    next(loader)
    assert len(loader.damaged) == 1
    with pytest.raises(UserError, match="needs pictures"):
        make_loader(config, Diffusion(), tokenizer, Shape(5))


@pytest.mark.parametrize("count", [2, 300])
def test_validation_is_on_lines_that_training_does_not_read(tmp_path, count):
    path = write(
        tmp_path / "a.jsonl", [{"query": f"{i}", "positive": "p", "negatives": ["n"]} for i in range(count)]
    )

    def queries(source):
        (lines,) = source
        return [int(lines.record(i, np.random.default_rng(0))["query"]) for i in range(len(lines))]

    source = Pairs((path,))
    train, held_out = (queries(source.pairs(split, 0, 0)) for split in ("train", "validation"))
    assert held_out == list(range(0, count, 100))
    assert sorted(train + held_out) == list(range(count))
    assert source.pairs("train", 0, 0)[0].where(0) == f"record 1 of {path}"
    # A run of before, that read them all, goes on with all.
    every = Pairs((path,), hold_out=0)
    assert (
        queries(every.pairs("train", 0, 0)) == queries(every.pairs("validation", 0, 0)) == list(range(count))
    )


def test_a_single_line_cannot_be_held_out_and_trained_on(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"query": "q", "positive": "p", "negatives": ["n"]}])
    with pytest.raises(UserError, match="has 1 line, which is held out for validation; more are needed"):
        Pairs((path,)).pairs("train", 0, 0)
    assert len(Pairs((path,), hold_out=0).pairs("train", 0, 0)[0]) == 1


def test_interleaved_prompts_are_held_out_too(tmp_path):
    path = write(tmp_path / "a.jsonl", [{"prompt": [str(i)], "target": "a.png"} for i in range(250)])
    train, held_out = (Interleaved([path], split) for split in ("train", "validation"))
    assert (len(train), len(held_out)) == (247, 3)
    assert held_out.record(2, np.random.default_rng(0))["prompt"] == Prompt((Text("200"),))


def test_missing_and_empty_files_are_refused(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        PairLines([str(tmp_path / "none.jsonl")])
    with pytest.raises(UserError, match="has no lines"):
        PairLines([write(tmp_path / "a.jsonl", [""])])
    with pytest.raises(UserError, match="no JSONL file"):
        Interleaved([])


@pytest.fixture
def interleaved(tmp_path):
    for number in range(4):
        PIL.Image.new("RGB", (20, 14), (number * 60, 0, 0)).save(tmp_path / f"{number}.png")
    lines = [
        {"prompt": [{"image": f"{n}.png", "weight": 0.5}, {"text": "in red"}], "target": f"{n}.png"}
        for n in range(4)
    ]
    lines += [{"prompt": [], "target": "0.png"}, {"prompt": ["a"]}, {"prompt": ["a"], "target": "none.png"}]
    return write(
        tmp_path / "prompts.jsonl",
        [{"held": "out"}, *lines, {"prompt": [{"image": "none.png"}], "target": "1.png"}],
    )


def test_interleaved_prompts_keep_order_and_weights(interleaved):
    record = Interleaved([interleaved]).record(3, np.random.default_rng(0))
    picture, text = record["prompt"].elements
    assert isinstance(picture, Image)
    assert isinstance(text, Text)
    assert (picture.weight, text.text) == (0.5, "in red")
    assert picture.path == record["image"]


def test_interleaved_rows_in_the_diffusion_batch(interleaved):
    config = DataConfig(Scenes(num_records=50), image_size=16, bad_share=1.0)
    objective = Diffusion(
        caption_length=40, p_image=0.25, p_interleaved=0.5,
        interleaved=(interleaved,), interleaved_length=20, interleaved_images=1,
    )  # fmt: skip
    tokenizer = train_tokenizer(captions_of(config, 50) + ["in red"] * 9, 400)
    loader = make_loader(config, objective, tokenizer, Shape(8, image_tokens=4, encoder_size=12))
    reds = set()
    for _ in range(6):
        batch = next(loader)
        assert batch["use_image"].tolist() == [True] * 2 + [False] * 6
        assert batch["use_interleaved"].tolist() == [False] * 2 + [True] * 4 + [False] * 2
        prompt = batch["interleaved_prompt"]
        assert prompt.token_ids.shape == (4, 20)
        assert prompt.pixels.shape == (4, 1, 12, 12, 3)
        np.testing.assert_allclose(prompt.log_weights[:, :4], np.log(0.5), rtol=1e-6)
        # The prompt's picture is the target's own.
        red = batch["pixels"][2:6, 0, 0, 0]
        prompt_red = np.rint((prompt.pixels[:, 0, 0, 0, 0] * 0.26862954 + 0.48145466) * 255)
        np.testing.assert_array_equal(red, prompt_red)
        reds |= set(red.tolist())
    assert reds == {0.0, 60.0, 120.0, 180.0}
    reasons = "\n".join(loader.damaged.values())
    assert len(loader.damaged) == 4
    assert "prompts.jsonl: it has no target" in reasons
    assert "none.png' does not exist" in reasons
