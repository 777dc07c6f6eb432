"""Many names told as a few patterns, every one of them counted."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from mvader_jax.convert.names import in_patterns


def test_layers_are_one_pattern() -> None:
    names = [
        f"lm.transformer.h.{i}.attn.attention.{leaf}" for i in range(28) for leaf in ("bias", "masked_bias")
    ]
    assert in_patterns(names) == [
        "lm.transformer.h.*.attn.attention.bias: 28 tensors",
        "lm.transformer.h.*.attn.attention.masked_bias: 28 tensors",
    ]
    assert in_patterns(["a.0.b", "a.1.b"]) == ["a.0.b", "a.1.b"]
    assert in_patterns([f"decoder/layer_{i}/mlp/up" for i in range(28)]) == [
        "decoder/layer_*/mlp/up: 28 tensors"
    ]
    many = [
        f"model.{i}.{block}.{leaf}.weight"
        for i in range(9)
        for block in ("attn", "mlp")
        for leaf in "abcdefgh"
    ]
    assert in_patterns([*many, "head.bias"]) == [
        "model.*.attn...: 72 tensors",
        "model.*.mlp...: 72 tensors",
        "head.bias",
    ]
    # A number that is part of a name stays: layers are what is counted.
    assert in_patterns(["conv1.w"] * 5) == ["conv1.w: 5 tensors"]


@given(
    st.lists(st.from_regex(r"[a-c0-9]{1,2}([./][a-c0-9]{1,2}){0,4}", fullmatch=True), min_size=5, max_size=60)
)
def test_the_counts_add_up(names: list[str]) -> None:
    counts = [re.search(r": (\d+) tensors$", line) for line in in_patterns(names)]
    assert sum(int(match[1]) if match else 1 for match in counts) == len(names)
