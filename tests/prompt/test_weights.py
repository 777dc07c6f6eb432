"""What weights of elements, spans, regions and layers become: literal arrays out of the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from mvader_jax.condition import PADDING, SUPPRESSED, PromptBatch
from mvader_jax.errors import UserError
from mvader_jax.prompt.elements import Image, Prompt, Text
from mvader_jax.prompt.layout import lay_out
from mvader_jax.prompt.tokenizer import Tokenizer, train_tokenizer
from mvader_jax.sampling.settings import SamplingSettings

SQUARE = np.zeros((8, 8, 3), np.uint8)
WIDE = np.zeros((8, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Every word of 'a red hat on the table' is one token."""
    return train_tokenizer(["a red hat on the table"] * 3, 300, max_positions=32)


def batch(tokenizer: Tokenizer, *prompts: Any, side: int = 2, **options: Any) -> PromptBatch:
    return lay_out(tokenizer, prompts, image_size=8, image_tokens=side * side, **options)


def thetas(tokenizer: Tokenizer, prompt: Any, **options: Any) -> np.ndarray:
    """theta of every token that exists."""
    logs = np.asarray(batch(tokenizer, prompt, **options).log_weights)[0]
    assert logs.dtype == np.float32
    return np.exp(logs[logs > PADDING])


def test_element_weights(tokenizer: Tokenizer) -> None:
    prompt = [Text("a red hat", 2.0), Image(SQUARE, 0.25)]
    logs = batch(tokenizer, prompt).log_weights
    two, quarter = np.log(np.float32([2, 0.25]))
    np.testing.assert_array_equal(logs, [[two] * 3 + [quarter] * 4 + [PADDING]])


def test_a_plain_prompt_is_bitwise_one_of_weights_1(tokenizer: Tokenizer) -> None:
    plain = batch(tokenizer, ["a red hat", SQUARE])
    ones = [Text("a red hat", 1.0, {"red": 1.0}), Image(SQUARE, 1.0, [((0, 0, 0.3, 1), 1.0)])]
    for other in (ones, Prompt.of(["a red hat", SQUARE], site="decoder")):
        for name in ("token_ids", "pixels", "image_index", "log_weights", "condition_log_weights"):
            ours, theirs = (np.asarray(getattr(b, name)) for b in (plain, batch(tokenizer, other)))
            assert ours.tobytes() == theirs.tobytes(), name
    assert plain.factors is None and plain.condition_factors is None
    np.testing.assert_array_equal(plain.log_weights, [[0.0] * 7 + [PADDING]])


@pytest.mark.parametrize(
    ("text", "spans", "expected"),
    [
        ("a red hat", {"red": 2.0}, [1, 2, 1]),
        ("a red red hat", {"red": 2.0}, [1, 2, 2, 1]),
        ("a red hat on", {"red hat": 3.0}, [1, 3, 3, 1]),
        ("a red hat on", {"red hat": 3.0, "hat on": 0.5}, [1, 3, 1.5, 0.5]),
        ("a red hat", {"ha": 2.0}, [1, 1, 2]),
        ("a red hat", {"red": 0.0}, [1, 0, 1]),
    ],
)
def test_spans(tokenizer: Tokenizer, text: str, spans: dict[str, float], expected: list[float]) -> None:
    np.testing.assert_allclose(thetas(tokenizer, Text(text, spans=spans)), expected, rtol=1e-6)
    half = thetas(tokenizer, Text(text, 0.5, spans))
    np.testing.assert_allclose(half, np.array(expected) / 2, rtol=1e-6)


