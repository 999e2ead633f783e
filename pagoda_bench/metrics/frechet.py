"""The Frechet distance between Gaussians fitted to two sets of features (Heusel et al. 2017; Dowson and Landau 1982).

    d^2 = |m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)

It is reported squared, as everywhere in the field; in squared units of the features, 0 and above, smaller is better. No
matrix square root is taken of the product: that is slow, and complex by rounding. With any factors F1^T F1 = S1 and
F2^T F2 = S2, the last trace is the sum of the singular values of F1 F2^T, real and not negative by construction.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigvalsh
from scipy.linalg.lapack import dpotrf, dsygst

from pagoda_bench.metrics.checks import check_features, check_same_dimensions
from pagoda_bench.metrics.moments import Moments, moments

__all__ = ["Gaussian", "Moments", "frechet_distance", "frechet_from_features", "moments"]

Array = NDArray[np.float64]
ROUNDING = 8 * np.finfo(np.float64).eps  # of eigenvalues, beside the largest
INVISIBLE = 1e-11  # of the traces
SMALLEST_PIVOT = 1e-12  # of a Cholesky factor, squared and relative: below it, a matrix counts as singular


def frechet_distance(m1: Array, s1: Array, m2: Array, s2: Array) -> float:
    """From means (d,) and covariances (d, d); covariances of lower rank are fine.

    The eigenvalues of S1 S2 are those of F S2 F^T for any F^T F = S1. Where S1 or S2 has full rank, F is its Cholesky factor;
    otherwise `eigh` gives F = L^(1/2) V^T of S1 = V L V^T.
    """
    return Gaussian(m1, s1).distance(m2, s2)


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
    (m1, f1), (m2, f2) = _centred(a), _centred(b)
    trace1, trace2 = float((f1**2).sum()), float((f2**2).sum())
    return _distance(m1, m2, trace1, trace2, _nuclear_norm(f1 @ f2.T, trace1 + trace2))


class Gaussian:
    """One side of many distances, such as a reference: what depends on it alone is computed once."""

    def __init__(self, mean: Array, covariance: Array) -> None:
        """`mean` (d,), `covariance` (d, d), symmetric and positive semi-definite up to rounding."""
        self.mean = np.asarray(mean, np.float64)
        self.covariance = np.asarray(covariance, np.float64)
        self._cholesky = _cholesky(self.covariance)
        self._root: Array | None = None

    def distance(self, mean: Array, covariance: Array) -> float:
        """The squared Frechet distance to the Gaussian of `mean` (d,) and `covariance` (d, d)."""
        m, s = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
        check_same_dimensions(self.mean, m, "frechet distance")
        return _distance(self.mean, m, float(np.trace(self.covariance)), float(np.trace(s)), self._cross(s))

    def _cross(self, other: Array) -> float:
        """tr (S1 S2)^(1/2)."""
        if self._cholesky is not None:
            return _trace_of_root(_congruent(self._cholesky, other))
        if self._root is None and (factor := _cholesky(other)) is not None:
            return _trace_of_root(_congruent(factor, self.covariance))
        if self._root is None:
            values, vectors = np.linalg.eigh(self.covariance)
            self._root = np.sqrt(_without_rounding(values))[:, None] * vectors.T
        middle = self._root @ other @ self._root.T
        return _trace_of_root((middle + middle.T) / 2)


def _cholesky(s: Array) -> Array | None:
    """Lower L with L L^T = `s`; None where `s` is singular to rounding, so that L would be noise in some directions."""
    factor, failed = dpotrf(s, lower=1, clean=1)
    if failed:
        return None
    pivots = np.diagonal(factor) ** 2
    return factor if pivots.min() > SMALLEST_PIVOT * pivots.max() else None


def _congruent(lower: Array, s: Array) -> Array:
    """L^T S L, of which only the lower triangle counts: half the work of two products."""
    middle, _ = dsygst(s, lower, itype=2, lower=1)
    return middle


def _trace_of_root(middle: Array) -> float:
    """The sum of the roots of the eigenvalues of a symmetric matrix whose lower triangle is given."""
    # LAPACK's plainest driver: without eigenvectors the others do the same work and more copying, a fifth in all.
    eigenvalues = eigvalsh(middle, lower=True, overwrite_a=True, check_finite=False, driver="ev")
    return float(np.sqrt(_without_rounding(eigenvalues)).sum())


def _nuclear_norm(c: Array, size: float) -> float:
    """The sum of the singular values of `c` = F1 F2^T, to rounding of float64 beside `size`.

    They are the roots of the eigenvalues of C C^T, which take half the time of the singular values themselves. Rounding of
    the eigenvalues is a part of the largest one, and grows in the roots of small ones: where that could be seen, `svd` does it.
    """
    gram = c @ c.T if len(c) <= c.shape[1] else c.T @ c
    # The smallest belongs to the vector of ones and is 0, because the features are centred.
    values = eigvalsh(gram, overwrite_a=True, check_finite=False, driver="ev")[1:]
    if values[0] > 0:
        roots = np.sqrt(values)
        if ROUNDING * values[-1] * (1 / roots).sum() <= INVISIBLE * size:
            return float(roots.sum())
    return float(np.linalg.svd(c, compute_uv=False).sum())


def _centred(features: NDArray[np.floating]) -> tuple[Array, Array]:
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
