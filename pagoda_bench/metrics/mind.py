"""The Monge Inception Distance (Berthet et al. 2026, arXiv 2605.06797): a sliced squared 2-Wasserstein distance.

    MIND = 3 d E_u mean_j ((u.x)_(j) - (u.y)_(j))^2

over random unit directions u, with order statistics (j) of the projected features. In squared units of the features, 0 and
above, smaller is better. No covariance is estimated, so a few thousand images are enough; it is still biased upward.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.checks import check_features, check_same_dimensions

PROJECTIONS, SEED = 1000, 2020
AT_ONCE = 50  # directions: the memory is that many values an image


def mind(
    real: NDArray[np.floating],
    generated: NDArray[np.floating],
    projections: int = PROJECTIONS,
    seed: int = SEED,
    device: str | torch.device = "cpu",
) -> float:
    """From features (N, d) and (M, d), in float64. Of unequal sets, the larger one is cut to a random subset.

    Draws are those of torch-fidelity: one CPU generator of torch, the subset first, then normal directions in float32.
    """
    check_features(real, "MIND, real images")
    check_features(generated, "MIND, generated images")
    check_same_dimensions(real, generated, "MIND")
    if projections < 1:
        raise UserError(f"MIND: it needs at least one projection, not {projections}")
    rng = torch.Generator().manual_seed(seed)
    n, d = min(len(real), len(generated)), real.shape[1]

    def cut(features: NDArray[np.floating]) -> Tensor:
        if len(features) > n:
            features = features[torch.randperm(len(features), generator=rng)[:n].numpy()]
        return torch.from_numpy(np.array(features)).to(device, torch.float64)

    y, x = cut(generated), cut(real)  # at most one of them draws
    directions = torch.randn(projections, d, generator=rng)
    directions = (directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)).to(device, torch.float64)
    total = 0.0
    for u in directions.split(AT_ONCE):
        # One row a direction: sorting goes along memory.
        apart = (u @ x.T).sort(dim=1).values - (u @ y.T).sort(dim=1).values
        total += float(apart.square().sum())
    return 3 * d * total / (n * projections)
