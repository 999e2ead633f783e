"""What every metric asks of its features."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pagoda_bench.errors import UserError


def check_features(features: NDArray[np.floating], what: str, at_least: int = 2) -> None:
    """Raises `UserError`, naming `what`, unless `features` is (N, d) with N >= `at_least`, d >= 1 and finite values."""
    if features.ndim != 2 or not features.shape[1]:
        raise UserError(f"{what}: features must be (images, dimensions), not of shape {features.shape}")
    if len(features) < at_least:
        raise UserError(f"{what}: {len(features)} images are too few, this metric needs at least {at_least}")
    bad = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(bad):
        raise UserError(f"{what}: the features of {len(bad)} images are not finite, the first is image {bad[0]}: look at it")


def check_same_dimensions(a: NDArray[np.floating], b: NDArray[np.floating], what: str) -> None:
    """Raises `UserError` when two sets of features, or two means, cannot come from one network."""
    if a.shape[-1] != b.shape[-1]:
        raise UserError(f"{what}: {a.shape[-1]} and {b.shape[-1]} feature dimensions: both sides need the same network")
