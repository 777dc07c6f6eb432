"""A Condition taken apart and put together keeps its factors."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from mvader_jax.condition import PADDING, Condition, concatenate, pad, spread, stack, take, where

PLAIN = Condition(jnp.zeros((2, 3, 4)), jnp.zeros((2, 3)))
SHARED = Condition(jnp.ones((2, 5, 4)), jnp.ones((2, 5)), jnp.full((6, 2), 0.5))
BY_ROW = Condition(
    jnp.ones((2, 3, 4)), jnp.ones((2, 3)), jnp.stack([jnp.zeros((6, 2)), jnp.full((6, 2), 2.0)])
)


def of(condition: Condition) -> list[float]:
    assert condition.factors is not None and condition.factors.shape == (len(condition.hidden), 6, 2)
    return np.asarray(condition.factors)[:, 0, 0].tolist()


def test_take() -> None:
    rows = jnp.array([1, 0, 1])
    assert of(take(BY_ROW, rows)) == [2.0, 0.0, 2.0]
    assert of(take(SHARED, rows)) == [0.5] * 3
    assert take(PLAIN, rows).factors is None and take(PLAIN, rows).hidden.shape == (3, 3, 4)


def test_where_and_concatenate_and_spread() -> None:
    chosen = where(jnp.array([True, False]), SHARED, PLAIN)
    assert of(chosen) == [0.5, 1.0]
    assert chosen.log_weights[1].tolist() == [0, 0, 0, *[np.float32(PADDING)] * 2]
    assert of(concatenate(BY_ROW, PLAIN)) == [0.0, 2.0, 1.0, 1.0]
    assert of(spread(BY_ROW, groups=2, samples=2, start=1)) == [0.0, 0.0, 0.0, 2.0]


def test_rows_are_stacked_with_their_factors() -> None:
    short = Condition(np.ones((1, 2, 3), np.float32), np.zeros((1, 2), np.float32))
    factors = np.full((1, 1, 2), 2.0, np.float32)
    long = Condition(np.full((1, 3, 3), 2, np.float32), np.full((1, 3), -1, np.float32), factors)
    both = stack([short, long], 4)
    assert both.hidden[:, :, 0].tolist() == [[1, 1, 0, 0], [2, 2, 2, 0]]
    assert both.log_weights.tolist() == [[0, 0, PADDING, PADDING], [-1, -1, -1, PADDING]]
    assert both.factors.tolist() == [[[1, 1]], [[2, 2]]]
    assert stack([short], 2).factors is None


def test_rows_keep_their_elements_beside_more_and_beside_none() -> None:
    def marked(elements: list[int], wanted: list[float]) -> Condition:
        marks = np.eye(len(wanted), dtype=np.float32)[elements][None]
        plain = Condition(
            np.zeros((1, len(elements), 4), np.float32), np.zeros((1, len(elements)), np.float32)
        )
        return plain.replace(elements=marks, wanted=np.array([wanted], np.float32))

    two, three = marked([0, 1], [0.25, 0.75]), marked([2, 0, 1], [0.5, 0.5, 0.0])
    none = Condition(np.zeros((1, 3, 4), np.float32), np.zeros((1, 3), np.float32))
    whole = [[[0] * 3] * 3, [[1, 0, 0], [0, 1, 0], [0, 0, 0]], [[0, 0, 1], [1, 0, 0], [0, 1, 0]]]
    for joined in (concatenate(none, pad(two, 3), three), stack([none, two, three], 3)):
        assert np.asarray(joined.elements).tolist() == whole
        assert np.asarray(joined.wanted).tolist() == [[0, 0, 0], [0.25, 0.75, 0], [0.5, 0.5, 0]]
    second = take(joined, jnp.array([1]))
    assert np.asarray(second.elements).tolist() == whole[1:2] and second.wanted.tolist() == [[0.25, 0.75, 0]]
    assert concatenate(none, none).elements is None and stack([none], 4).wanted is None
