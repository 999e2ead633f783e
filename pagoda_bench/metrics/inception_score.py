"""The Inception Score (Salimans et al. 2016) of any classifier: exp of the mean divergence of p(y|x) from p(y)."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.checks import check_features


class InceptionScore(NamedTuple):
    mean: float  # over the parts; in [1, classes], larger is better
    std: float  # over the parts, population form, as published code has it


def inception_score(
    logits: NDArray[np.floating], splits: int = 10, part: int | None = None, shuffle: int | None = None
) -> InceptionScore:
    """From logits (N, classes), in float64: exp of mean KL(p(y|x) || p(y)) in each of several consecutive parts.

    `splits` parts of equal size (N >= splits), or, with `part`, parts of that many images of which the last may be smaller
    and counts the same (5000 in the evaluator of ADM). `shuffle`: the images are first put into the order of
    `RandomState(shuffle).permutation(N)` (2020 in torch-fidelity). The score grows with the number of images in a part, so N
    and all of these belong to the protocol.
    """
    if splits < 1 or (part is not None and part < 1):
        raise UserError(f"inception score: {splits} splits, {part} images a part: both must be at least 1")
    check_features(logits, "inception score", at_least=1 if part else splits)
    n = len(logits)
    order = slice(None) if shuffle is None else np.random.RandomState(shuffle).permutation(n)
    bounds = [*range(0, n, part), n] if part else [n * i // splits for i in range(splits + 1)]
    x = logits[order]
    scores = [_score(x[a:b]) for a, b in pairwise(bounds)]
    return InceptionScore(float(np.mean(scores)), float(np.std(scores)))


def _score(logits: NDArray[np.floating]) -> float:
    x = logits.astype(np.float64)
    x -= x.max(axis=1, keepdims=True)
    log_p = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    # log of the mean probability without leaving the logarithms: a class that no image has would give log 0.
    top = log_p.max(axis=0)
    log_marginal = top + np.log(np.exp(log_p - top).mean(axis=0))
    return float(np.exp((np.exp(log_p) * (log_p - log_marginal)).sum(axis=1).mean()))