@pytest.mark.parametrize(
    ("picture", "regions", "expected"),
    [
        (SQUARE, [((0, 0, 0.5, 1), 3.0)], [3, 1, 3, 1]),
        (SQUARE, [((0, 0, 1, 0.5), 0.0)], [0, 0, 1, 1]),
        # A quarter of the left cells: 1 + (3 - 1) / 2.
        (SQUARE, [((0, 0, 0.25, 1), 3.0)], [2, 1, 2, 1]),
        (SQUARE, [((0, 0, 0.5, 1), 3.0), ((0, 0, 1, 0.5), 2.0)], [6, 2, 3, 1]),
        # The encoder sees the central half of a picture twice as wide as high.
        (WIDE, [((0, 0, 0.5, 1), 3.0)], [3, 1, 3, 1]),
        (WIDE, [((0, 0, 0.25, 1), 3.0)], [1, 1, 1, 1]),
        (WIDE, [((0.25, 0, 0.375, 1), 3.0)], [2, 1, 2, 1]),
        (SQUARE, [(np.array([[False, True], [False, False]]), 4.0)], [1, 4, 1, 1]),
        (SQUARE, [(np.eye(4), 3.0)], [2, 1, 1, 2]),
        (WIDE, [(np.array([[0.0, 1.0, 0.0, 0.0]]), 3.0)], [3, 1, 3, 1]),
    ],
)
def test_regions(
    tokenizer: Tokenizer, picture: np.ndarray, regions: list[Any], expected: list[float]
) -> None:
    np.testing.assert_allclose(thetas(tokenizer, Image(picture, 1.0, regions)), expected, rtol=1e-6)


def test_a_mask_from_a_file(tokenizer: Tokenizer, tmp_path: Path) -> None:
    mask = np.zeros((6, 6), np.uint8)
    mask[:3, 3:] = 255
    PIL.Image.fromarray(mask).save(tmp_path / "m.png")
    PIL.Image.fromarray(SQUARE).save(tmp_path / "a.png")
    value = [
        {"image": "a.png", "regions": [{"mask": "m.png", "weight": 4}, {"box": [0, 0, 1, 1], "weight": 2}]}
    ]
    expected = [2, 8, 2, 2]
    np.testing.assert_allclose(thetas(tokenizer, Prompt.from_json(value, tmp_path)), expected, rtol=1e-6)
    with pytest.raises(UserError, match=r"mask '.*none.png': it does not exist"):
        Image(SQUARE, 1.0, [(tmp_path / "none.png", 2.0)])


@pytest.mark.parametrize("side", [2, 12])
def test_site(tokenizer: Tokenizer, side: int) -> None:
    prompt = [Text("a", 2.0), Image(SQUARE, 0.5)]
    tokens = side * side
    weighted = np.log(np.float32([2] + [0.5] * tokens))
    for site, at_decoder, at_cross in (
        ("decoder", True, False),
        ("cross_attention", False, True),
        ("both", True, True),
    ):
        given = batch(tokenizer, Prompt.of(prompt, site=site), side=side, max_positions=200)
        for logs, acts in ((given.log_weights, at_decoder), (given.condition_log_weights, at_cross)):
            np.testing.assert_array_equal(logs[0, : tokens + 1], weighted if acts else 0 * weighted)
            assert np.all(logs[0, tokens + 1 :] == PADDING)


def test_balance(tokenizer: Tokenizer) -> None:
    # 12 tokens, two elements: a share of 6 each.
    even = thetas(tokenizer, Prompt.of(["a red hat", SQUARE], balance=True), side=3)
    np.testing.assert_allclose(even, [2] * 3 + [2 / 3] * 9, rtol=1e-6)
    less = thetas(tokenizer, Prompt.of(["a red hat", Image(SQUARE, 0.25)], balance=True), side=3)
    np.testing.assert_allclose(less, [2] * 3 + [1 / 6] * 9, rtol=1e-6)
    # Spans and regions divide a share; they do not add to it.
    divided = [Text("a red hat", spans={"red": 4.0}), Image(SQUARE, 1.0, [((0, 0, 1, 1 / 3), 0.0)])]
    spread = thetas(tokenizer, Prompt.of(divided, balance=True), side=3)
    np.testing.assert_allclose(spread, [1, 4, 1] + [0] * 3 + [1] * 6, rtol=1e-6)
    # What is suppressed takes no share.
    alone = thetas(tokenizer, Prompt.of(["a red hat", Image(SQUARE, 0.0)], balance=True), side=3)
    np.testing.assert_array_equal(alone, [1] * 3 + [0] * 9)
    equal = batch(tokenizer, Prompt.of(["a red hat on", SQUARE], balance=True))
    np.testing.assert_array_equal(equal.log_weights, np.zeros((1, 8), np.float32))


