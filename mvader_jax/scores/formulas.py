"""The formulas, on features alone, in float64.

FID: Heusel et al. 2017. KID: Binkowski et al. 2018. CMMD: Jayasumana et al. 2024. CLIP score: Hessel et al. 2021.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float, Float64

from mvader_jax.errors import UserError

#: Rows of features that are looked at together: memory does not grow with the pictures.
BLOCK = 2048
#: CMMD's kernel and its unit (google-research/cmmd distance.py).
_SIGMA, _SCALE = 10.0, 1000.0


class Features(Protocol):
    """[N, D] of which slices can be had: an array, or a file of one."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, key: Any) -> np.ndarray: ...


@dataclasses.dataclass(frozen=True)
class Moments:
    """Mean [D] and covariance [D, D] (divided by N - 1) of features. count: 0 where a file does not say."""

    mean: Float64[np.ndarray, " D"]
    covariance: Float64[np.ndarray, "D D"]
    count: int = 0


def blocks(features: Features, size: int = BLOCK) -> Iterator[Float64[np.ndarray, "B D"]]:
    """All rows in float64, so many at a time, each a copy."""
    for start in range(0, features.shape[0], size):
        yield np.array(features[start : start + size], np.float64)


def _mean_of(features: Features) -> Float64[np.ndarray, " D"]:
    """Raises UserError for fewer than two rows, and for NaN or infinity."""
    count = features.shape[0]
    if count < 2:
        raise UserError(
            f"a covariance needs at least 2 pictures, and there {'is' if count else 'are'} {count}"
        )
    mean = np.sum([block.sum(axis=0) for block in blocks(features)], axis=0) / count
    if not np.isfinite(mean).all():
        raise UserError("the features hold NaN or infinity: the network's weights or a picture are damaged")
    return mean


def moments(features: Features) -> Moments:
    """In two passes: first the mean, then what is left about it, so that nothing cancels.

    Raises UserError for fewer than two rows, and for NaN or infinity.
    """
    mean, count = _mean_of(features), features.shape[0]
    covariance = np.zeros((len(mean), len(mean)))
    for block in blocks(features):
        block -= mean
        covariance += block.T @ block
    return Moments(mean, covariance / (count - 1), count)


