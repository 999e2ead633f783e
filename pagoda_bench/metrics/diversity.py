"""Diversity as the mean perceptual distance of pairs of images (Zhu et al. 2017, arXiv 1711.11586, with LPIPS of Zhang et al.
2018). Larger is more diverse, and noise is the most diverse of all: read it beside a measure of quality.

The distance is given: any function of two batches of images, LPIPS in the papers. Range and unit are those of the distance.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagoda_bench.errors import UserError

Images = NDArray[np.uint8]  # (N, H, W, 3)
Distance = Callable[[Images, Images], NDArray[np.floating]]  # (n, H, W, 3) twice -> (n,)


class Diversity(NamedTuple):
    mean: float  # over the pairs; with labels over the classes, each counting once
    std: float  # over the pairs, with labels over the means of the classes; population form
    pairs: int  # that were measured


def diversity(
    images: Images,
    distance: Distance,
    pairs: int = 1000,
    labels: NDArray[np.integer] | None = None,
    seed: int = 0,
    batch: int = 64,
) -> Diversity:
    """Mean distance of `pairs` different pairs of images, drawn with `seed`; of all pairs where there are no more.

    With `labels` (N,), of so many pairs within each class. Raises `UserError` where a set or a class has one image only, and
    where `distance` gives values that are not finite.
    """
    if pairs < 1:
        raise UserError(f"diversity: it needs at least one pair, not {pairs}")
    if labels is not None and len(labels) != len(images):
        raise UserError(f"diversity: {len(images)} images and {len(labels)} labels: every image needs one")
    rng = np.random.default_rng(seed)
    if labels is None:
        found = _measure(images, np.arange(len(images)), distance, pairs, rng, batch, "")
        return Diversity(float(found.mean()), float(found.std()), len(found))
    each = [
        _measure(images, np.flatnonzero(labels == c), distance, pairs, rng, batch, f" of class {c}") for c in np.unique(labels)
    ]
    means = np.array([part.mean() for part in each])
    return Diversity(float(means.mean()), float(means.std()), sum(map(len, each)))


def _measure(
    images: Images,
    members: NDArray[np.int64],
    distance: Distance,
    pairs: int,
    rng: np.random.Generator,
    batch: int,
    what: str,
) -> NDArray[np.float64]:
    if len(members) < 2:
        raise UserError(f"diversity: {len(members)} images{what} make no pair: it needs at least 2")
    all_pairs = len(members) * (len(members) - 1) // 2
    chosen = np.arange(all_pairs) if all_pairs <= pairs else rng.choice(all_pairs, pairs, replace=False)
    i, j = _pair(chosen)
    found = [
        np.asarray(distance(images[members[i[start : start + batch]]], images[members[j[start : start + batch]]]), np.float64)
        for start in range(0, len(chosen), batch)
    ]
    values = np.concatenate(found)
    if values.shape != chosen.shape or not np.isfinite(values).all():
        raise UserError(f"diversity: the distance function must give one finite value a pair{what}, not {values.shape}")
    return values


def _pair(number: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The pairs (i, j), i > j >= 0, in the order (1,0), (2,0), (2,1), (3,0), ...: number = i (i - 1) / 2 + j."""
    i = ((1 + np.sqrt(1 + 8 * number.astype(np.float64))) / 2).astype(np.int64)
    i -= i * (i - 1) // 2 > number  # the root may round across an integer
    i += i * (i + 1) // 2 <= number
    return i, number - i * (i - 1) // 2
