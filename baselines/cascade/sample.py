"""Sampling a cascade: the base model, then every super-resolution stage on what came out below it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from baselines.cascade.augment import condition, corrupt
from baselines.cascade.net import SuperResolutionUNet
from baselines.cascade.recipes import Cascade
from pagoda_bench.diffusion import edm, solvers
from pagoda_bench.nets.unet import UNet
from pagoda_bench.nets.weights import load_file_whole
from pagoda_bench.sampling.network import Draw, NetworkSampler


def load(config: Cascade, ctx: Any) -> NetworkSampler:
    """All models are held at once. The base starts from PaGoDA's noise, index by index; evaluations are those of all."""
    nets: list[nn.Module] = [UNet(config.base.net), *(SuperResolutionUNet(stage.net) for stage in config.stages)]
    for net, recipe in zip(nets, (config.base, *config.stages), strict=True):
        load_file_whole(net, ctx.input(recipe) / "model.safetensors")
        net.to(memory_format=torch.channels_last).eval().requires_grad_(False)

    def draw(batch: Draw) -> Tensor:
        return cascade(nets, config, batch)

    return NetworkSampler(draw, nets, resolution=config.resolution, classes=config.base.net.classes)


def cascade(nets: list[nn.Module], config: Cascade, batch: Draw) -> Tensor:
    """(N, 3, R, R) in [-1, 1].

    A level s above 0 corrupts what a model hands up. Truncated: its sampling stops at noise level s, and its state is handed
    up as it is. Not truncated: it is sampled to the end, and noise of level s is added. (2106.15282, Sections 3.2 and 3.3)
    """
    grids = [edm.karras_grid(points) for points in config.points]
    size = config.base.net.resolution
    denoise: solvers.DenoiseFn = lambda x, sigma: edm.denoise(nets[0], x, sigma, batch.labels)  # noqa: E731
    for number, stage in enumerate(config.stages):
        level = config.levels[number]
        seen = handed_up(denoise, partial(batch.normal, 3, size, size), grids[number], level, config.truncated)
        at = seen.new_full((len(batch),), max(level, edm.SIGMA_MIN))
        size = stage.net.resolution
        denoise = denoiser(nets[number + 1], condition(seen, at, size, stage.filter), at, batch.labels)
    return solvers.heun(denoise, batch.normal(3, size, size) * edm.SIGMA_MAX, grids[-1])


def denoiser(net: nn.Module, low: Tensor, level: Tensor, labels: Tensor) -> solvers.DenoiseFn:
    """D(x; sigma) of a super-resolution stage for one batch of low-resolution images."""
    return lambda x, sigma: edm.denoise(lambda x, s, y: net(x, s, y, low, level), x, sigma, labels)


def handed_up(
    denoise: solvers.DenoiseFn, normal: Callable[[], Tensor], grid: np.ndarray, level: float, truncated: bool
) -> Tensor:
    """What the stage above gets to see of a model's sample, at noise level `level`."""
    z = normal() * edm.SIGMA_MAX
    if level and truncated:
        return solvers.walk(denoise, z, cut(grid, level))
    image = solvers.heun(denoise, z, grid)
    return corrupt(image, image.new_full((len(image),), level), normal()) if level else image


def cut(grid: np.ndarray, level: float) -> np.ndarray:
    """The grid down to `level`, which becomes its last noise level."""
    above: np.ndarray = grid[grid > level * (1 + 1e-9)]
    return np.append(above, level)