def test_elements_are_marked_where_their_attention_is_asked_for(tokenizer: Tokenizer) -> None:
    prompt = ["a hat", SQUARE]
    given = batch(tokenizer, prompt, None, elements=True)
    marks = [[1, 0, 0, 0]] * 2 + [[0, 1, 0, 0]] * 4 + [[0] * 4] * 2
    assert given.elements is not None and given.elements.tolist() == [marks, [[0] * 4] * 8]
    assert given.wanted is None and batch(tokenizer, prompt).elements is None
    # More than four need more places.
    assert batch(tokenizer, ["a"] * 5, elements=True).elements.shape == (1, 8, 8)


def test_balanced_attention_is_asked_for_in_proportion_to_the_weights(tokenizer: Tokenizer) -> None:
    """The weights are thetas, too: where moving them starts from."""
    prompt = [Text("a red hat", 3.0), Image(SQUARE), Text("on", 0.0)]
    shown, plain = (batch(tokenizer, Prompt.of(prompt, balance=way)) for way in ("attention", False))
    np.testing.assert_array_equal(shown.wanted, [[0.75, 0.25, 0, 0]])
    np.testing.assert_array_equal(shown.log_weights, plain.log_weights)
    np.testing.assert_array_equal(shown.condition_log_weights, plain.condition_log_weights)
    hidden = Image(SQUARE, regions=[((0, 0, 1, 1), 0.0)])
    others = batch(tokenizer, ["a", hidden], [Text("a", 1e308), Text("a", 1e308)], None, balance="attention")
    np.testing.assert_array_equal(others.wanted, [[1, 0, 0, 0], [0.5, 0.5, 0, 0], [0] * 4])
    # Beside a prompt that does not ask nothing of that one moves.
    beside = batch(tokenizer, Prompt.of(prompt, balance="attention"), prompt)
    np.testing.assert_array_equal(beside.wanted, [[0.75, 0.25, 0, 0], [0] * 4])


def test_attention_cannot_be_balanced_at_the_decoder(tokenizer: Tokenizer) -> None:
    sentence = "balance attention moves weights at the cross-attention, but their site is decoder"
    with pytest.raises(UserError, match=sentence):
        Prompt.of("a hat", balance="attention", site="decoder")
    with pytest.raises(UserError, match=sentence):
        batch(tokenizer, Prompt.of("a hat", site="decoder"), balance="attention")
    with pytest.raises(UserError, match=sentence):
        SamplingSettings(site="decoder", balance="attention")
    for value in ("yes", 1, None):
        with pytest.raises(UserError, match=f"balance is {value!r}; accepted: False, True, attention"):
            Prompt.of("a hat", balance=value)


@pytest.mark.parametrize("balance", [False, True, "attention"])
@pytest.mark.parametrize("weights", [(0, 0), (0, 1), (1e-320, 1), (1e308, 1e308), (5e-324, 1e308)])
def test_every_weight_is_finite(tokenizer: Tokenizer, weights: tuple[float, float], balance: Any) -> None:
    spans = {"red": 1e200}
    prompt = Prompt.of([Text("a red hat", weights[0], spans), Image(SQUARE, weights[1])], balance=balance)
    logs = np.asarray(batch(tokenizer, prompt).log_weights)
    assert np.all(np.isfinite(logs))
    exists = logs > PADDING
    assert exists.sum() == 7 and np.all(logs[exists] >= SUPPRESSED)
    if weights == (0, 0):
        assert np.all(logs[exists] == SUPPRESSED)


def test_lengths(tokenizer: Tokenizer) -> None:
    words = " ".join(["a"] + ["red"] * 27)
    full = batch(tokenizer, [words, SQUARE], None, "a red")
    assert full.token_ids.shape == (3, 32)
    assert (full.log_weights > PADDING).sum(axis=1).tolist() == [32, 1, 2]
    with pytest.raises(
        UserError, match=r"29 text tokens and 1 image of 4 tokens, 33 in all, .* 32 positions"
    ):
        batch(tokenizer, [words + " red", SQUARE], long_prompts="refuse")


