"""FID at infinitely many samples (Chong and Forsyth 2020, arXiv 1911.07023): a line in 1/N through FIDs at several N.

FID is biased upward at finite N, by about a/N with an `a` that depends on the generator; the intercept of the line is free
of that. In squared units of the features, smaller is better; noise can take it below 0 for an almost perfect generator.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.checks import check_features, check_same_dimensions
from pagoda_bench.metrics.frechet import Gaussian, moments

POINTS, FEWEST = 15, 5000


class FIDInfinity(NamedTuple):
    value: float  # the line at 1/N = 0
    slope: float  # of the line, in FID times images
    sizes: NDArray[np.int64]  # (points,) numbers of generated images
    distances: NDArray[np.float64]  # (points,) the FID at each


def fid_infinity(
    reference: Gaussian, generated: NDArray[np.floating], points: int = POINTS, fewest: int = FEWEST, seed: int = 0
) -> FIDInfinity:
    """From generated features (N, d) against a fixed reference.

    `points` sizes, evenly from min(`fewest`, N // 10) to N, as in dgm-eval; for each, so many images are drawn without
    replacement from a generator seeded with `seed` (dgm-eval's is not seeded). Ordinary least squares.
    """
    check_features(generated, "FID-infinity, generated images", at_least=3)
    check_same_dimensions(reference.mean, generated, "FID-infinity")
    n = len(generated)
    sizes = np.linspace(min(fewest, max(n // 10, 2)), n, points).astype(np.int64)
    if len(np.unique(sizes)) < 2:
        raise UserError(f"FID-infinity: {points} points between {sizes[0]} and {n} images make no line: use more images")
    rng = np.random.default_rng(seed)
    distances = np.empty(points)
    for i, size in enumerate(sizes):
        part = moments([generated[rng.choice(n, size, replace=False)]], generated.shape[1])
        distances[i] = reference.distance(part.mean, part.covariance)
    slope, value = np.polyfit(1 / sizes, distances, 1)
    return FIDInfinity(float(value), float(slope), sizes, distances)
