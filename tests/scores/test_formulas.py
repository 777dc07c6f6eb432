"""The formulas against pytorch-fid's and against the definitions, written out."""

from __future__ import annotations

import warnings
from fractions import Fraction

import numpy as np
import pytest
import pytorch_fid_here
import scipy.linalg

from mvader_jax.errors import UserError
from mvader_jax.scores import formulas
from mvader_jax.scores.formulas import (
    Moments,
    clip_scores,
    cmmd,
    frechet,
    frechet_again,
    frechet_of,
    interval,
    kid,
    moments,
    resamplings,
)


def drawn(count: int, width: int, seed: int, shift: float = 0.0) -> np.ndarray:
    """Features with correlations, not centred, as a network's are."""
    rng = np.random.default_rng(seed)
    mix = rng.normal(size=(width, width)) / width**0.5
    return (np.abs(rng.normal(size=(count, width)) @ mix) + shift).astype(np.float32)


def theirs(a: np.ndarray, b: np.ndarray) -> float:
    stats = [(x.astype(np.float64).mean(axis=0), np.cov(x.astype(np.float64), rowvar=False)) for x in (a, b)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # SciPy will drop the argument that pytorch-fid passes
        return float(pytorch_fid_here.fid_score.calculate_frechet_distance(*stats[0], *stats[1]))


@pytest.mark.parametrize("width", [3, 64])
def test_fid_is_pytorch_fids(width: int) -> None:
    a, b = drawn(500, width, 1), drawn(700, width, 2, 0.1)
    assert frechet(moments(a), moments(b)) == pytest.approx(theirs(a, b), rel=1e-6)
    assert frechet(moments(a), moments(a)) == pytest.approx(0, abs=1e-9)


def test_moments_are_numpys_whatever_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    a = drawn(501, 20, 1) + np.float32(100)
    monkeypatch.setattr(formulas, "BLOCK", 64)
    found = moments(a)
    np.testing.assert_allclose(found.mean, a.astype(np.float64).mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(
        found.covariance, np.cov(a.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-13
    )
    assert found.count == 501


def test_fid_of_singular_covariances_is_the_definitions() -> None:
    """Fewer pictures than features: in the plane that both lie in, the formula of two full covariances."""
    rng = np.random.default_rng(3)
    plane, _ = np.linalg.qr(rng.normal(size=(60, 5)))
    a, b = rng.normal(size=(40, 5)), rng.normal(size=(40, 5)) @ rng.normal(size=(5, 5)) + 0.3
    within = [(x.mean(axis=0), np.cov(x, rowvar=False)) for x in (a, b)]
    root = scipy.linalg.sqrtm(within[0][1] @ within[1][1]).real
    expected = ((within[0][0] - within[1][0]) ** 2).sum() + np.trace(within[0][1] + within[1][1] - 2 * root)
    assert frechet(moments(a @ plane.T), moments(b @ plane.T)) == pytest.approx(expected, rel=1e-9)
    assert frechet_of(a @ plane.T, b @ plane.T) == pytest.approx(expected, rel=1e-9)
    # Of more pictures than features it is the usual way.
    assert frechet_of(a, b) == frechet(moments(a), moments(b))


def test_fid_where_nothing_overlaps_and_where_nothing_varies() -> None:
    a, b = np.diag([4.0, 0, 0]), np.diag([0, 9.0, 0])
    zero = np.zeros(3)
    # The square root of a product that is zero is zero.
    assert frechet(Moments(zero, a), Moments(zero, b)) == pytest.approx(13.0)
    flat = Moments(np.ones(3), np.zeros((3, 3)))
    assert frechet(Moments(zero, a), flat) == pytest.approx(3 + 4.0)
    # Eigenvalues of very different sizes, and a rounding below zero.
    tiny = np.diag([1.0, 1e-18, -1e-18])
    assert frechet(Moments(zero, tiny), Moments(zero, tiny)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("count", [30, 200])
def test_fid_of_resamples_is_that_of_the_rows_repeated(count: int) -> None:
    a, b = drawn(count, 50, 4), moments(drawn(300, 50, 5))
    counts = resamplings(count, 3, np.random.default_rng(0))
    found = list(frechet_again(a, b, counts))
    for value, times in zip(found, counts, strict=True):
        again = np.repeat(a, times.astype(int), axis=0)
        assert value == pytest.approx(frechet(moments(again), b), rel=1e-6)


def test_kid_is_the_unbiased_estimate_written_out() -> None:
    a, b = drawn(7, 4, 6), drawn(9, 4, 7)
    # One subset of all rows of the smaller set, and of as many of the other: the definition, in exact fractions.
    value, deviation = kid(a, b[:7], np.random.default_rng(0), subsets=1, size=7)

    def kernel(x: np.ndarray, y: np.ndarray) -> Fraction:
        inner = sum((Fraction(float(p)) * Fraction(float(q)) for p, q in zip(x, y, strict=True)), Fraction())
        return (inner / len(x) + 1) ** 3

    m = 7
    inside = [
        sum(kernel(s[i], s[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1)) for s in (a, b)
    ]
    across = sum(kernel(a[i], b[j]) for i in range(m) for j in range(m)) / m**2
    assert value == pytest.approx(float(inside[0] + inside[1] - 2 * across), rel=1e-9)
    assert deviation == 0


def test_kid_of_one_distribution_is_about_zero_and_its_std_says_so() -> None:
    a, b = drawn(400, 8, 8), drawn(400, 8, 8)[::-1]
    value, deviation = kid(a, b, np.random.default_rng(0), subsets=50, size=100)
    assert abs(value) < 3 * deviation
    same, _ = kid(a, b, np.random.default_rng(0), subsets=50, size=100)
    assert same == value
    with pytest.raises(UserError, match="KID needs at least 2 pictures"):
        kid(a[:1], b, np.random.default_rng(0))


def unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def test_cmmd_is_the_definition_in_any_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = unit(drawn(30, 16, 9)), unit(drawn(41, 16, 10, 0.5))

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        apart = ((x[:, None].astype(np.longdouble) - y[None].astype(np.longdouble)) ** 2).sum(axis=-1)
        return np.exp(-apart / 200)

    expected = 1000 * (kernel(a, a).mean() + kernel(b, b).mean() - 2 * kernel(a, b).mean())
    assert cmmd(a, b)[0] == pytest.approx(float(expected), rel=1e-9)
    monkeypatch.setattr(formulas, "BLOCK", 7)
    assert cmmd(a, b)[0] == pytest.approx(float(expected), rel=1e-9)
    counts = resamplings(30, 2, np.random.default_rng(1))
    again = [cmmd(np.repeat(a, row.astype(int), axis=0), b)[0] for row in counts]
    np.testing.assert_allclose(cmmd(a, b, counts), again, rtol=1e-9)


def test_clip_score_is_a_hundred_cosines() -> None:
    a, b = np.eye(3), np.array([[0.6, 0.8, 0], [0, -1, 0], [0, 0, 1.0]])
    np.testing.assert_allclose(clip_scores(a, b), [60, 0, 100])


def test_an_interval_lies_about_the_value_and_covers_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        seen = rng.normal(3.0, 1.0, 60)
        again = resamplings(60, 200, rng) @ seen / 60
        low, high = interval(float(seen.mean()), again)
        assert low < seen.mean() < high
        covered += low <= 3.0 <= high
    assert 180 <= covered <= 199


def test_statistics_that_cannot_be_are_refused() -> None:
    with pytest.raises(UserError, match="needs at least 2 pictures"):
        moments(drawn(1, 4, 0))
    with pytest.raises(UserError, match="NaN or infinity"):
        moments(np.array([[np.nan, 1], [2, 3]]))
    with pytest.raises(UserError, match="3 and 4 features"):
        frechet(Moments(np.zeros(3), np.eye(3)), Moments(np.zeros(4), np.eye(4)))
