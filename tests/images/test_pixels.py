"""uint8 <-> float: one rounding, on the host and within a program; no other place has its own."""

from __future__ import annotations

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mvader_jax
from mvader_jax.errors import UserError
from mvader_jax.images.pixels import from_unit, to_float, to_uint8, to_unit, unit_to_uint8
from mvader_jax.images.read import load_image

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


def test_floats_of_people_are_0_to_1() -> None:
    """As PIL's, torch's and scikit-image's: nothing else is taken for them in silence."""
    unit = EVERY / np.float32(255)
    np.testing.assert_array_equal(unit_to_uint8(unit), EVERY)
    np.testing.assert_allclose(from_unit(unit), to_float(EVERY), atol=2e-7)
    np.testing.assert_allclose(to_unit(to_float(EVERY)), unit, atol=2e-7)
    np.testing.assert_array_equal(to_unit(np.float32([-3, 3])), [0, 1])
    pixels = np.stack([EVERY] * 3, -1)[None]
    for kind in ("float16", "float32", "float64", jnp.bfloat16):
        image = np.asarray(load_image((pixels / 255).astype(kind)))
        assert np.abs(image.astype(int) - pixels).max() <= (kind == jnp.bfloat16)
    for bad, said in (
        (pixels / 127.5 - 1, "goes from -1 to 1; accepted are floats of 0 to 1"),
        (pixels.astype(np.float32), "goes from 0 to 255"),
        (np.full((2, 2, 3), np.nan), "goes from nan to nan"),
        (pixels.astype(np.int64), "has type int64; accepted are uint8 of 0 to 255 and floats"),
        (pixels > 9, "has type bool"),
        (pixels * 1j, "has type complex128"),
    ):
        with pytest.raises(UserError, match=said):
            load_image(bad)
    with pytest.raises(ValueError, match="NaN"):
        unit_to_uint8(np.float32([0.5, np.nan]))


def test_nobody_else_converts() -> None:
    package = Path(mvader_jax.__file__).parent
    found = {
        str(file.relative_to(package))
        for file in package.rglob("*.py")
        if re.search(r"127\.5", file.read_text(encoding="utf-8"))
    }
    assert found == {"images/pixels.py"}
