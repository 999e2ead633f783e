"""The same neighbourhoods sooner, on processors with instructions for bfloat16: most pairs are so far apart that a rough
distance is enough to know that they do not count.

A product of matrices in bfloat16 gives every inner product to within bounds that are known beforehand, so each squared distance
lies between a lower and an upper bound. Only pairs whose bounds leave the answer open are measured: in float32, as the sum of
squared differences, which cancels nowhere and is 0 for copies. What comes out is what measuring every pair in that way gives.
Where too many pairs stay open, because the features are not spread enough for bfloat16, there is no gain, and the caller is
told.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Features = NDArray[np.floating]

SIDE = 1024  # rows and columns of a tile: in float32 it should stay in the cache
CHUNK = 128  # pairs that are measured at once, for the same reason
SPARE = 16  # neighbours beyond k that are kept by their lower bounds
ROUNDING = 2.0**-8 * 1.01  # of a number that becomes bfloat16, relative; a little more, for what float32 adds
MOST_ROWS = 0.05  # of the rows: more that have to be searched again in whole, and bfloat16 is no help
MOST_PAIRS = 0.02  # of the pairs: the same for pairs that have to be measured


class TooClose(ValueError):
    """The features are not spread enough for bfloat16: measure all pairs instead."""


class Rough:
    """Features (N, d), float32, as `bounds` needs them: centred, in bfloat16, with what that costs."""

    def __init__(self, features: Features, centre: NDArray[np.float64]) -> None:
        self.features = features
        self._centre = torch.from_numpy(centre.astype(np.float32))
        self.norms = torch.empty(len(features))  # (N,) squared; made first, not piece by piece: that would fragment the memory
        lost = 0.0
        for rows in slices(len(features), SIDE // 4):
            exact = self._cut(rows)
            self.norms[rows] = exact.square().sum(1)
            error = exact.sub_(exact.bfloat16()).square_().sum(1)
            lost = max(lost, float((error / self.norms[rows].clamp(min=1e-30)).max()))
        self.lost = lost**0.5  # of the length of a vector, at most

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, rows: slice) -> Tensor:
        return self._cut(rows).bfloat16()

    def _cut(self, rows: slice) -> Tensor:
        # A copy: a memory-mapped array may not be written to, and torch warns of that.
        return torch.from_numpy(np.array(self.features[rows], np.float32)).sub_(self._centre)


def slices(n: int, size: int = SIDE) -> Iterator[slice]:
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


def width(a: Rough, b: Rough) -> float:
    """How far an inner product of rounded vectors is from that of the vectors, over the mean of their squared norms.

    |a.b - a'.b'| <= |a - a'| |b| + |a'| |b - b'| <= (r + s + r s) |a| |b|, with |a| |b| <= (|a|^2 + |b|^2) / 2, where r and s
    are what a and b lost; the sum itself is in float32.
    """
    d = a.features.shape[1]
    return a.lost + b.lost + a.lost * b.lost + (d + 64) * 2.0**-24


def bounds(a: Rough, b: Rough, symmetric: bool = False) -> Iterator[tuple[slice, slice, Tensor]]:
    """Tiles (rows, columns, (n, m)) of lower bounds of the squared distances; `symmetric` as in `neighbours.tiles`."""
    part = 1 - width(a, b)
    for rows in slices(len(a)):
        block = a[rows]
        for columns in slices(len(b)):
            if symmetric and columns.start < rows.start:
                continue
            products = (block @ b[columns].T).float()
            products.add_(products.abs(), alpha=ROUNDING)  # they were rounded to bfloat16 once more
            yield rows, columns, products.mul_(-2).add_(part * b.norms[columns]).add_(part * a.norms[rows, None])


def upper(low: Tensor, norms: Tensor, width: float) -> Tensor:
    """The upper bounds that belong to lower bounds `low` of pairs whose squared norms add up to `norms`."""
    products = (norms * (1 - width) - low).abs() / 2
    return low + 2 * width * norms + 4.1 * ROUNDING * products


def measured(a: Features, i: Tensor, b: Features, j: Tensor) -> Tensor:
    """float32 (P,): the squared distances of the pairs (a[i], b[j])."""
    found = torch.empty(len(i))
    rows, columns = i.numpy(), j.numpy()
    for pairs in slices(len(i), CHUNK):
        x = torch.from_numpy(np.asarray(a[rows[pairs]], np.float32))
        found[pairs] = x.sub_(torch.from_numpy(np.asarray(b[columns[pairs]], np.float32))).square_().sum(1)
    return found


class Nearest:
    """For each of N points, the lower bounds of the distances to those that seem nearest, and which these are."""

    def __init__(self, n: int, keep: int) -> None:
        self.low = torch.full((n, keep), torch.inf)
        self.index = torch.zeros((n, keep), dtype=torch.int64)
        self.limit = torch.full((n,), torch.inf)  # the largest that is kept

    def take(self, rows: slice, columns: slice, low: Tensor) -> None:
        """Lower bounds (n, m) of `rows` against `columns`."""
        if self.limit[rows].isinf().all():  # the first of these rows
            values, index = low.topk(min(self.low.shape[1], low.shape[1]), dim=1, largest=False, sorted=False)
        else:
            row, column = (low < self.limit[rows, None]).nonzero().unbind(1)
            counts = torch.bincount(row, minlength=len(low))
            place = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
            values = torch.full((len(low), int(counts.max())), torch.inf)
            index = torch.zeros(values.shape, dtype=torch.int64)
            values[row, place], index[row, place] = low[row, column], column
        values = torch.cat([self.low[rows], values], 1)
        index = torch.cat([self.index[rows], index + columns.start], 1)
        self.low[rows], chosen = values.topk(self.low.shape[1], dim=1, largest=False, sorted=True)
        self.index[rows] = index.gather(1, chosen)
        self.limit[rows] = self.low[rows, -1]


def radii(points: Rough, k: int) -> Tensor:
    """float32 (N,): squared distance of each point to its k-th neighbour in the same set. Raises `TooClose`."""
    n = len(points)
    nearest = Nearest(n, min(k + SPARE, n - 1))
    for rows, columns, low in bounds(points, points, symmetric=True):
        if rows == columns:
            low.fill_diagonal_(torch.inf)
        else:  # the other triangle
            nearest.take(columns, rows, low.T.contiguous())
        nearest.take(rows, columns, low)
    each = torch.arange(n)[:, None]
    distances = torch.full(nearest.low.shape, torch.inf)
    first = measured(points.features, each.expand(-1, k).flatten(), points.features, nearest.index[:, :k].flatten())
    distances[:, :k] = first.view(n, k)
    limit = distances[:, :k].amax(1)  # not below the k-th distance
    row, place = (nearest.low[:, k:] <= limit[:, None]).nonzero().unbind(1)
    distances[row, k + place] = measured(points.features, row, points.features, nearest.index[row, k + place])
    found = distances.kthvalue(k, dim=1).values
    # Those of which the last that was kept could still be near enough: another, which was not kept, could be too.
    again = (nearest.limit <= found).nonzero().flatten() if nearest.low.shape[1] < n - 1 else each[:0, 0]
    if len(again) > MOST_ROWS * n:
        raise TooClose(f"{len(again)} of {n}")
    for index in again.tolist():
        others = torch.cat([torch.arange(index), torch.arange(index + 1, n)])
        all_ = measured(points.features, torch.full_like(others, index), points.features, others)
        found[index] = all_.kthvalue(k).values
    return found


def membership(
    a: Rough, b: Rough, radii_a: Tensor, radii_b: Tensor, inclusive: bool
) -> tuple[NDArray[np.int64], NDArray[np.bool_], NDArray[np.bool_]]:
    """`held`, `recalled` and `covered` of `neighbours.Membership`, for real `a` and generated `b`. Raises `TooClose`."""
    held = torch.zeros(len(b), dtype=torch.int64)
    recalled = torch.zeros(len(a), dtype=torch.bool)
    covered = torch.zeros(len(a), dtype=torch.bool)
    inside = torch.le if inclusive else torch.lt
    open_pairs, limit, wide = 0, MOST_PAIRS * len(a) * len(b) + SIDE, width(a, b)
    for rows, columns, low in bounds(a, b):
        row, column = ((low <= radii_a[rows, None]) | (low <= radii_b[columns])).nonzero().unbind(1)
        least, i, j = low[row, column], row + rows.start, column + columns.start
        distances = upper(least, a.norms[i] + b.norms[j], wide)
        unsure = (least <= radii_a[i]) & (distances >= radii_a[i]) | (least <= radii_b[j]) & (distances >= radii_b[j])
        open_pairs += int(unsure.sum())
        if open_pairs > limit:
            raise TooClose(f"{open_pairs} pairs")
        distances[unsure] = measured(a.features, i[unsure], b.features, j[unsure])
        holds = inside(distances, radii_a[i])
        held += torch.bincount(j[holds], minlength=len(b))
        covered[i[holds]] = True
        recalled[i[inside(distances, radii_b[j])]] = True
    return held.numpy(), recalled.numpy(), covered.numpy()
