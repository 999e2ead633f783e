"""Maximum mean discrepancies (Gretton et al. 2012) between two sets of features, in tiles of the kernel matrix.

CMMD (Jayasumana et al. 2024, arXiv 2401.09603) is the one with a Gaussian kernel on CLIP embeddings. 0 and above, without a
unit, smaller is better; the published code multiplies by 1000.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.checks import check_features, check_same_dimensions

Features = NDArray[np.floating]
Kernel = Callable[[Tensor, Tensor], Tensor]  # (n, d), (m, d) -> (n, m)

TILE = 1024  # rows and columns of the kernel matrix at a time
SIGMA, SCALE = 10.0, 1000.0  # of CMMD


class Sums(NamedTuple):
    """Of one kernel matrix, for each of B weightings of its rows and columns."""

    all: Tensor  # (B,) sum of w_i k(x_i, y_j) v_j
    diagonal: Tensor  # (B,) the part of it with i = j; only for x with itself


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """(x.y / d + 1)^3, the kernel of KID."""
    return torch.addmm(x.new_ones(()), x, y.T, alpha=1 / x.shape[1]).pow_(3)


def gaussian(sigma: float) -> Kernel:
    """exp(-|x - y|^2 / (2 sigma^2))."""

    def kernel(x: Tensor, y: Tensor) -> Tensor:
        squared = torch.addmm(y.square().sum(1)[None], x, y.T, alpha=-2).add_(x.square().sum(1)[:, None])
        return squared.clamp_(min=0).mul_(-0.5 / sigma**2).exp_()

    return kernel


def sums(x: Tensor, y: Tensor | None, kernel: Kernel, w: Tensor, v: Tensor) -> Sums:
    """Of `x` (N, d) with `y` (M, d), or with itself where `y` is None; weights `w` (B, N) and `v` (B, M)."""
    other = x if y is None else y
    total, diagonal = (torch.zeros(len(w), dtype=torch.float64, device=x.device) for _ in range(2))
    for rows in _slices(len(x)):
        for columns in _slices(len(other)):
            if y is None and columns.start < rows.start:
                continue  # symmetric
            values = kernel(x[rows], other[columns]).double()
            part = ((w[:, rows] @ values) * v[:, columns]).sum(1)
            on_diagonal = y is None and columns == rows
            total += part if y is not None or on_diagonal else 2 * part
            if on_diagonal:
                diagonal += (w[:, rows] * v[:, rows]) @ values.diagonal()
    return Sums(total, diagonal)


def mmd(
    real: Features,
    generated: Features,
    kernel: Kernel,
    unbiased: bool,
    weights: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> NDArray[np.float64]:
    """(B,) squared discrepancy of features (N, d) and (M, d); one value, or one for each row of `weights` (B, N), (B, M).

    Biased is the V-statistic, the mean over all pairs; unbiased is the U-statistic, over the pairs of different images, and
    can be below 0. Under weights, which count how often an image was drawn, an image and its copy are no pair either.
    """
    check_features(real, "kernel distance, real images")
    check_features(generated, "kernel distance, generated images")
    check_same_dimensions(real, generated, "kernel distance")
    x, y = (torch.from_numpy(np.array(f)).to(device, dtype) for f in (real, generated))
    given = weights or (np.ones((1, len(x))), np.ones((1, len(y))))
    w, v = (torch.from_numpy(np.asarray(each, np.float64)).to(device) for each in given)

    def within(points: Tensor, weight: Tensor) -> Tensor:
        found, pairs = sums(points, None, kernel, weight, weight), weight.sum(1).square()
        if unbiased:
            return (found.all - found.diagonal) / (pairs - weight.square().sum(1))
        return found.all / pairs

    between = sums(x, y, kernel, w, v).all / (w.sum(1) * v.sum(1))
    result: NDArray[np.float64] = (within(x, w) + within(y, v) - 2 * between).cpu().numpy()
    return result


def resampled(n: int, draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(draws, n): how often each of `n` images is drawn, with replacement, in each of `draws` bootstrap samples."""
    return rng.multinomial(n, np.full(n, 1 / n), size=draws).astype(np.float64)


def cmmd(
    real: Features,
    generated: Features,
    sigma: float = SIGMA,
    scale: float = SCALE,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device = "cpu",
) -> float:
    """The biased estimate with the kernel of width `sigma`, times `scale`, from CLIP image embeddings (N, d), N >= 2.

    They are brought to length 1, as in the published code, whose network does so itself.
    """
    check_features(real, "CMMD, real images")
    check_features(generated, "CMMD, generated images")
    x, y = (_unit(embeddings, what) for embeddings, what in ((real, "real"), (generated, "generated")))
    return scale * float(mmd(x, y, gaussian(sigma), unbiased=False, dtype=dtype, device=device)[0])


def _unit(embeddings: Features, what: str) -> NDArray[np.float64]:
    x = embeddings.astype(np.float64)
    norms = np.linalg.norm(x, axis=1, keepdims=True)
    if not norms.all():
        raise UserError(f"CMMD, {what} images: an embedding is all 0 and has no direction: look at the extractor")
    return x / norms


def _slices(n: int) -> Iterator[slice]:
    return (slice(start, min(start + TILE, n)) for start in range(0, n, TILE))
