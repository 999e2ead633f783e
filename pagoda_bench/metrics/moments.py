"""Count, mean and covariance of features that arrive in batches, on any number of workers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.checks import check_features, check_same_dimensions

Array = NDArray[np.float64]
ROWS = 1024  # that are gathered before the d x d scatter is touched: it is larger than a batch, and moving it is the cost


class Moments:
    """Count, mean and scatter, in float64.

    Updates are those of Chan et al. (1983): they keep deviations from the running mean, so nothing cancels when the mean is
    large. Parts that were gathered apart merge to what one pass gives, to rounding.
    """

    def __init__(self, dimensions: int) -> None:
        self._n = 0
        self._mean: Array = np.zeros(dimensions)
        self._scatter: Array = np.zeros((dimensions, dimensions))  # sum of (x - mean)(x - mean)^T
        self._waiting: list[Array] = []
        self._rows = 0

    @classmethod
    def of(cls, n: int, mean: Array, covariance: Array) -> Moments:
        """From the count, the mean (d,) and the covariance (d, d; n - 1 in the denominator) that somebody wrote down."""
        mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise UserError(f"moments: a mean of shape {mean.shape} does not fit a covariance of shape {covariance.shape}")
        if n < 2 or not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise UserError(f"moments: they need at least 2 images (not {n}) and finite values: make them again")
        found = cls(len(mean))
        found._merge(n, mean, covariance * (n - 1))
        return found

    def add(self, features: NDArray[np.floating]) -> None:
        """Takes in (N, d) features, N >= 1. Raises `UserError` when they are not finite or of another dimension."""
        check_features(features, "moments", at_least=1)
        check_same_dimensions(features, self._mean, "moments")
        self._waiting.append(features.astype(np.float64))
        self._rows += len(features)
        if self._rows >= ROWS:
            self._settle()

    def merge(self, other: Moments) -> None:
        """Takes in what another worker gathered."""
        check_same_dimensions(other.mean, self._mean, "moments")
        self._settle()
        self._merge(other.n, other.mean, other.scatter)

    # The three can be written down and put back.

    @property
    def n(self) -> int:
        return self._n + self._rows

    @n.setter
    def n(self, value: int) -> None:
        self._settle()
        self._n = value

    @property
    def mean(self) -> Array:
        """(d,)."""
        self._settle()
        return self._mean

    @mean.setter
    def mean(self, value: Array) -> None:
        self._settle()
        self._mean = value

    @property
    def scatter(self) -> Array:
        """(d, d): sum of (x - mean)(x - mean)^T."""
        self._settle()
        return self._scatter

    @scatter.setter
    def scatter(self, value: Array) -> None:
        self._settle()
        self._scatter = np.array(value, np.float64)

    @property
    def covariance(self) -> Array:
        """(d, d), with n - 1 in the denominator. Needs n >= 2."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 images, not {self.n}")
        return self.scatter / (self.n - 1)

    def _settle(self) -> None:
        if self._waiting:
            x = np.concatenate(self._waiting)
            self._waiting, self._rows = [], 0
            mean = x.mean(axis=0)
            x -= mean
            self._merge(len(x), mean, x.T @ x)

    def _merge(self, n: int, mean: Array, scatter: Array) -> None:
        if not n:
            return
        total, delta = self._n + n, mean - self._mean
        self._scatter += scatter  # in place: it is large, and only ever this object's own
        if self._n:
            self._scatter += np.outer(delta, delta * (self._n * n / total))
        self._mean = self._mean + delta * (n / total)
        self._n = total


def moments(batches: Iterable[NDArray[np.floating]], dimensions: int) -> Moments:
    """The moments of all batches."""
    found = Moments(dimensions)
    for batch in batches:
        found.add(batch)
    return found
