"""Count, mean and covariance of features that arrive in batches, on any number of workers.

A sum depends on the order of its terms, and an entry of a covariance that is near 0 shows that first. So the images of a set
are cut into groups at fixed places, whoever sees them: `ROWS` images each, counted from the first image of the whole set. A
worker whose part begins or ends within a group keeps those rows as they are until the neighbour's come. Scatters of groups add
up with their rounding errors kept beside them (Knuth's two-sum), and the means of groups are combined once, at the end. What
comes out is the same for one worker and for eight.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.checks import check_features, check_same_dimensions

Array = NDArray[np.float64]
ROWS = 1024  # of a group; larger than a batch, because moving the d x d scatter is the cost
BLOCK = 64  # rows of the scatter that are added at a time, so that what is needed in between stays in the cache


class Moments:
    """Count, mean and scatter, in float64, of consecutive images of a set.

    Nothing cancels when the mean is large: deviations are from the mean of each group, and those means from their own mean
    (Chan et al. 1983).
    """

    def __init__(self, dimensions: int, start: int = 0) -> None:
        """`start`: how many images of the set come before the first one here, on other workers."""
        self.start = start
        self._before = -start % ROWS  # images until the first group begins
        self._head: Array | None = None  # (n, d) of those, when they are complete
        self._counts: list[int] = []
        self._means: list[Array] = []  # (d,) of each group
        self._high: Array = np.zeros((dimensions, dimensions))  # sum of the groups' scatters ...
        self._low: Array = np.zeros((dimensions, dimensions))  # ... and what rounding took from it
        self._tail: list[Array] = []  # rows of the group that is not complete
        self._waiting = 0  # their number
        self._known: tuple[Array, Array] | None = None

    @classmethod
    def of(cls, n: int, mean: Array, covariance: Array) -> Moments:
        """From the count, the mean (d,) and the covariance (d, d; n - 1 in the denominator) that somebody wrote down."""
        mean, covariance = np.asarray(mean, np.float64), np.asarray(covariance, np.float64)
        if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
            raise UserError(f"moments: a mean of shape {mean.shape} does not fit a covariance of shape {covariance.shape}")
        if n < 2 or not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
            raise UserError(f"moments: they need at least 2 images (not {n}) and finite values: make them again")
        found = cls(len(mean))
        found._counts, found._means, found._high = [n], [mean], covariance * (n - 1)
        return found

    @property
    def n(self) -> int:
        return sum(self._counts) + (0 if self._head is None else len(self._head)) + self._waiting

    @property
    def mean(self) -> Array:
        """(d,)."""
        return self._total()[0]

    @property
    def scatter(self) -> Array:
        """(d, d): sum of (x - mean)(x - mean)^T."""
        return self._total()[1]

    @property
    def covariance(self) -> Array:
        """(d, d), with n - 1 in the denominator. Needs n >= 2."""
        if self.n < 2:
            raise ValueError(f"a covariance needs at least 2 images, not {self.n}")
        return self.scatter / (self.n - 1)

    def add(self, features: NDArray[np.floating]) -> None:
        """Takes in (N, d) features, N >= 1. Raises `UserError` when they are not finite or of another dimension."""
        check_features(features, "moments", at_least=1)
        check_same_dimensions(features, self._high, "moments")
        self._take(features.astype(np.float64))

    def merge(self, other: Moments) -> None:
        """Takes in what another worker gathered.

        Parts that are merged in the order of the set, each with its `start`, give what one pass gives, to the last digits;
        others give it to rounding of float64.
        """
        check_same_dimensions(other._high, self._high, "moments")
        edges = [rows for rows in (other._head, *other._tail) if rows is not None and len(rows)]
        follows = other.start == self.start + self.n
        if follows and other._head is not None:
            self._take(edges.pop(0))
        self._counts += other._counts
        self._means += other._means
        _accumulate(self._high, self._low, other._high)
        self._low += other._low
        self._known = None
        for rows in edges:
            if follows:
                self._take(rows)
            else:
                self._close(rows)

    def _take(self, x: Array) -> None:
        """Rows that follow the last one."""
        self._known = None
        while len(x):
            in_head = self._before > 0 and self._head is None
            room = (self._before if in_head else ROWS) - self._waiting
            self._tail.append(x[:room])
            self._waiting += len(self._tail[-1])
            if len(self._tail[-1]) == room:
                rows = np.concatenate(self._tail)
                self._tail, self._waiting = [], 0
                if in_head:
                    self._head = rows
                else:
                    self._close(rows)
            x = x[room:]

    def _close(self, rows: Array) -> None:
        mean, scatter = _group(rows)
        self._counts.append(len(rows))
        self._means.append(mean)
        _accumulate(self._high, self._low, scatter)
        self._known = None

    def _total(self) -> tuple[Array, Array]:
        """(mean, scatter) of all rows, those at the edges included."""
        if self._known is None:
            counts, means = list(self._counts), list(self._means)
            high, low = self._high.copy(), self._low.copy()
            for rows in (self._head, np.concatenate(self._tail) if self._tail else None):
                if rows is not None:
                    mean, scatter = _group(rows)
                    counts.append(len(rows))
                    means.append(mean)
                    _accumulate(high, low, scatter)
            if not counts:
                return np.zeros(len(high)), high
            n, away = np.array(counts, np.float64)[:, None], np.stack(means) - means[0]
            shift = (n * away).sum(axis=0) / n.sum()
            away = (away - shift) * np.sqrt(n)
            _accumulate(high, low, away.T @ away)
            self._known = means[0] + shift, high + low
        return self._known


def moments(batches: Iterable[NDArray[np.floating]], dimensions: int) -> Moments:
    """The moments of all batches."""
    found = Moments(dimensions)
    for batch in batches:
        found.add(batch)
    return found


def _group(rows: Array) -> tuple[Array, Array]:
    """(mean, scatter) of (n, d)."""
    mean = rows.mean(axis=0)
    x = rows - mean
    return mean, x.T @ x


def _accumulate(high: Array, low: Array, more: Array) -> None:
    """Adds `more` to `high`, in place, and to `low` what rounding takes from that sum."""
    for start in range(0, len(high), BLOCK):
        part = slice(start, start + BLOCK)
        before, added = high[part], more[part]
        total = before + added
        taken = total - before
        low[part] += (before - (total - taken)) + (added - taken)
        high[part] = total