def root(matrix: Float64[np.ndarray, "D D"]) -> Float64[np.ndarray, "D D"]:
    """The symmetric square root of a covariance. Eigenvalues within rounding of zero, of either sign, are zero."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    values[values < 16 * np.finfo(np.float64).eps * values[-1]] = 0
    return (vectors * np.sqrt(values)) @ vectors.T


def frechet(a: Moments, b: Moments) -> float:
    """|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), at least 0.

    With the roots A and B of the covariances, the eigenvalues of the symmetric A S_b A are the squares of the singular
    values of A B, so the trace of its root is their sum: nothing is squared and rooted again, nothing can be complex, and
    nothing need be added to a singular covariance. Raises UserError where the two are of different networks.
    """
    if a.mean.shape != b.mean.shape:
        raise UserError(
            f"the statistics are of {len(a.mean)} and {len(b.mean)} features; both must come from one network"
        )
    overlap = np.linalg.svd(root(a.covariance) @ root(b.covariance), compute_uv=False).sum()
    return _distance(a.mean, np.trace(a.covariance), b, overlap)


def frechet_of(a: Features, b: Features) -> float:
    """`frechet` of two sets of features. Of fewer pictures than features, without their covariances: with the rows about
    their means X and Y, each over the root of their count less 1, the singular values are those of X Y^T.
    """
    if max(a.shape[0], b.shape[0]) >= min(a.shape[1], b.shape[1]):
        return frechet(moments(a), moments(b))
    centred, means = [], []
    for features in (a, b):
        rows = np.array(features[:], np.float64)
        mean = _mean_of(features)
        centred.append((rows - mean) / np.sqrt(len(rows) - 1))
        means.append(mean)
    overlap = np.linalg.svd(centred[0] @ centred[1].T, compute_uv=False).sum()
    traces = sum(float((rows**2).sum()) for rows in centred)
    return max(0.0, float(((means[0] - means[1]) ** 2).sum()) + traces - 2 * float(overlap))


def _distance(mean: np.ndarray, trace: float, b: Moments, overlap: float) -> float:
    apart = float(((mean - b.mean) ** 2).sum())
    # Of equal Gaussians rounding leaves a little on either side of zero.
    return max(0.0, apart + float(trace) + float(np.trace(b.covariance)) - 2 * float(overlap))


def frechet_again(features: Features, b: Moments, counts: Iterable[np.ndarray]) -> Iterator[float]:
    """`frechet` of resampled features against `b`, without the square root being taken again.

    counts: [N] of each resampling, how often a row is in it. The eigenvalues are those of the smaller of the two
    products of what is sampled, D x D or N x N.
    """
    turned, total = np.asarray(features[:], np.float64), features.shape[0]
    across = turned @ root(b.covariance)
    for drawn in counts:
        rows = drawn > 0
        share, weights = drawn[rows] / total, np.sqrt(drawn[rows] / (total - 1))[:, None]
        mean = share @ turned[rows]
        trace = float((((turned[rows] - mean) * weights) ** 2).sum())
        seen = (across[rows] - share @ across[rows]) * weights
        gram = seen @ seen.T if len(seen) < seen.shape[1] else seen.T @ seen
        yield _distance(mean, trace, b, np.sqrt(np.linalg.eigvalsh(gram).clip(0)).sum())


def kid(
    a: Features, b: Features, key: np.random.Generator, *, subsets: int = 100, size: int = 1000
) -> tuple[float, float]:
    """(mean, standard deviation) over subsets of the unbiased squared MMD with the kernel (x y / D + 1)^3.

    Subsets are drawn without replacement, of `size` rows or of all where there are fewer. Raises UserError below 2.
    """
    size = min(size, a.shape[0], b.shape[0])
    if size < 2:
        raise UserError(f"KID needs at least 2 pictures on either side, and there is {size}")
    found = []
    for _ in range(subsets):
        x, y = (_rows(features, key, size) for features in (a, b))
        inner = [_off_diagonal(_cubic(one, one)).sum() / (size * (size - 1)) for one in (x, y)]
        found.append(sum(inner) - 2 * _cubic(x, y).mean())
    return float(np.mean(found)), float(np.std(found))


def _rows(features: Features, key: np.random.Generator, size: int) -> np.ndarray:
    # In order: a file is read from its beginning to its end.
    which = np.sort(key.choice(features.shape[0], size, replace=False))
    return np.asarray(features[which], np.float64)


def _cubic(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _off_diagonal(kernel: np.ndarray) -> np.ndarray:
    return kernel - np.diag(np.diagonal(kernel))


def cmmd(
    a: Features, b: Features, counts: Float[np.ndarray, "R N"] | None = None
) -> Float64[np.ndarray, " R"]:
    """1000 times the squared MMD of unit vectors with a Gaussian kernel of sigma 10, the diagonal in it.

    counts: of resamplings of `a`; by default one that has every row once. The kernel is computed less 1, which cancels
    and would drown what is left.
    """
    own = np.ones((1, a.shape[0])) if counts is None else np.asarray(counts, np.float64)
    own = own / own.sum(axis=1, keepdims=True)
    other = np.full((1, b.shape[0]), 1 / b.shape[0])
    return _SCALE * (_mean(a, a, own, own) + _mean(b, b, other, other) - 2 * _mean(a, b, own, other))


def _mean(a: Features, b: Features, of_a: np.ndarray, of_b: np.ndarray) -> np.ndarray:
    """Weighted means of the kernel less 1, by resampling; of_a [R, N], of_b [R or 1, M]."""
    total = np.zeros(len(of_a))
    for i, x in enumerate(blocks(a)):
        rows = of_a[:, i * BLOCK : i * BLOCK + len(x)]
        for j, y in enumerate(blocks(b)):
            apart = (x**2).sum(axis=1)[:, None] + (y**2).sum(axis=1)[None, :] - 2 * x @ y.T
            kernel = np.expm1(-apart.clip(0) / (2 * _SIGMA**2))
            total += ((rows @ kernel) * of_b[:, j * BLOCK : j * BLOCK + len(y)]).sum(axis=1)
    return total


def clip_scores(a: Float[np.ndarray, "N D"], b: Float[np.ndarray, "N D"]) -> Float64[np.ndarray, " N"]:
    """100 times the cosine of each pair of unit vectors, at least 0."""
    return 100 * (np.asarray(a, np.float64) * np.asarray(b, np.float64)).sum(axis=1).clip(0)


def resamplings(count: int, times: int, key: np.random.Generator) -> Float64[np.ndarray, "R N"]:
    """How often each of `count` rows is drawn, in each of so many draws with replacement."""
    return key.multinomial(count, np.full(count, 1 / count), size=times).astype(np.float64)


def interval(value: float, again: Iterable[float], share: float = 0.95) -> tuple[float, float]:
    """Where the value would lie with other pictures of the same kind: the spread of what resamplings give, about it.

    Resampled sets hold some pictures twice, which makes FID and CMMD larger: their own mean is taken away.
    """
    found = np.asarray(list(again))
    low, high = np.quantile(found - found.mean(), [(1 - share) / 2, (1 + share) / 2])
    return max(0.0, value + float(low)), value + float(high)
