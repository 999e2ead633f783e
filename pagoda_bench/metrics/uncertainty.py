"""How sure a score is: from disjoint blocks of samples, and by the bootstrap where that is valid.

Blocks are made from different seeds (or are disjoint parts of one set) and scored each on its own; that is right for every
metric. The bootstrap draws the images of one set again with replacement. Copies make a set look less diverse, which shifts
Frechet distances, the Inception Score, Vendi and radii; so it is used only for means over images (precision and recall with
the manifolds held fixed, CLIP score) and for KID without pairs of copies. It knows sampling error only: nothing of what
training again would change.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pagoda_bench.errors import UserError


class Summary(NamedTuple):
    """Of the scores of several blocks. Published values are often the minimum of three: say which one is compared."""

    mean: float
    minimum: float
    maximum: float
    std: float | None  # of one block, n - 1 in the denominator; None for one block: nothing is known
    stderr: float | None  # of the mean
    blocks: int


class Bootstrap(NamedTuple):
    value: float  # from all images
    stderr: float  # standard deviation over the draws
    low: float  # 2.5th percentile of the draws
    high: float  # 97.5th


def summarise(values: ArrayLike) -> Summary:
    """Of the scores (blocks,), at least one, all finite."""
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise UserError(f"scores of blocks must be finite numbers, at least one, not {x.tolist()}")
    std = float(x.std(ddof=1)) if len(x) > 1 else None
    stderr = None if std is None else std / len(x) ** 0.5
    return Summary(float(x.mean()), float(x.min()), float(x.max()), std, stderr, len(x))


def blocks(n: int, count: int) -> list[slice]:
    """`count` disjoint consecutive parts of n images, of sizes that differ by one at most. Needs n >= count >= 1."""
    if not 1 <= count <= n:
        raise UserError(f"{n} images cannot be divided into {count} blocks: choose between 1 and {n}")
    bounds = [n * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in pairwise(bounds)]


def over_blocks(score: Callable[[slice], float], n: int, count: int) -> Summary:
    """The summary of `score` on each of `count` disjoint parts of one set of n images.

    For a metric whose bias depends on N, the mean is that of N / count images: take the error from it, not the value.
    """
    return summarise([score(part) for part in blocks(n, count)])


def bootstrap_mean(values: ArrayLike, draws: int = 1000, seed: int = 0) -> Bootstrap:
    """Of a metric that is the mean of `values` (N,) over images, such as precision over `held > 0`."""
    x = np.asarray(values, np.float64)
    if x.ndim != 1 or len(x) < 2:
        raise UserError(f"a bootstrap needs one value for each of at least 2 images, not an array of shape {x.shape}")
    rng = np.random.default_rng(seed)
    return summarise_draws(float(x.mean()), np.array([x[rng.integers(0, len(x), len(x))].mean() for _ in range(draws)]))


def summarise_draws(value: float, draws: NDArray[np.float64]) -> Bootstrap:
    """Of a metric's `value` and its values on bootstrap samples, (draws,), at least 2."""
    if len(draws) < 2:
        raise UserError(f"a bootstrap needs at least 2 draws, not {len(draws)}")
    low, high = np.percentile(draws, [2.5, 97.5])
    return Bootstrap(value, float(draws.std(ddof=1)), float(low), float(high))