def test_factors(tokenizer: Tokenizer) -> None:
    by_layer = Prompt.of("a", decoder_factors=[0, 2.0], cross_attention_factors=np.array([[1.0, 0.5]]))
    shapes = {"decoder_heads": (2, 3), "cross_attention_heads": (4, 2)}
    given = batch(tokenizer, by_layer, "a red", **shapes)
    assert given.factors is not None and given.condition_factors is not None
    np.testing.assert_array_equal(given.factors, [[[0] * 3, [2] * 3], [[1] * 3] * 2])
    np.testing.assert_array_equal(given.condition_factors, [[[1, 0.5]] * 4, [[1, 1]] * 4])
    assert given.factors.dtype == np.float32
    full = Prompt.of("a", decoder_factors=[[1, 2, 3], [4, 5, 6]])
    np.testing.assert_array_equal(batch(tokenizer, full, **shapes).factors, [[[1, 2, 3], [4, 5, 6]]])
    assert batch(tokenizer, full, **shapes).condition_factors is None
    assert hash(full) == hash(Prompt.of("a", decoder_factors=np.array([[1, 2, 3], [4, 5, 6]])))


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        ([1, 2, 3], "for 3 layers of 1 heads; this model's decoder has 2 of 3"),
        ([[1, 2], [1, 2]], "for 2 layers of 2 heads; this model's decoder has 2 of 3"),
        ([[1, 2, 3], [1, 2]], "different lengths"),
        ([1, [2]], "different lengths"),
        ([], "expected a list of numbers"),
        (2.0, "expected a list of numbers"),
        ([1, -1], "holds -1; a factor is a finite number of at least 0"),
        ([1, float("inf")], "holds inf"),
        ([1, float("nan")], "holds nan"),
        ([1, "x"], "holds 'x'"),
        ([[[1]]], r"holds \[1\]"),
    ],
)
def test_bad_factors(tokenizer: Tokenizer, factors: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        batch(tokenizer, Prompt.of("a", decoder_factors=factors), decoder_heads=(2, 3))


def test_factors_need_the_site(tokenizer: Tokenizer) -> None:
    with pytest.raises(UserError, match="this bundle has no cross-attention"):
        batch(tokenizer, Prompt.of("a", cross_attention_factors=[1.0]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Text("a red hat", -1.0), "at least 0"),
        (lambda: Text("a red hat", float("nan")), "finite"),
        (lambda: Text("a red hat", spans={"blue": 2.0}), "'blue' does not occur in the text 'a red hat'"),
        (lambda: Text("a red hat", spans={"red": -2.0}), "at least 0"),
        (lambda: Text(" "), "empty"),
        (lambda: Image(SQUARE, 1.0, [((0.5, 0, 0.2, 1), 2.0)]), "is no box"),
        (lambda: Image(SQUARE, 1.0, [(np.full((2, 2), 7.0), 2.0)]), "mask"),
        (lambda: Image(SQUARE, 1.0, [2.0]), "list of pairs"),  # type: ignore[list-item]
        (lambda: Prompt.of("a", site="unet"), "accepted: decoder, cross_attention, both"),
        (lambda: Prompt.of([]), "the prompt is empty"),
        (lambda: Prompt.from_json([{"text": "a", "wait": 2}]), "unknown key 'wait'"),
        (lambda: Prompt.from_json([{"image": "a", "regions": [{"box": [0, 0, 1, 1]}]}]), "regions must be"),
        (
            lambda: Prompt.from_json([{"image": "a", "regions": [{"circle": 1, "weight": 2}]}]),
            "regions must be",
        ),
    ],
)
def test_bad_weights(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_json_round_trip() -> None:
    value = [
        {"text": "a red hat", "weight": 1.0, "spans": {"red": 2.0}},
        {"image": "a.png", "weight": 0.3, "regions": [{"box": [0.0, 0.0, 0.5, 1.0], "weight": 2.0}]},
    ]
    prompt = Prompt.from_json(value, "")
    assert prompt.to_json() == value and Prompt.from_json(prompt.to_json(), "") == prompt
