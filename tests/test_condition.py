"""Conditions put together: every field of every row, factors included."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from mvader_jax.condition import PADDING, Condition, concatenate, spread, where


def condition(
    level: float, rows: int, length: int, factors: float | None = None, shared: bool = False
) -> Condition:
    hidden = jnp.full((rows, length, 1), level) + jnp.arange(rows)[:, None, None]
    shape = (2, 3) if shared else (rows, 2, 3)
    return Condition(hidden, jnp.zeros((rows, length)), None if factors is None else jnp.full(shape, factors))


def test_rows_of_two_kinds_are_joined() -> None:
    # Two groups of three samples; two image rows and two caption rows per group, overlapping in the middle.
    image, text = condition(10, 4, 1), condition(20, 4, 2)
    use_image = jnp.array([True, True, False, True, False, False])
    joined = where(use_image, spread(image, 2, 3, 0), spread(text, 2, 3, 1))
    np.testing.assert_array_equal(joined.hidden[:, 0, 0], [10, 11, 21, 12, 22, 23])
    np.testing.assert_array_equal(joined.log_weights[:, 1] == PADDING, use_image)
    null = Condition(jnp.full((1, 1, 1), -1.0), jnp.zeros((1, 1)))
    replaced = where(jnp.array([False] * 5 + [True]), null, joined)
    assert replaced.hidden[5, 0, 0] == -1.0 and replaced.log_weights[5, 1] == PADDING
    assert joined.factors is replaced.factors is None


@pytest.mark.parametrize("shared", [False, True])
def test_factors_are_never_dropped(shared: bool) -> None:
    """A Condition without factors has factors of 1; one for all rows is each row's."""
    with_factors, without = condition(1, 4, 2, 0.5, shared), condition(5, 4, 2)
    chosen = jnp.array([True, False, True, False])
    for joined, expected in (
        (where(chosen, with_factors, without), [0.5, 1, 0.5, 1]),
        (where(chosen, without, with_factors), [1, 0.5, 1, 0.5]),
        (where(chosen, condition(9, 1, 1), with_factors), [1, 0.5, 1, 0.5]),
        (concatenate(with_factors, without), [0.5] * 4 + [1] * 4),
    ):
        assert joined.factors is not None
        np.testing.assert_array_equal(joined.factors[:, 1, 2], expected)
        assert joined.factors.shape[1:] == (2, 3)
    spread_out = spread(with_factors, 2, 3, 1)
    assert spread_out.factors is not None
    np.testing.assert_array_equal(spread_out.factors[:, 0, 0], [0, 0.5, 0.5, 0, 0.5, 0.5])
