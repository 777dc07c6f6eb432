"""uint8 <-> float: one rounding, on the host and within a program; no other place has its own."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mvader_jax
from mvader_jax.images.pixels import to_float, to_uint8

EVERY = np.arange(256, dtype=np.uint8)


def test_there_and_back() -> None:
    floats = to_float(EVERY)
    assert floats.dtype == np.float32 and floats[0] == -1.0 and floats[255] == 1.0
    np.testing.assert_array_equal(to_uint8(floats), EVERY)
    # Within a program a product and a difference are rounded once.
    np.testing.assert_allclose(jax.jit(to_float)(jnp.asarray(EVERY)), floats, atol=2e-7)
    np.testing.assert_array_equal(jax.jit(to_uint8)(jax.jit(to_float)(jnp.asarray(EVERY))), EVERY)


def test_rounding_is_the_same_everywhere() -> None:
    values = np.random.default_rng(0).normal(0, 1, 200_000).astype(np.float32)
    halves = ((np.arange(255) + 0.5) / 127.5 - 1).astype(np.float32)
    for given in (values, halves, np.float32([-np.inf, -2, 2, np.inf])):
        expected = np.clip(np.rint((given + np.float32(1)) * np.float32(127.5)), 0, 255)
        np.testing.assert_array_equal(to_uint8(given), expected)
        np.testing.assert_array_equal(jax.jit(to_uint8)(jnp.asarray(given)), expected)
    with pytest.raises(ValueError, match="NaN"):
        to_uint8(np.float32([0.5, np.nan]))


def test_nobody_else_converts() -> None:
    package = Path(mvader_jax.__file__).parent
    found = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if re.search(r"127\.5", file.read_text(encoding="utf-8"))
    }
    assert found == {"images/pixels.py"}
