"""The loader of consistency models: one evaluation, or a few with fresh noise between them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from baselines.consistency.functions import multistep
from baselines.consistency.recipes import ConsistencySampler
from pagoda_bench.diffusion.consistency import consistency
from pagoda_bench.diffusion.edm import SIGMA_MAX
from pagoda_bench.nets.unet import UNet
from pagoda_bench.nets.weights import load_file_whole
from pagoda_bench.sampling.network import Draw, NetworkSampler


def load(config: ConsistencySampler, ctx: Any) -> NetworkSampler:
    """The first noise is PaGoDA's, index by index."""
    net = UNet(config.of.unet)
    load_file_whole(net, ctx.input(config.of) / "model.safetensors")
    net = net.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    shape = (3, config.of.unet.resolution, config.of.unet.resolution)

    def draw(batch: Draw) -> Tensor:
        def function(x: Tensor, sigma: Tensor) -> Tensor:
            return consistency(net, x, sigma, batch.labels)

        return multistep(function, batch.normal(*shape) * SIGMA_MAX, (SIGMA_MAX, *config.levels), lambda: batch.normal(*shape))

    return NetworkSampler(draw, [net], resolution=config.resolution, classes=config.of.unet.classes)
