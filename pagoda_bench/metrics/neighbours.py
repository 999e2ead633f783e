"""Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020) from nearest neighbours.

The manifold of a set of features is the union of the balls around its points, each as large as the distance to the point's
k-th neighbour in the same set. Distances go in tiles: memory grows with N, never with N x N, and features may be memory-mapped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagoda_bench.metrics import near
from pagoda_bench.metrics.checks import check_features, check_same_dimensions
from pagoda_bench.metrics.near import slices
from pagoda_bench.nets.device import fast_bfloat16

BLOCK_BYTES = 4 * 2**20  # of one tile of distances: it should stay in the cache
# Squared distances from |a|^2 + |b|^2 - 2 ab carry errors of a few ulp of |a|^2. A squared radius that is less than this part
# of the squared norms would show them; then float32 is not enough.
SAFE_RADIUS = 1e-3
MANY = 2048  # images, from which on rough distances first are worth their while

Features = NDArray[np.floating]


class Neighbours(NamedTuple):
    """All larger is better; precision, recall and coverage in [0, 1], density 0 and above."""

    precision: float  # generated images inside the manifold of the real ones
    recall: float  # real images inside the manifold of the generated ones
    density: float  # how many real balls hold a generated image, over k
    coverage: float  # real images whose own ball holds a generated one


class Membership(NamedTuple):
    """What the four numbers are means of, image by image."""

    held: NDArray[np.int64]  # (M,) real balls that hold each generated image
    recalled: NDArray[np.bool_]  # (N,) whether each real image is in some generated ball
    covered: NDArray[np.bool_]  # (N,) whether each real ball holds a generated image
    k: int

    def scores(self) -> Neighbours:
        return Neighbours(
            precision=float((self.held > 0).mean()),
            recall=float(self.recalled.mean()),
            density=float(self.held.mean()) / self.k,
            coverage=float(self.covered.mean()),
        )


def neighbours(
    real: Features,
    generated: Features,
    k: int = 3,
    inclusive: bool = True,
    dtype: torch.dtype | None = torch.float64,
    device: str | torch.device = "cpu",
) -> Neighbours:
    """Of features (N, d) and (M, d). Raises `UserError` when a set has no more than `k` images.

    `inclusive`: a point on the rim of a ball is inside (<=, Kynkaanniemi et al., k = 3); otherwise outside (<, Naeem et al.
    and their `prdc`, k = 5). `dtype` None: float32 where the features are spread enough for it, otherwise float64; large sets
    go through `near` first where the processor is made for that, with the same result. On a GPU leave TF32 off.
    """
    return membership(real, generated, k, inclusive, dtype, device).scores()


def membership(
    real: Features,
    generated: Features,
    k: int = 3,
    inclusive: bool = True,
    dtype: torch.dtype | None = torch.float64,
    device: str | torch.device = "cpu",
) -> Membership:
    """As `neighbours`, before the means are taken."""
    check_features(real, "neighbours of real images", at_least=k + 1)
    check_features(generated, "neighbours of generated images", at_least=k + 1)
    check_same_dimensions(real, generated, "neighbours")
    # The matrix form of the distance cancels badly far from the origin: centre first.
    centre = real.mean(axis=0, dtype=np.float64)
    if dtype is None:
        if (found := _sooner(real, generated, centre, k, inclusive, device)) is not None:
            return found
        points = [Points(x, centre, torch.float32, device) for x in (real, generated)]
        radii = [p.radii(k) for p in points]
        if all(p.spread(r) for p, r in zip(points, radii, strict=True)):
            return _membership(points, radii, k, inclusive)
        dtype = torch.float64
    points = [Points(x, centre, dtype, device) for x in (real, generated)]
    return _membership(points, [p.radii(k) for p in points], k, inclusive)


def _sooner(
    real: Features, generated: Features, centre: NDArray[np.float64], k: int, inclusive: bool, device: str | torch.device
) -> Membership | None:
    """By `near`; None where that cannot be, or does not help."""
    small = min(len(real), len(generated)) < MANY
    if small or torch.device(device).type != "cpu" or {real.dtype, generated.dtype} != {np.dtype(np.float32)}:
        return None
    if not fast_bfloat16():
        return None
    try:
        a, b = near.Rough(real, centre), near.Rough(generated, centre)
        return Membership(*near.membership(a, b, near.radii(a, k), near.radii(b, k), inclusive), k)
    except near.TooClose:
        return None


def _membership(points: list[Points], radii: list[Tensor], k: int, inclusive: bool) -> Membership:
    (a, b), (radii_a, radii_b) = points, radii
    held = torch.zeros(len(b), dtype=torch.int64, device=a.device)
    recalled = torch.zeros(len(a), dtype=torch.bool, device=a.device)
    covered = torch.zeros(len(a), dtype=torch.bool, device=a.device)
    inside = torch.le if inclusive else torch.lt
    for rows, columns, distances in tiles(a, b):
        holds = inside(distances, radii_a[rows, None])
        held[columns] += holds.sum(0)
        covered[rows] |= holds.any(1)
        recalled[rows] |= inside(distances, radii_b[columns]).any(1)
    return Membership(held.cpu().numpy(), recalled.cpu().numpy(), covered.cpu().numpy(), k)


class Points:
    """Centred features, taken a slice at a time on the CPU, whole on another device."""

    def __init__(self, features: Features, centre: NDArray[np.float64], dtype: torch.dtype, device: str | torch.device) -> None:
        self.device, self.dtype = torch.device(device), dtype
        self._features = features
        self._centre = torch.from_numpy(centre).to(dtype)
        self._whole = None if self.device.type == "cpu" else self._cut(slice(0, len(features))).to(self.device)
        self.norms = torch.empty(len(features), dtype=dtype, device=self.device)  # made first: pieces would fragment the memory
        for rows in slices(len(features)):
            self.norms[rows] = self[rows].square().sum(1)

    def __len__(self) -> int:
        return len(self._features)

    def __getitem__(self, rows: slice) -> Tensor:
        """(n, d), centred."""
        return self._cut(rows) if self._whole is None else self._whole[rows]

    def _cut(self, rows: slice) -> Tensor:
        # A copy: a memory-mapped array may not be written to, and torch warns of that.
        return torch.from_numpy(np.array(self._features[rows])).to(self.dtype).sub_(self._centre)

    def radii(self, k: int) -> Tensor:
        """(N,) squared distance of each point to its k-th neighbour in the same set; the point itself does not count."""
        nearest = torch.full((len(self), k), torch.inf, dtype=self.dtype, device=self.device)
        for rows, columns, distances in tiles(self, self, symmetric=True):
            if rows == columns:
                distances.fill_diagonal_(torch.inf)
            else:  # the other triangle
                nearest[columns] = _smallest(nearest[columns], distances.T.contiguous())
            nearest[rows] = _smallest(nearest[rows], distances)
        return nearest[:, -1]

    def spread(self, radii: Tensor) -> bool:
        """Whether squared `radii` stand well above the rounding of squared distances."""
        return bool((radii > SAFE_RADIUS * self.norms).all())


def tiles(a: Points, b: Points, symmetric: bool = False) -> Iterator[tuple[slice, slice, Tensor]]:
    """Tiles of the (N, M) squared distances, as (rows, columns, (n, m)); a tile may be written to. `symmetric`, for `a` the
    same as `b`: only tiles on and above the diagonal, those on it square."""
    side = max(1, int((BLOCK_BYTES / a.norms.element_size()) ** 0.5))
    for rows in slices(len(a), side):
        block = a[rows]
        for columns in slices(len(b), side):
            if symmetric and columns.start < rows.start:
                continue
            distances = torch.addmm(b.norms[None, columns], block, b[columns].T, alpha=-2)
            yield rows, columns, distances.add_(a.norms[rows, None]).clamp_(min=0)


def _smallest(known: Tensor, distances: Tensor) -> Tensor:
    """The k smallest of each row of `known` (n, k) and `distances` (n, m), in ascending order."""
    k = known.shape[1]
    if distances.shape[1] > k:
        distances = distances.topk(k, dim=1, largest=False, sorted=False).values
    return torch.cat([known, distances], dim=1).topk(k, dim=1, largest=False, sorted=True).values
