"""The Frechet distance between Gaussians fitted to two sets of features (Heusel et al. 2017; Dowson and Landau 1982).

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

It is reported squared, as everywhere in the field; in squared units of the features, 0 and above, smaller is better. No
matrix square root is taken of the product: that is slow, and complex by rounding. With any factors F1^T F1 = S1 and
F2^T F2 = S2, the last trace is the sum of the singular values of F1 F2^T, real and not negative by construction.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pagoda_bench.metrics.checks import check_features, check_same_dimensions

Array = NDArray[np.float64]


class Moments:
    """Count, mean and scatter of features that arrive in batches, in float64.

    Updates are those of Chan et al. (1983): they keep deviations from the running mean, so nothing cancels when the mean is
    large. Parts that were gathered apart merge to what one pass gives, to rounding.
    """

    def __init__(self, dimensions: int) -> None:
        self.n = 0
        self.mean: Array = np.zeros(dimensions)
        self.scatter: Array = np.zeros((dimensions, dimensions))  # sum of (x - mean)(x - mean)^T

    def add(self, features: NDArray[np.floating]) -> None:
        """Takes in (N, d) features, N >= 1. Raises `UserError` when they are not finite or of another dimension."""
        check_features(features, "moments", at_least=1)
        check_same_dimensions(features, self.mean, "moments")
        x = features.astype(np.float64)
        mean = x.mean(axis=0)
        x -= mean
        self._merge(len(x), mean, x.T @ x)

    def merge(self, other: Moments) -> None:
        """Takes in what another worker gathered."""
        check_same_dimensions(other.mean, self.mean, "moments")
        self._merge(other.n, other.mean, other.scatter)

    @property
    def covariance(self) -> Array:
        """(d, d), with n - 1 in the denominator. Needs n >= 2."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 images, not {self.n}")
        return self.scatter / (self.n - 1)

    def _merge(self, n: int, mean: Array, scatter: Array) -> None:
        if not n:
            return
        total, delta = self.n + n, mean - self.mean
        self.scatter = self.scatter + scatter + np.outer(delta, delta) * (self.n * n / total)
        self.mean = self.mean + delta * (n / total)
        self.n = total


def moments(batches: Iterable[NDArray[np.floating]], dimensions: int) -> Moments:
    """The moments of all batches."""
    found = Moments(dimensions)
    for batch in batches:
        found.add(batch)
    return found


def frechet_distance(m1: Array, s1: Array, m2: Array, s2: Array) -> float:
    """From means (d,) and covariances (d, d). One `eigh` and one `eigvalsh`: with S1 = V L V^T and R = L^(1/2) V^T, the
    eigenvalues of R S2 R^T are those of S1 S2. Covariances of lower rank are fine."""
    m1, s1, m2, s2 = (np.asarray(value, np.float64) for value in (m1, s1, m2, s2))
    check_same_dimensions(m1, m2, "frechet distance")
    values, vectors = np.linalg.eigh(s1)
    root = np.sqrt(_without_rounding(values))[:, None] * vectors.T
    middle = root @ s2 @ root.T
    eigenvalues = np.linalg.eigvalsh((middle + middle.T) / 2)
    cross = float(np.sqrt(_without_rounding(eigenvalues)).sum())
    return _distance(m1, m2, float(np.trace(s1)), float(np.trace(s2)), cross)


def frechet_from_features(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """From features (N1, d) and (N2, d), N >= 2: the same number by the shortest way.

    Where neither set has more images than dimensions, the centred features themselves are the factors, and the trace is the
    nuclear norm of an N1 x N2 matrix: exact, without a d x d matrix. Otherwise as `frechet_distance`.
    """
    check_features(a, "frechet distance, first set")
    check_features(b, "frechet distance, second set")
    check_same_dimensions(a, b, "frechet distance")
    if max(len(a), len(b)) > a.shape[1]:
        first, second = moments([a], a.shape[1]), moments([b], b.shape[1])
        return frechet_distance(first.mean, first.covariance, second.mean, second.covariance)
    (m1, f1), (m2, f2) = _factor(a), _factor(b)
    cross = float(np.linalg.svd(f1 @ f2.T, compute_uv=False).sum())
    return _distance(m1, m2, float((f1**2).sum()), float((f2**2).sum()), cross)


def _factor(features: NDArray[np.floating]) -> tuple[Array, Array]:
    x = features.astype(np.float64)
    mean = x.mean(axis=0)
    return mean, (x - mean) / np.sqrt(len(x) - 1)


def _without_rounding(eigenvalues: Array) -> Array:
    """Eigenvalues of a positive semi-definite matrix, with 0 for those that are only rounding: their square roots would add
    up to something visible when the rank is low."""
    limit = np.finfo(np.float64).eps * max(float(eigenvalues.max()), 0.0)
    return np.where(eigenvalues > limit, eigenvalues, 0.0)


def _distance(m1: Array, m2: Array, trace1: float, trace2: float, cross: float) -> float:
    return max(0.0, float(((m1 - m2) ** 2).sum()) + trace1 + trace2 - 2 * cross)
