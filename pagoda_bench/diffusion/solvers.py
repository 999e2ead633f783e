"""Solvers of the probability-flow ODE dx/dsigma = (x - D(x; sigma)) / sigma (Karras et al. 2022, Eq. 3): pure functions.

All of them take `denoise_fn(x, sigma) -> denoised` with x (N, C, H, W) and sigma (N,) in x's dtype, and a `grid` of noise
levels in the order of sampling, from high to low, as `edm.karras_grid` gives it. They run in x's dtype; step sizes are
computed in float64. `clamp` limits every denoised image to [-1, 1], where data live. `progress(done, total)` is called
after every step. Callers choose `torch.inference_mode`. Every function states its number of evaluations.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
from torch import Tensor

DenoiseFn = Callable[[Tensor, Tensor], Tensor]
NormalFn = Callable[[], Tensor]  # fresh standard normal noise of x's shape and dtype, a new draw each call
Progress = Callable[[int, int], None]
Solver = Literal["heun", "ddim"]


class Churn(NamedTuple):
    """How much noise a stochastic sampler adds before each step (Karras et al. 2022, Algorithm 2, lines 4 to 6).

    `total` is S_churn, spread evenly over the steps; only noise levels in [low, high] (S_tmin, S_tmax) are raised; `noise`
    (S_noise) scales what is added.
    """

    total: float = 0.0
    low: float = 0.0
    high: float = math.inf
    noise: float = 1.0

    def raised(self, sigma: float, steps: int) -> float:
        """The noise level to which `sigma` is raised: at most sqrt(2) times it."""
        gamma = min(self.total / steps, math.sqrt(2) - 1) if self.low <= sigma <= self.high else 0.0
        return sigma * (1 + gamma)


def heun(
    denoise_fn: DenoiseFn, z: Tensor, grid: Sequence[float] | np.ndarray, clamp: bool = True, progress: Progress | None = None
) -> Tensor:
    """Deterministic second-order sampling (Karras et al. 2022, Algorithm 1), then an Euler step from the last level to 0.

    `z` ~ N(0, grid[0]^2). Returns the image, in [-1, 1] with `clamp`. 2 n - 1 evaluations for n points.
    """
    return _sample(denoise_fn, z, grid, "heun", clamp, progress)


def ddim(
    denoise_fn: DenoiseFn, z: Tensor, grid: Sequence[float] | np.ndarray, clamp: bool = True, progress: Progress | None = None
) -> Tensor:
    """Deterministic first-order sampling: DDIM (Song et al. 2021) in EDM's variables is Euler's method in sigma.

    As `heun`, with one evaluation a level: n for n points.
    """
    return _sample(denoise_fn, z, grid, "ddim", clamp, progress)


def stochastic(
    denoise_fn: DenoiseFn,
    z: Tensor,
    grid: Sequence[float] | np.ndarray,
    normal: NormalFn,
    churn: Churn,
    solver: Solver = "heun",
    clamp: bool = True,
    progress: Progress | None = None,
) -> Tensor:
    """Noise is added before every step, then a step of `solver` is taken from the raised level (Karras et al. 2022,
    Algorithm 2; with "ddim" its first-order form). The network sees the image with the added noise.

    `normal` is called once for each step that adds noise. As many evaluations as without noise.
    """
    levels = _levels(grid)
    x = z
    for i, (sigma, target) in enumerate(pairwise([*levels, 0.0])):
        raised = churn.raised(sigma, len(levels))
        if raised > sigma:
            x = x + math.sqrt(raised**2 - sigma**2) * churn.noise * normal()
        x = _step(denoise_fn, x, raised, target, solver, clamp) if target else _denoised(denoise_fn, x, raised, clamp)
        if progress:
            progress(i + 1, len(levels))
    return x


def ddim_eta(
    denoise_fn: DenoiseFn,
    z: Tensor,
    grid: Sequence[float] | np.ndarray,
    normal: NormalFn,
    eta: float,
    clamp: bool = True,
    progress: Progress | None = None,
) -> Tensor:
    """DDIM with noise put back after each step (Song et al. 2021, Eq. 16): eta = 0 is `ddim`, eta = 1 is DDPM's sampling.

    In EDM's variables the variance put back on the way from sigma to target is eta^2 target^2 (sigma^2 - target^2) / sigma^2,
    and the deterministic part of the step goes down to what is left of target^2. n evaluations for n points.
    """
    levels = _levels(grid)
    x = z
    for i, (sigma, target) in enumerate(pairwise(levels)):
        back = eta * target * math.sqrt(sigma**2 - target**2) / sigma
        denoised = _denoised(denoise_fn, x, sigma, clamp)
        x = denoised + math.sqrt(target**2 - back**2) / sigma * (x - denoised)
        if back:
            x = x + back * normal()
        if progress:
            progress(i + 1, len(levels))
    return _to_zero(denoise_fn, x, levels, clamp, progress)


def ddpm_grid(points: int, steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 0.02) -> np.ndarray:
    """The noise levels of DDPM's linear schedule at `points` evenly spread timesteps, falling, in EDM's variables.

    sigma_t = sqrt((1 - abar_t) / abar_t) with abar_t the product of 1 - beta (Ho et al. 2020); the timesteps run from
    steps - 1 down to 0, both included, rounded to whole ones.
    """
    if not 2 <= points <= steps:
        raise ValueError(f"a grid over {steps} timesteps has 2 to {steps} points, not {points}")
    abar = np.cumprod(1 - np.linspace(beta_min, beta_max, steps))
    at = np.round(np.linspace(steps - 1, 0, points)).astype(int)
    grid: np.ndarray = np.sqrt((1 - abar[at]) / abar[at])
    return grid


def walk(
    denoise_fn: DenoiseFn, z: Tensor, grid: Sequence[float] | np.ndarray, solver: Solver = "heun", clamp: bool = True
) -> Tensor:
    """The state at the lowest level of the grid, still noisy: `heun` or `ddim` stopped before the last step to 0.

    2 (n - 1) evaluations with Heun, n - 1 with DDIM.
    """
    x = z
    for sigma, target in pairwise(_levels(grid)):
        x = _step(denoise_fn, x, sigma, target, solver, clamp)
    return x


def invert(
    denoise_fn: DenoiseFn,
    image: Tensor,
    grid: Sequence[float] | np.ndarray,
    solver: Solver = "heun",
    clamp: bool = True,
    progress: Progress | None = None,
) -> Tensor:
    """The latent z at sigma = grid[0] of an image, by walking the grid upwards: the encoder that makes data-latent pairs.

    The image is taken as the state at the lowest level, without noise. 2 (n - 1) evaluations with Heun, n - 1 with DDIM:
    the official pair writer makes one more at the top level, whose result it does not use; there is none here.
    """
    levels = _levels(grid)[::-1]
    x = image
    for i, (sigma, target) in enumerate(pairwise(levels)):
        x = _step(denoise_fn, x, sigma, target, solver, clamp)
        if progress:
            progress(i + 1, len(levels) - 1)
    return x


def evaluations(points: int, solver: Solver = "heun", inversion: bool = False) -> int:
    """How often a solver calls the network on an image, for plans and estimates; what is reported is counted instead."""
    steps = (points - 1) * (2 if solver == "heun" else 1)
    return steps if inversion else steps + 1


def _sample(
    denoise_fn: DenoiseFn,
    z: Tensor,
    grid: Sequence[float] | np.ndarray,
    solver: Solver,
    clamp: bool,
    progress: Progress | None,
) -> Tensor:
    levels = _levels(grid)
    x = z
    for i, (sigma, target) in enumerate(pairwise(levels)):
        x = _step(denoise_fn, x, sigma, target, solver, clamp)
        if progress:
            progress(i + 1, len(levels))
    return _to_zero(denoise_fn, x, levels, clamp, progress)


def _to_zero(denoise_fn: DenoiseFn, x: Tensor, levels: Sequence[float], clamp: bool, progress: Progress | None) -> Tensor:
    """The last step: Euler's from sigma to 0 is x - sigma (x - D) / sigma = D."""
    x = _denoised(denoise_fn, x, levels[-1], clamp)
    if progress:
        progress(len(levels), len(levels))
    return x


def _step(denoise_fn: DenoiseFn, x: Tensor, sigma: float, target: float, solver: Solver, clamp: bool) -> Tensor:
    """One step from `sigma` to `target` (up or down, target > 0)."""
    slope = (x - _denoised(denoise_fn, x, sigma, clamp)) / sigma
    euler = x + (target - sigma) * slope
    if solver == "ddim":
        return euler
    # Trapezoidal correction with the slope at the end of the Euler step.
    slope_end = (euler - _denoised(denoise_fn, euler, target, clamp)) / target
    return x + (target - sigma) / 2 * (slope + slope_end)


def _denoised(denoise_fn: DenoiseFn, x: Tensor, sigma: float, clamp: bool) -> Tensor:
    denoised = denoise_fn(x, x.new_full((len(x),), sigma))
    return denoised.clamp(-1, 1) if clamp else denoised


def _levels(grid: Sequence[float] | np.ndarray) -> list[float]:
    levels = [float(sigma) for sigma in grid]
    if len(levels) < 2 or any(b >= a for a, b in pairwise(levels)) or levels[-1] <= 0:
        raise ValueError("a noise grid needs at least 2 levels, falling and above 0")
    return levels
