"""The diffusion process of the method: cosine schedule in logSNR with a shift by resolution, and v-prediction.

Variance preserving: z = alpha x + sigma eps with alpha^2 = sigmoid(logsnr), sigma^2 = sigmoid(-logsnr). Pure functions;
logsnr and t are one value an image, (N,). x is an image divided by the `deviation` of the data, so that z has unit variance
at every level (Chen 2023, arXiv 2301.10972, on the scale of inputs); with 1 it is the image itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from pagoda_bench.diffusion import edm

Network = Callable[[Tensor, Tensor, Tensor], Tensor]  # (z, logsnr, condition) -> v


def logsnr_of(t: Tensor, resolution: int, shift: int | None, low: float, high: float) -> Tensor:
    """logSNR at time t in [0, 1] (0: image, 1: noise): -2 log tan(pi t / 2), scaled in t so that the ends are `high` and `low`,
    plus 2 log(shift / resolution) (Hoogeboom et al. 2023, "simple diffusion", section 3.1). Larger images average the noise
    away, so above `shift` px the same t carries more of it. The ends move with the shift."""
    first, last = math.atan(math.exp(-0.5 * high)), math.atan(math.exp(-0.5 * low))
    plain = -2 * torch.log(torch.tan(first + t * (last - first)))
    return plain + (2 * math.log(shift / resolution) if shift else 0.0)


def alpha_sigma(logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """The factors of image and noise, (N, 1, 1, 1)."""
    at = logsnr.view(-1, 1, 1, 1)
    return torch.sigmoid(at).sqrt(), torch.sigmoid(-at).sqrt()


def noised(image: Tensor, noise: Tensor, logsnr: Tensor) -> tuple[Tensor, Tensor]:
    """z and the target v = alpha eps - sigma x (Salimans and Ho 2022, appendix D)."""
    alpha, sigma = (c.to(image.dtype) for c in alpha_sigma(logsnr))
    return alpha * image + sigma * noise, alpha * noise - sigma * image


def image_from_v(z: Tensor, v: Tensor, logsnr: Tensor) -> Tensor:
    """x = alpha z - sigma v."""
    alpha, sigma = (c.to(z.dtype) for c in alpha_sigma(logsnr))
    return alpha * z - sigma * v


def training_loss(net: Network, image: Tensor, noise: Tensor, logsnr: Tensor, condition: Tensor, loss: str) -> Tensor:
    """Squared error of v, or of epsilon = sigma z + alpha v, which is alpha^2 times it; one value an image, (N,)."""
    z, v = noised(image, noise, logsnr)
    error: Tensor = (net(z, logsnr, condition) - v).square().flatten(1).mean(1)
    return error * torch.sigmoid(logsnr) if loss == "epsilon" else error


def denoise(net: Network, x: Tensor, sigma: Tensor, condition: Tensor, deviation: float = 1.0) -> Tensor:
    """The denoised image for x = image + sigma eps, in EDM's variables: x / deviation is z / alpha at
    logsnr = -2 log(sigma / deviation). So every sampler of `pagoda_bench.diffusion.solvers` serves this process, and the
    network stands in EDM's preconditioning with sigma_data = deviation, its sign aside."""
    logsnr = -2 * (sigma / deviation).log()
    alpha, _ = alpha_sigma(logsnr)
    z = alpha.to(x.dtype) * x / deviation
    return deviation * image_from_v(z, net(z, logsnr, condition), logsnr)


def guided(
    net: Network, x: Tensor, sigma: Tensor, condition: Tensor, null: Tensor, guidance: float, deviation: float = 1.0
) -> Tensor:
    """c + w (c - u) of the denoised images, both halves in one call (Ho and Salimans 2022, Eq. 6, for the image)."""
    both = denoise(net, torch.cat([x, x]), torch.cat([sigma, sigma]), torch.cat([condition, null]), deviation)
    with_it, without = both.chunk(2)
    return edm.guided(with_it, without, guidance)
