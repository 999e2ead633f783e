"""Precision and recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020) from nearest neighbours.

The manifold of a set of features is the union of the balls around its points, each as large as the distance to the point's
k-th neighbour in the same set. Distances go in blocks of rows: memory grows with N, never with N x N.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagoda_bench.metrics.checks import check_features, check_same_dimensions

BLOCK_BYTES = 4 * 2**20  # of one block of distances: it should stay in the cache


class Neighbours(NamedTuple):
    """All larger is better; precision, recall and coverage in [0, 1], density 0 and above."""

    precision: float  # generated images inside the manifold of the real ones
    recall: float  # real images inside the manifold of the generated ones
    density: float  # how many real balls hold a generated image, over k
    coverage: float  # real images whose own ball holds a generated one


def neighbours(
    real: NDArray[np.floating],
    generated: NDArray[np.floating],
    k: int = 3,
    inclusive: bool = True,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> Neighbours:
    """Of features (N, d) and (M, d). Raises `UserError` when a set has no more than `k` images.

    `inclusive`: a point on the rim of a ball is inside (<=, Kynkaanniemi et al., k = 3); otherwise outside (<, Naeem et al.
    and their `prdc`, k = 5). float32 is enough for features that are not tightly clustered; on a GPU leave TF32 off.
    """
    check_features(real, "neighbours of real images", at_least=k + 1)
    check_features(generated, "neighbours of generated images", at_least=k + 1)
    check_same_dimensions(real, generated, "neighbours")
    # Squared distances come from |a|^2 + |b|^2 - 2 ab, which cancels badly far from the origin: centre in float64 first.
    centre = real.mean(axis=0, dtype=np.float64)
    a, b = (torch.from_numpy(x - centre).to(device, dtype) for x in (real, generated))
    radii_a, radii_b = _radii(a, k), _radii(b, k)
    held = torch.zeros(len(b), dtype=torch.int32, device=device)  # real balls that hold a generated image
    recalled, covered = 0, 0
    inside = torch.le if inclusive else torch.lt
    for rows, distances in _blocks(a, b):
        holds = inside(distances, radii_a[rows, None])
        held += holds.sum(0, dtype=torch.int32)
        covered += int(holds.any(1).sum())
        recalled += int(inside(distances, radii_b).any(1).sum())
    return Neighbours(
        precision=float((held > 0).double().mean()),
        recall=recalled / len(a),
        density=float(held.double().mean()) / k,
        coverage=covered / len(a),
    )


def _radii(x: Tensor, k: int) -> Tensor:
    """(N,) squared distance of each point to its k-th neighbour in the same set; the point itself does not count."""
    radii = torch.empty(len(x), dtype=x.dtype, device=x.device)
    for rows, distances in _blocks(x, x):
        own = torch.arange(rows.start, rows.stop, device=x.device)
        distances[own - rows.start, own] = torch.inf
        radii[rows] = distances.topk(k, dim=1, largest=False, sorted=True).values[:, -1]
    return radii


def _blocks(a: Tensor, b: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Blocks of rows of the (N, M) squared distances, as (rows, (n, M)); a block may be written to."""
    size = max(1, BLOCK_BYTES // (len(b) * b.element_size()))
    norms = b.square().sum(1)
    for start in range(0, len(a), size):
        rows = slice(start, min(start + size, len(a)))
        block = a[rows]
        distances = torch.addmm(norms[None], block, b.T, alpha=-2)
        yield rows, distances.add_(block.square().sum(1, keepdim=True)).clamp_(min=0)
