"""Sampling a diffusion model: from a `SamplerConfig` to a function that draws, for any denoiser in EDM's variables."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pagoda_bench.diffusion import edm, solvers
from pagoda_bench.errors import UserError
from pagoda_bench.nets.unet import UNet
from pagoda_bench.nets.weights import load_file_whole
from pagoda_bench.nets.winograd import winograd
from pagoda_bench.recipes.samplers import Sampled, SamplerConfig
from pagoda_bench.sampling.network import Draw, NetworkSampler


def grid(config: SamplerConfig) -> np.ndarray:
    """The noise levels of a sampler, falling, float64: `points` of them. `UserError` where DDPM has fewer within the range."""
    if config.solver != "ddim":
        return edm.karras_grid(config.points, config.sigma_min, config.sigma_max, config.rho)
    # DDPM's timesteps reach sigma = 157: as many of them as lie within the range that the network was trained for.
    sigmas = solvers.ddpm_grid(1000)
    inside = sigmas[(sigmas <= config.sigma_max) & (sigmas >= config.sigma_min)]
    if config.points > len(inside):
        raise UserError(
            f"sampler: {len(inside)} of DDPM's timesteps lie between sigma {config.sigma_min:g} and {config.sigma_max:g}, "
            f"fewer than points={config.points}: lower points, or widen the range"
        )
    at = np.round(np.linspace(0, len(inside) - 1, config.points)).astype(int)
    chosen: np.ndarray = inside[at]
    return chosen


def draw(
    config: SamplerConfig,
    denoise: Callable[[Tensor, Tensor], Tensor],
    normal: Callable[[], Tensor],
    start: Callable[[], Tensor] | None = None,
) -> Tensor:
    """One batch of images in [-1, 1] (with `clamp`). `denoise(x, sigma)` as in `solvers`; `normal()` gives fresh standard
    normal noise of the image's shape, `start()` (default: the same) the first of it."""
    levels = grid(config)
    z = (start or normal)() * levels[0]
    if config.solver == "ddim":
        return solvers.ddim_eta(denoise, z, levels, normal, config.eta, config.clamp)
    order: solvers.Solver = "heun" if config.solver == "heun" else "ddim"
    churn = solvers.Churn(config.churn, config.churn_min, config.churn_max, config.churn_noise)
    return solvers.stochastic(denoise, z, levels, normal, churn, order, config.clamp)


def sampled(config: Sampled, ctx: Any) -> NetworkSampler:
    """The loader of `Sampled`: an EDM network of the store."""
    grid(config.sampler)  # refuses what cannot be before anything is drawn
    net = UNet(config.of.net)
    load_file_whole(net, ctx.input(config.of) / "model.safetensors")
    net = winograd(net.to(memory_format=torch.channels_last).eval().requires_grad_(False))
    size = config.of.net.resolution

    def images(batch: Draw) -> Tensor:
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return edm.denoise(net, x, sigma, batch.labels)

        return draw(config.sampler, denoise, lambda: batch.normal(3, size, size))

    return NetworkSampler(images, [net], resolution=net.config.output_resolution, classes=net.config.classes)
