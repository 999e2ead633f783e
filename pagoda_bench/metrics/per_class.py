"""Per-class FID: the Frechet distance within each class, and its mean over the classes (intra-FID; Miyato and Koyama 2018,
arXiv 1802.05637). In squared units of the features, 0 and above, smaller is better.

A class has few images, and FID is biased upward at small N: compare only with the same numbers of images in every class.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.frechet import frechet_from_features


class PerClass(NamedTuple):
    mean: float  # over the classes, each counting once
    worst: int  # the class with the largest distance
    distances: dict[int, float]  # by class


def per_class_frechet(
    real: NDArray[np.floating],
    real_labels: NDArray[np.integer],
    generated: NDArray[np.floating],
    generated_labels: NDArray[np.integer],
) -> PerClass:
    """From features (N, d) and (M, d) with labels (N,) and (M,). Every class needs two images on both sides."""
    for what, features, labels in (("real", real, real_labels), ("generated", generated, generated_labels)):
        if labels.shape != (len(features),):
            raise UserError(f"per-class FID: {len(features)} {what} images and labels of shape {labels.shape}: one label each")
    classes = np.union1d(real_labels, generated_labels)
    for what, labels in (("real", real_labels), ("generated", generated_labels)):
        counts = {int(c): int((labels == c).sum()) for c in classes}
        if few := [c for c, count in counts.items() if count < 2]:
            raise UserError(
                f"per-class FID: {len(few)} of {len(classes)} classes have less than 2 {what} images, the first is class "
                f"{few[0]} with {counts[few[0]]}: it needs every class on both sides"
            )
    found = {int(c): frechet_from_features(real[real_labels == c], generated[generated_labels == c]) for c in classes}
    return PerClass(float(np.mean(list(found.values()))), max(found, key=lambda c: found[c]), found)
