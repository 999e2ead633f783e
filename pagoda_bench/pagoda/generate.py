"""Loaders of the two kinds of generators: one evaluation (Stages 2 and 3), and EDM's many."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagoda_bench.artifacts.digests import sha256
from pagoda_bench.diffusion import edm, solvers
from pagoda_bench.errors import UserError
from pagoda_bench.nets.device import compute_device
from pagoda_bench.nets.features import from_network
from pagoda_bench.nets.unet import NO_LABEL, UNet
from pagoda_bench.nets.weights import load_file_whole
from pagoda_bench.nets.winograd import winograd
from pagoda_bench.recipes.stages import EDM as EDMRecipe
from pagoda_bench.recipes.stages import Distill, Grow, Heun, OneStep
from pagoda_bench.sampling.counting import count_evaluations
from pagoda_bench.sampling.noise import noise
from pagoda_bench.training.averages import BEST

SEED = 0
"""Of the sampling noise: every system at every resolution of the same base sees the same latents, index by index."""


class NoiseSampler:
    """A network on the noise of the sample's index. `draw(z, labels)` gives the images, (N, 3, R, R)."""

    def __init__(self, net: UNet, draw: Callable[[Tensor, Tensor], Tensor]) -> None:
        self.net, self.draw = winograd(net), draw
        self.resolution = net.config.output_resolution
        self.classes = net.config.classes
        self.parameters = sum(p.numel() for p in net.parameters())

    def sample(self, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> tuple[NDArray[np.uint8], int]:
        """Images uint8 (N, R, R, 3), and the network evaluations each of them took, counted."""
        size = self.net.config.resolution
        at = next(self.net.parameters()).device
        z = (torch.from_numpy(noise(indices, (3, size, size), SEED)) * edm.SIGMA_MAX).to(at)
        with torch.inference_mode(), count_evaluations(self.net) as counter:
            images = from_network(self.draw(z, torch.from_numpy(np.asarray(labels, np.int64)).to(at)).cpu())
        return images, counter.per_image(len(indices))


def one_step(config: OneStep, ctx: Any) -> NoiseSampler:
    net = load(config.of, ctx, config.ema) if config.best is None else load_best(config.of, ctx, config.best)
    net = net.to(compute_device())

    def draw(z: Tensor, labels: Tensor) -> Tensor:
        w = z.new_full((len(z),), config.guidance) if config.guidance else None
        return edm.one_step(partial(net, w=w), z, labels)

    return NoiseSampler(net, draw)


def heun(config: Heun, ctx: Any) -> NoiseSampler:
    net = load(config.of, ctx).to(compute_device())
    grid = edm.karras_grid(config.points)

    def draw(z: Tensor, labels: Tensor) -> Tensor:
        return solvers.heun(denoiser(net, labels, config.guidance), z, grid)

    return NoiseSampler(net, draw)


def denoiser(net: UNet, labels: Tensor, w: Tensor | float = 0.0) -> solvers.DenoiseFn:
    """D(x; sigma) for images of these labels; guided by `w`, one value or one an image, unless that is the number 0."""
    if isinstance(w, float) and not w:
        return lambda x, sigma: edm.denoise(net, x, sigma, labels)
    return lambda x, sigma: edm.denoise_guided(net, x, sigma, labels, NO_LABEL, w)


def load(recipe: EDMRecipe | Distill | Grow, ctx: Any, ema: float | None = None) -> UNet:
    """The averaged network of an artifact, whole or not at all, in evaluation mode: the average of `train.ema`, or that of
    another decay that the recipe keeps. `UserError` where there is none of that decay."""
    net, folder = UNet(recipe.net), ctx.input(recipe)
    path = folder / ("model.safetensors" if ema in (None, recipe.train.ema) else f"model-{ema}.safetensors")
    if not path.is_file():
        kept = ", ".join(map(str, (recipe.train.ema, *recipe.train.emas)))
        raise UserError(f"{recipe.kind}/{recipe.key} keeps the averages {kept}, not {ema}: choose one of them")
    return _ready(net, path)


def load_best(recipe: EDMRecipe | Distill | Grow, ctx: Any, digest: str) -> UNet:
    """The averaged network at the best milestone of a training that had such. Milestones are not part of a recipe, so `digest`,
    the file's SHA-256, says which weights are meant; `UserError` when they are not these."""
    path = ctx.input(recipe) / BEST
    if not path.is_file() or sha256(path) != digest:
        what = "keeps no best weights (train.evaluate was 0)" if not path.is_file() else "keeps other best weights"
        raise UserError(
            f"{recipe.kind}/{recipe.key} {what}, not those of SHA-256 {digest[:12]}: take best.sha256 of its provenance.json"
        )
    return _ready(UNet(recipe.net), path)


def _ready(net: UNet, path: Path) -> UNet:
    load_file_whole(net, path)
    return net.to(memory_format=torch.channels_last).eval().requires_grad_(False)
