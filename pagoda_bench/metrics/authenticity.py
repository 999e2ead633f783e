"""Authenticity: the share of generated images that are no copies of training images (Alaa et al. 2022, arXiv 2102.08921).

A generated image is authentic when it is farther from its nearest training image than that one is from its own nearest
training image. In percent, as dgm-eval reports it (`AuthPct`): 0 to 100, larger is better, and a memorising generator is
near 0. It needs the training images themselves, as many as the generator saw: fewer of them make it look better.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from pagoda_bench.metrics.checks import check_features, check_same_dimensions
from pagoda_bench.metrics.neighbours import Points, tiles


def authentic(
    train: NDArray[np.floating],
    generated: NDArray[np.floating],
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> NDArray[np.bool_]:
    """(M,) whether each generated image is authentic; features (N, d), N >= 2, and (M, d), M >= 1."""
    check_features(train, "authenticity, training images")
    check_features(generated, "authenticity, generated images", at_least=1)
    check_same_dimensions(train, generated, "authenticity")
    centre = train.mean(axis=0, dtype=np.float64)
    a, b = Points(train, centre, dtype, device), Points(generated, centre, dtype, device)
    nearest = torch.full((len(b),), torch.inf, dtype=dtype, device=a.device)
    index = torch.zeros(len(b), dtype=torch.int64, device=a.device)
    for rows, columns, distances in tiles(a, b):
        smallest, where = distances.min(0)
        closer = smallest < nearest[columns]
        nearest[columns] = torch.where(closer, smallest, nearest[columns])
        index[columns] = torch.where(closer, where + rows.start, index[columns])
    found: NDArray[np.bool_] = (a.radii(1)[index] < nearest).cpu().numpy()
    return found


def authenticity(
    train: NDArray[np.floating],
    generated: NDArray[np.floating],
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> float:
    """The percentage of authentic images among the generated ones; arguments as in `authentic`."""
    return 100 * float(authentic(train, generated, dtype, device).mean())
