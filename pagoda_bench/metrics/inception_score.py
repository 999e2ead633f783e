"""The Inception Score (Salimans et al. 2016) of any classifier: exp of the mean divergence of p(y|x) from p(y)."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagoda_bench.metrics.checks import check_features


class InceptionScore(NamedTuple):
    mean: float  # over the splits; in [1, classes], larger is better
    std: float  # over the splits, population form, as published code has it


def inception_score(logits: NDArray[np.floating], splits: int = 10) -> InceptionScore:
    """From logits (N, classes), N >= splits, in float64: exp of mean KL(p(y|x) || p(y)) in each of `splits` consecutive parts.

    The score grows with the number of images in a part, so N and `splits` belong to the protocol.
    """
    check_features(logits, "inception score", at_least=splits)
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    log_p = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    bounds = [len(x) * i // splits for i in range(splits + 1)]
    scores = [_score(log_p[a:b]) for a, b in pairwise(bounds)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(log_p: NDArray[np.float64]) -> float:
    # log of the mean probability without leaving the logarithms: a class that no image has would give log 0.
    top = log_p.max(axis=0)
    log_marginal = top + np.log(np.exp(log_p - top).mean(axis=0))
    return float(np.exp((np.exp(log_p) * (log_p - log_marginal)).sum(axis=1).mean()))
