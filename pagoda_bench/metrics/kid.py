"""The Kernel Inception Distance (Binkowski et al. 2018, arXiv 1801.01401): an unbiased squared discrepancy with a cubic kernel.

Around 0 for equal distributions, and a little below 0 as often as above; smaller is better; no unit. Published values are the
mean over random subsets, often times 1000: this is the plain one.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.checks import check_features, check_same_dimensions
from pagoda_bench.metrics.mmd import cubic, mmd, resampled

Features = NDArray[np.floating]
SUBSETS, SIZE, SEED = 100, 1000, 2020


class KID(NamedTuple):
    mean: float
    std: float  # over the subsets, population form, as published code has it; the subsets overlap: no standard error


def kid(
    real: Features,
    generated: Features,
    subsets: int = SUBSETS,
    size: int = SIZE,
    seed: int = SEED,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> KID:
    """Mean and spread over `subsets` pairs of subsets of `size` images of features (N, d) and (M, d).

    The draws are those of torch-fidelity: `RandomState(seed)`, the generated images first. Raises `UserError` when a set is
    smaller than `size`.
    """
    check_features(real, "KID, real images")
    check_features(generated, "KID, generated images")
    check_same_dimensions(real, generated, "KID")
    if size < 2 or subsets < 1:
        raise UserError(f"KID: {subsets} subsets of {size} images: it needs at least one subset of two")
    for images, what in ((generated, "generated"), (real, "real")):
        if len(images) < size:
            raise UserError(f"KID: {len(images)} {what} images cannot give subsets of {size}: more images, or a smaller subset")
    rng = np.random.RandomState(seed)
    values = np.empty(subsets)
    for i in range(subsets):
        y = generated[rng.choice(len(generated), size, replace=False)]
        x = real[rng.choice(len(real), size, replace=False)]
        values[i] = mmd(x, y, cubic, unbiased=True, dtype=dtype, device=device)[0]
    return KID(float(values.mean()), float(values.std()))


def kid_of_all(
    real: Features, generated: Features, dtype: torch.dtype = torch.float64, device: str | torch.device = "cpu"
) -> float:
    """The estimate from all images at once: what the mean over subsets goes to with more and more subsets."""
    return float(mmd(real, generated, cubic, unbiased=True, dtype=dtype, device=device)[0])


def kid_bootstrap(
    real: Features,
    generated: Features,
    draws: int = 200,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> NDArray[np.float64]:
    """(draws,) values of `kid_of_all` on images drawn again with replacement, in one pass over the kernel matrices.

    Copies of one image are left out of the pairs: counted, they would add a bias of order 1/N.
    """
    rng = np.random.default_rng(seed)
    weights = (resampled(len(real), draws, rng), resampled(len(generated), draws, rng))
    return mmd(real, generated, cubic, unbiased=True, weights=weights, dtype=dtype, device=device)
