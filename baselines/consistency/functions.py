"""What consistency models are made of (Song et al. 2023, arXiv 2303.01469; Song and Dhariwal 2023, arXiv 2310.14189).

How they are trained, and sampled in several steps; the function itself is in pagoda_bench/diffusion/consistency.py.
Pure functions, in EDM's variables: x = image + sigma * n. Noise levels are float64 (N,), one an image; x is (N, C, H, W).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagoda_bench.diffusion.edm import SIGMA_MIN
from pagoda_bench.diffusion.solvers import DenoiseFn


def teacher_step(denoise_fn: DenoiseFn, x: Tensor, high: Tensor, low: Tensor, solver: Literal["heun", "euler"]) -> Tensor:
    """One step down the teacher's ODE, every image between noise levels of its own: the target's input in distillation
    (2303.01469, Algorithm 2).

    Two evaluations with Heun, one with Euler. Not clamped, as in the official code.
    """
    at, to = (s.to(x.dtype).view(-1, 1, 1, 1) for s in (high, low))
    slope = (x - denoise_fn(x, high.to(x.dtype))) / at
    euler = x + (to - at) * slope
    if solver == "euler":
        return euler
    slope_end = (euler - denoise_fn(euler, low.to(x.dtype))) / to
    return x + (to - at) / 2 * (slope + slope_end)


def data_step(x: Tensor, image: Tensor, high: Tensor, low: Tensor) -> Tensor:
    """The same step with the image itself as what the teacher would say: the target's input in training without a teacher.
    It is the image under the same noise at the lower level (2303.01469, Algorithm 3)."""
    at, to = (s.to(x.dtype).view(-1, 1, 1, 1) for s in (high, low))
    return image + to / at * (x - image)


def pseudo_huber(a: Tensor, b: Tensor, c: float) -> Tensor:
    """sqrt(|a - b|^2 + c^2) - c over all values of an image, (N,) (2310.14189, Table 1)."""
    square: Tensor = (a - b).square().flatten(1).sum(1)
    return (square + c * c).sqrt() - c


def huber_constant(factor: float, shape: Sequence[int]) -> float:
    """c = factor * sqrt(d) for images of d values; the paper's factor is 0.00054 (2310.14189, Table 1)."""
    return factor * math.sqrt(math.prod(shape))


def points_at(step: int, steps: int, schedule: str, first: int, last: int) -> int:
    """How many noise levels the grid has at a training step.

    "fixed": `first`. "sqrt" (2303.01469, App. C): ceil(sqrt(k / K ((s1 + 1)^2 - s0^2) + s0^2) - 1) + 1. "exponential"
    (2310.14189, Table 1): min(s0 2^floor(k / K'), s1) + 1 with K' = floor(K / (log2 floor(s1 / s0) + 1)), at least 1.
    """
    if schedule == "fixed":
        return first
    if schedule == "sqrt":
        return max(math.ceil(math.sqrt(step / steps * ((last + 1) ** 2 - first**2) + first**2) - 1), 1) + 1
    every = max(1, math.floor(steps / (math.log2(last // first) + 1)))
    return min(first * 2 ** min(step // every, 60), last) + 1


def target_decay(points: int, first: int, start: float) -> float:
    """mu = exp(s0 ln mu0 / N), N = points - 1 intervals: the more levels, the faster the target follows (2303.01469, App. C).

    The paper writes N for the number of levels; the official code divides by one less, and so do we.
    """
    return math.exp(first * math.log(start) / max(1, points - 1))


def lognormal_probabilities(grid: NDArray[np.float64], p_mean: float, p_std: float) -> NDArray[np.float64]:
    """(points - 1,) probability of each interval of a falling grid: the mass of ln sigma ~ N(p_mean, p_std^2) between its
    ends (2310.14189, Table 1)."""
    at = torch.from_numpy((np.log(grid) - p_mean) / (math.sqrt(2) * p_std))
    mass: NDArray[np.float64] = -np.diff(torch.erf(at).numpy())
    return mass / mass.sum()


def pick(probabilities: NDArray[np.float64], uniform: NDArray[np.float64]) -> NDArray[np.int64]:
    """Indices of intervals, (N,), by the inverse of the distribution function at uniform draws in (0, 1)."""
    total = np.cumsum(probabilities)
    return np.minimum(np.searchsorted(total / total[-1], uniform, side="right"), len(probabilities) - 1).astype(np.int64)


def multistep(
    function: Callable[[Tensor, Tensor], Tensor], z: Tensor, levels: Sequence[float], normal: Callable[[], Tensor]
) -> Tensor:
    """f at the first level, then at each further one on what came out with fresh noise (2303.01469, Algorithm 1).

    `z` ~ N(0, levels[0]^2); `levels` fall and stay above `SIGMA_MIN`; `normal()` gives standard normal noise of z's shape.
    What the function says is clamped to [-1, 1], as in the official sampler. One evaluation a level.
    """
    if not levels or list(levels) != sorted(set(levels), reverse=True) or levels[-1] <= SIGMA_MIN:
        raise ValueError(f"noise levels must fall and stay above {SIGMA_MIN}, not {list(levels)}")
    x = z
    for number, sigma in enumerate(levels):
        if number:
            x = x + math.sqrt(sigma**2 - SIGMA_MIN**2) * normal()
        x = function(x, x.new_full((len(x),), sigma, dtype=torch.float64)).clamp(-1, 1)
    return x
