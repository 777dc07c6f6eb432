"""Layouts by literal arrays, and every one against its inverse."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from mvader_jax.convert.layouts import CONV, LINEAR, POINTWISE, SAME, Layout, fused_linear, fused_vector

CASES = [
    (SAME, (7,)),
    (SAME, (5, 3)),
    (LINEAR, (5, 3)),
    (LINEAR, (133, 70)),
    (CONV, (6, 5, 3, 2)),
    (CONV, (40, 24, 3, 3)),
    (POINTWISE, (5, 3, 1, 1)),
    (fused_linear(3), (12, 5)),
    (fused_linear(3, 2), (12, 5)),
    (fused_vector(3, 4), (24,)),
]


@pytest.mark.parametrize(("layout", "shape"), CASES, ids=lambda x: getattr(x, "name", str(x)))
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_inverse(layout: Layout, shape: tuple[int, ...], dtype: type) -> None:
    tensor = np.random.default_rng(0).standard_normal(shape).astype(dtype)
    ours = [layout.ours(tensor, part) for part in range(layout.parts)]
    assert all(piece.flags.c_contiguous and piece.dtype == tensor.dtype for piece in ours)
    assert layout.external_shape(ours[0].shape) == shape
    np.testing.assert_array_equal(layout.external(ours), tensor)


def test_linear_and_conv_turn_as_flax_wants() -> None:
    matrix = np.arange(6).reshape(2, 3)
    np.testing.assert_array_equal(LINEAR.ours(matrix), [[0, 3], [1, 4], [2, 5]])
    kernel = np.zeros((2, 3, 5, 7))
    kernel[1, 2, 3, 4] = 1
    assert CONV.ours(kernel)[3, 4, 2, 1] == 1
    # Large ones take another path through memory.
    large = np.random.default_rng(1).standard_normal((50, 33, 3, 3)).astype(np.float32)
    np.testing.assert_array_equal(CONV.ours(large), large.transpose(2, 3, 1, 0))


def test_without_a_device_for_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = np.random.default_rng(2).standard_normal((90, 70)).astype(np.float16)
    turned = LINEAR.ours(matrix)
    monkeypatch.setattr("mvader_jax.convert.layouts._host", lambda: None)
    np.testing.assert_array_equal(LINEAR.ours(matrix), turned)
    np.testing.assert_array_equal(turned, matrix.T)


def test_fused_parts_are_told_apart_head_by_head() -> None:
    # Two heads of one row each, in the order q k v q k v.
    rows = np.array([[10], [20], [30], [11], [21], [31]])
    q, k, v = (fused_linear(3, 2).ours(rows, part) for part in range(3))
    assert q.tolist() == [[10, 11]] and k.tolist() == [[20, 21]] and v.tolist() == [[30, 31]]
    # Without heads: q q k k v v.
    assert fused_vector(3).ours(np.arange(6), 1).tolist() == [2, 3]
