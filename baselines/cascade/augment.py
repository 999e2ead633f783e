"""Conditioning augmentation (Ho et al. 2021, arXiv 2106.15282, Section 3): what is done to the low-resolution image before a
super-resolution model sees it, so that the errors of the model below do not compound. Pure functions.

The paper corrupts it by the forward process of the model below; ours is EDM's, so a level s is a noise level sigma and the
corrupted image is x + s n, brought to unit variance by c_in(s). Images are float (N, C, H, W); levels float (N,).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pagoda_bench.diffusion.edm import RHO, SIGMA_MIN, preconditioning

Filter = Literal["nearest", "bilinear", "bicubic"]


def draw_levels(uniform: Tensor, highest: float, rho: float = RHO) -> Tensor:
    """Training levels from uniform draws in (0, 1): from `SIGMA_MIN`, which is as good as no noise, to `highest`, even in
    sigma^(1/rho). That is the paper's uniform draw among the steps of a sampler, with EDM's steps."""
    low, high = SIGMA_MIN ** (1 / rho), highest ** (1 / rho)
    return (low + uniform * (high - low)) ** rho


def corrupt(image: Tensor, level: Tensor, noise: Tensor) -> Tensor:
    """The image at noise level `level` of the forward process; `noise` is standard normal of its shape."""
    return image + level.to(image.dtype).view(-1, 1, 1, 1) * noise


def gaussian_kernel(sigma: Tensor, size: int) -> Tensor:
    """(N, size): sampled Gaussians of standard deviation `sigma` pixels that sum to one; `size` is odd."""
    at = torch.arange(size, dtype=sigma.dtype, device=sigma.device) - size // 2
    weights = torch.exp(-(at**2) / (2 * sigma[:, None] ** 2))
    return weights / weights.sum(1, keepdim=True)


def blur(image: Tensor, sigma: Tensor, size: int = 3) -> Tensor:
    """Each image blurred by a Gaussian of its own, separably, the border mirrored at its pixels. sigma (N,) above 0."""
    count, channels, height, width = image.shape
    kernel = gaussian_kernel(sigma.to(image.dtype), size).repeat_interleave(channels, 0)
    flat = F.pad(image, [size // 2] * 4, mode="reflect").reshape(1, count * channels, height + size - 1, width + size - 1)
    rows = F.conv2d(flat, kernel[:, None, :, None], groups=count * channels)
    return F.conv2d(rows, kernel[:, None, None, :], groups=count * channels).reshape(count, channels, height, width)


def draw_blur(count: int, share: float, low: float, high: float) -> tuple[Tensor, Tensor]:
    """Which of `count` images are blurred, a `share` of them by chance, and with which sigma ~ U(low, high) pixels."""
    return torch.rand(count) < share, low + (high - low) * torch.rand(count)


def blur_some(image: Tensor, chosen: Tensor, sigma: Tensor, size: int = 3) -> Tensor:
    """The `chosen` images blurred, each with its sigma; the others as they are."""
    return torch.where(chosen[:, None, None, None], blur(image, sigma, size), image)


def condition(image: Tensor, level: Tensor, resolution: int, filter: Filter) -> Tensor:
    """What the network sees: the corrupted image at unit variance, enlarged to (N, C, resolution, resolution)."""
    scaled = image * preconditioning(level).c_in.to(image.dtype).view(-1, 1, 1, 1)
    if filter == "nearest":
        return F.interpolate(scaled, size=resolution, mode="nearest")
    return F.interpolate(scaled, size=resolution, mode=filter, align_corners=False)
