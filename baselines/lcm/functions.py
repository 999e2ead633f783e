"""What latent consistency models are made of (Luo et al. 2023, arXiv 2310.04378). Pure functions.

Time runs over DDPM's whole steps t = 0 ... 999: x = alpha_t z + sigma_t n, with z the latents at unit variance, as published,
and alpha_t^2 + sigma_t^2 = 1. Times are int64 (N,), one an image; x is (N, C, H, W); w is float (N,), the guidance weight.

The teacher here is an EDM model of latents of deviation `SIGMA_DATA`. x / alpha_t is EDM's variable for unit variance, so
x / alpha_t * SIGMA_DATA at noise level sigma_t / alpha_t * SIGMA_DATA is what it knows; what it says is divided by SIGMA_DATA.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pagoda_bench.diffusion import edm

TIMES = 1000
BOUNDARY_DATA = 0.5  # "sigma_data" in the boundary factors: a constant of the method, not the deviation of these latents
BOUNDARY_SCALE = 10.0  # by which times are multiplied in them


class Process(NamedTuple):
    """alpha_t and sigma_t, float64 (TIMES,)."""

    alpha: Tensor
    sigma: Tensor

    def at(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Both at times (N,), in x's dtype, shaped to multiply x."""
        return self.alpha[t].to(x.dtype).view(-1, 1, 1, 1), self.sigma[t].to(x.dtype).view(-1, 1, 1, 1)


def process(beta_min: float, beta_max: float, device: torch.device | None = None) -> Process:
    """Latent diffusion's schedule (2112.10752): the roots of beta_t are evenly spaced; alpha_t^2 is the product of 1 - beta."""
    roots = torch.linspace(math.sqrt(beta_min), math.sqrt(beta_max), TIMES, dtype=torch.float64)
    abar = (1 - roots**2).cumprod(0)
    return Process(abar.sqrt().to(device), (1 - abar).sqrt().to(device))


def grid(points: int) -> Tensor:
    """The times between which the skipping step k = TIMES / points leads, rising: k - 1, 2k - 1 ... 999. int64 (points,)."""
    if points < 1 or TIMES % points:
        raise ValueError(f"the skipping step must be whole: {TIMES} times are no multiple of {points}")
    return torch.arange(1, points + 1) * (TIMES // points) - 1


def boundary(t: Tensor, sigma_data: float = BOUNDARY_DATA, scale: float = BOUNDARY_SCALE) -> tuple[Tensor, Tensor]:
    """c_skip = sd^2 / ((s t)^2 + sd^2), c_out = s t / sqrt((s t)^2 + sd^2), float64 (N,): 1 and 0 at t = 0."""
    scaled = t.double() * scale
    square = scaled**2 + sigma_data**2
    return sigma_data**2 / square, scaled / square.sqrt()


def denoised(net: edm.Network, x: Tensor, t: Tensor, labels: Tensor, of: Process) -> Tensor:
    """z as an EDM network sees it in x: `net(c_in x', sigma', labels)` in EDM's variables, the answer at unit variance."""
    alpha, sigma = of.at(t, x)
    scale = edm.SIGMA_DATA / alpha
    return edm.denoise(net, x * scale, (sigma * scale).flatten(), labels) / edm.SIGMA_DATA


def consistency(net: edm.Network, x: Tensor, t: Tensor, labels: Tensor, of: Process) -> Tensor:
    """f(x, w, c, t) = c_skip x + c_out z(x, w, c, t); w is the network's own business."""
    c_skip, c_out = (c.to(x.dtype).view(-1, 1, 1, 1) for c in boundary(t))
    return c_skip * x + c_out * denoised(net, x, t, labels, of)


def ddim_step(x: Tensor, z: Tensor, start: Tensor, end: Tensor, of: Process) -> Tensor:
    """DDIM's deterministic step from time `start` to `end`, given what is denoised at the start (Song et al. 2021, Eq. 12).

    It is linear in z: a step with the guided z is x + (1 + w) Psi(c) - w Psi(none), as the paper's Algorithm 1 has it.
    """
    alpha, sigma = of.at(start, x)
    to_alpha, to_sigma = of.at(end, x)
    return to_alpha * z + to_sigma * ((x - alpha * z) / sigma)


def huber(a: Tensor, b: Tensor, c: float) -> Tensor:
    """sqrt((a - b)^2 + c^2) - c value by value, averaged over an image, (N,)."""
    return (((a - b).square() + c * c).sqrt() - c).flatten(1).mean(1)


def times_of(steps: int, points: int) -> tuple[int, ...]:
    """The times of a sampler of `steps` evaluations, falling from 999: evenly spread over the places of the grid."""
    if not 1 <= steps <= points:
        raise ValueError(f"a grid of {points} times has 1 to {points} steps, not {steps}")
    falling = grid(points).flip(0)
    return tuple(int(falling[i * points // steps]) for i in range(steps))


def multistep(
    function: Callable[[Tensor, Tensor], Tensor], times: Sequence[int], normal: Callable[[], Tensor], of: Process
) -> Tensor:
    """Multistep consistency sampling (Algorithm 3): f on noise at the first time, then at each further one on what came out,
    noised again to that time. One evaluation a time; `normal()` gives fresh standard normal noise. The result is z at unit
    variance."""
    x = normal()
    z = x
    for number, time in enumerate(times):
        t = torch.full((len(x),), time, device=x.device)
        if number:
            alpha, sigma = of.at(t, z)
            x = alpha * z + sigma * normal()
        z = function(x, t)
    return z
