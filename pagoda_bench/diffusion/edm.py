"""The EDM formulation of a diffusion model (Karras et al. 2022, "Elucidating the Design Space of Diffusion-Based
Generative Models"): noise x = image + sigma * n with n ~ N(0, I), so data sit at sigma = 0 and noise at `SIGMA_MAX`.

Images are float NCHW in [-1, 1]; sigma is one value an image, shape (N,). The network is called as
`net(c_in * x, sigma, labels)`: it takes sigma itself and makes its own time variable of it, so there is no c_noise here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

SIGMA_MIN = 0.002
SIGMA_MAX = 80.0
RHO = 7.0
SIGMA_DATA = 0.5

Network = Callable[[Tensor, Tensor, Tensor], Tensor]


class Preconditioning(NamedTuple):
    """D(x; sigma) = c_skip x + c_out net(c_in x, sigma): three factors of sigma's shape and dtype."""

    c_skip: Tensor
    c_out: Tensor
    c_in: Tensor


def preconditioning(sigma: Tensor, sigma_data: float = SIGMA_DATA) -> Preconditioning:
    """The factors that give the network inputs and targets of unit variance at every noise level (Table 1, Eq. 7)."""
    variance = sigma**2 + sigma_data**2
    return Preconditioning(
        c_skip=sigma_data**2 / variance, c_out=sigma * sigma_data / variance.sqrt(), c_in=1 / variance.sqrt()
    )


def denoise(net: Network, x: Tensor, sigma: Tensor, labels: Tensor, sigma_data: float = SIGMA_DATA) -> Tensor:
    """The denoised image D(x; sigma), not clamped. `x` (N, C, H, W); `sigma` (N,) in x's dtype; `labels` (N,) int64."""
    c_skip, c_out, c_in = (c.to(x.dtype).view(-1, 1, 1, 1) for c in preconditioning(sigma, sigma_data))
    return c_skip * x + c_out * net(c_in * x, sigma, labels)


def guided(conditional: Tensor, unconditional: Tensor, w: Tensor | float) -> Tensor:
    """c + w (c - u), classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598, Eq. 6): w = 0 is none. `w` is one value
    for all (N, C, H, W), or (N,). Where s = 1 is none, s = 1 + w."""
    weight = w.to(conditional.dtype).view(-1, 1, 1, 1) if isinstance(w, Tensor) else w
    return conditional + weight * (conditional - unconditional)


def denoise_guided(net: Network, x: Tensor, sigma: Tensor, labels: Tensor, none: int, w: Tensor | float) -> Tensor:
    """The guided denoised image, where `none` is the label of an image that has none. Two evaluations an image, in one call."""
    both = torch.cat([labels, torch.full_like(labels, none)])
    conditional, unconditional = denoise(net, torch.cat([x, x]), torch.cat([sigma, sigma]), both).chunk(2)
    return guided(conditional, unconditional, w)


def one_step(net: Network, z: Tensor, labels: Tensor, sigma: float = SIGMA_MAX, sigma_data: float = SIGMA_DATA) -> Tensor:
    """G(z): the raw output of the network on scaled noise is the image, without output preconditioning and not clamped.

    `z` ~ N(0, sigma^2), (N, C, H, W). This is how PaGoDA's generators are called; a grown network returns a larger image.
    """
    c_in = 1 / float(np.hypot(sigma, sigma_data))
    return net(c_in * z, z.new_full((len(z),), sigma), labels)


def karras_grid(points: int, sigma_min: float = SIGMA_MIN, sigma_max: float = SIGMA_MAX, rho: float = RHO) -> np.ndarray:
    """The noise levels of a sampler, (points,) float64, from `sigma_max` down to `sigma_min`, both exact (Eq. 5).

    The final 0 is not among them. Needs at least two points.
    """
    if points < 2:
        raise ValueError(f"a noise grid needs at least 2 points, not {points}")
    ramp = np.linspace(0.0, 1.0, points)
    grid: np.ndarray = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    grid[0], grid[-1] = sigma_max, sigma_min
    return grid


def loss_weight(sigma: Tensor, sigma_data: float = SIGMA_DATA) -> Tensor:
    """lambda(sigma) = 1 / c_out^2: every noise level weighs the same at the start of training (Table 1)."""
    return (sigma**2 + sigma_data**2) / (sigma * sigma_data) ** 2


def lognormal_sigma(normal: Tensor, p_mean: float = -1.2, p_std: float = 1.2) -> Tensor:
    """Training noise levels, ln sigma ~ N(p_mean, p_std^2), from given standard normal draws of any shape."""
    return torch.exp(normal * p_std + p_mean)


def normal_from_uniform(uniform: Tensor) -> Tensor:
    """Standard normal draws from uniform ones in (0, 1), by the inverse of the distribution function.

    With stratified uniforms, (i + u_i) / N, the noise levels of one batch cover the distribution evenly.
    """
    return torch.special.ndtri(uniform)


def stratified(batch: int, *, shuffled: bool = False) -> Tensor:
    """One uniform draw from every 1/batch of (0, 1), float64 (batch,), from PyTorch's generator: less variance from batch to
    batch. Where the classes follow each other in a batch the strata have to be `shuffled`: a class would meet only some."""
    drawn = ((torch.arange(batch) + torch.rand(batch, dtype=torch.float64)) / batch).clamp(1e-6, 1 - 1e-6)
    return drawn[torch.randperm(batch)] if shuffled else drawn


def training_loss(
    net: Network, image: Tensor, labels: Tensor, noise: Tensor, sigma: Tensor, sigma_data: float = SIGMA_DATA
) -> Tensor:
    """Weighted squared error of the denoised image, one value an image, (N,): the mean over channels and pixels (Eq. 8).

    `noise` is standard normal of the image's shape; `sigma` (N,).
    """
    denoised = denoise(net, image + sigma.view(-1, 1, 1, 1) * noise, sigma, labels, sigma_data)
    error: Tensor = (denoised - image).square().flatten(1).mean(1)
    return loss_weight(sigma, sigma_data) * error
