"""The Vendi score (Friedman and Dieng 2023, arXiv 2210.02410): the effective number of different images in one set.

exp of the entropy of the eigenvalues of K/N, where K holds the cosine similarities of the features. From 1 (all alike) to
min(N, d), larger is more diverse; it says nothing about quality, and grows with N: compare at equal N only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigvalsh

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.checks import check_features

ROWS = 4096  # that are taken at a time where the d x d form is used


def vendi_score(features: NDArray[np.floating], order: float = 1.0) -> float:
    """From features (N, d). `order` q of the Renyi entropy: 1 is Shannon's, the published default; inf looks at the largest
    eigenvalue alone. The smaller of K (N x N) and its dual (d x d) is decomposed: both have the same eigenvalues above 0."""
    check_features(features, "Vendi score", at_least=1)
    if not order > 0:
        raise UserError(f"Vendi score: the order must be above 0, not {order}")
    n, d = features.shape
    if n <= d:
        x = _unit(features)
        gram = x @ x.T
    else:
        gram = np.zeros((d, d))
        for start in range(0, n, ROWS):
            x = _unit(features[start : start + ROWS])
            gram += x.T @ x
    p = eigvalsh(gram / n, overwrite_a=True, check_finite=False)
    p = p[p > np.finfo(np.float64).eps]
    if np.isinf(order):
        return float(1 / p.max())
    if order == 1:
        return float(np.exp(-(p * np.log(p)).sum()))
    return float((p**order).sum() ** (1 / (1 - order)))


def _unit(features: NDArray[np.floating]) -> NDArray[np.float64]:
    x = features.astype(np.float64)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    if not norms.all():
        raise UserError("Vendi score: the features of an image are all 0 and have no direction: look at the extractor")
    return x / norms
