"""Samplers of released weights, and ADM's diffusion model in EDM's variables."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagoda_bench.diffusion import edm, solvers
from pagoda_bench.diffusion.consistency import consistency, trajectory
from pagoda_bench.nets.features import load_half
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda.generate import NoiseSampler
from pagoda_bench.recipes.formats import Role
from pagoda_bench.recipes.imported import Imported, ImportedHeun, ImportedOneStep, ReleasedOneStep, ReleasedTeacher

ADM_STEPS = 1000


def one_step(config: ImportedOneStep, ctx: Any) -> NoiseSampler:
    """One evaluation at sigma 80. PaGoDA's image is the raw output of the network on scaled noise; consistency models and CTM
    have boundary factors around it. Their samplers clamp to [-1, 1], which rounding to 8 bits does here."""
    net = load(config.of, ctx)
    return NoiseSampler(net, partial(_CALLS[config.of.role], net))


def _between(function: Callable[..., Tensor], net: UNet, z: Tensor, labels: Tensor) -> Tensor:
    return function(net, z, torch.full((len(z),), edm.SIGMA_MAX, dtype=torch.float64, device=z.device), labels)


_CALLS: dict[Role, Callable[[UNet, Tensor, Tensor], Tensor]] = {
    "generator": edm.one_step,
    "consistency": partial(_between, consistency),
    "trajectory": partial(_between, trajectory),
}
"""`call(net, z, labels)` of what takes one step."""


def heun(config: ImportedHeun, ctx: Any) -> NoiseSampler:
    """EDM's deterministic sampler, from sigma 80 down to 0.002, denoised images clamped to [-1, 1]."""
    net = load(config.of, ctx)
    grid = edm.karras_grid(config.points)
    denoise = denoiser(config.of, net)

    def draw(z: Tensor, labels: Tensor) -> Tensor:
        return solvers.heun(lambda x, sigma: denoise(x, sigma, labels), z, grid)

    return NoiseSampler(net, draw)


def teacher(recipe: ReleasedTeacher, ctx: Any) -> None:
    """The runner of `ReleasedTeacher`: the same weights under the name that stages read a teacher by. What their training took
    is not known, and nothing is recorded of it."""
    _copied(recipe, ctx)


def generator(recipe: ReleasedOneStep, ctx: Any) -> None:
    """The runner of `ReleasedOneStep`, likewise."""
    _copied(recipe, ctx)


def _copied(recipe: ReleasedTeacher | ReleasedOneStep, ctx: Any) -> None:
    shutil.copyfile(ctx.input(recipe.of) / "model.safetensors", ctx.out / "model.safetensors")
    ctx.record(parameters=ctx.provenance(recipe.of).get("parameters"), source=f"{recipe.of.kind}/{recipe.of.key}")


def load(recipe: Imported, ctx: Any) -> UNet:
    """The network of an imported artifact, whole or not at all, in evaluation mode."""
    with torch.device("meta"):
        net = UNet(recipe.net)
    net.load_state_dict(load_half(ctx.input(recipe) / "model.safetensors"), assign=True)
    return net.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def denoiser(recipe: Imported, net: UNet) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """`denoise(x, sigma, labels)` of a released diffusion model."""
    return partial(adm_denoise, net, adm_levels()) if recipe.role == "adm" else partial(edm.denoise, net)


def adm_levels(steps: int = ADM_STEPS) -> NDArray[np.float64]:
    """sigma of ADM's time steps 0 ... steps - 1 under the cosine schedule (Nichol and Dhariwal 2021, Eq. 17, with beta at
    most 0.999), in EDM's variables: the standard deviation of the noise on an image that is not scaled."""
    t = np.arange(steps + 1) / steps
    signal = np.cos((t + 0.008) / 1.008 * np.pi / 2) ** 2
    beta = np.minimum(1 - signal[1:] / signal[:-1], 0.999)
    alpha: NDArray[np.float64] = np.cumprod(1 - beta)
    return np.sqrt((1 - alpha) / alpha)


def adm_denoise(net: UNet, levels: NDArray[np.float64], x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
    """D(x; sigma) = x - sigma eps(x / sqrt(1 + sigma^2), t), t the time step whose level is nearest to sigma (Karras et al.
    2022, Table 1, "iDDPM + DDIM"). `sigma` (N,)."""
    nearest = np.abs(levels[None] - sigma.double().cpu().numpy()[:, None]).argmin(1)
    # The network makes its time of sigma, t = 250 ln(sigma): the sigma that makes it the wanted step, in double precision.
    time = torch.from_numpy(np.exp(nearest / 250.0)).to(x.device)
    level = sigma.to(x.dtype).view(-1, 1, 1, 1)
    eps: Tensor = net(x / (1 + level.square()).sqrt(), time, labels)
    return x - level * eps
