"""Sampling: latents by any of EDM's samplers, then the decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from baselines.latent.recipes import Latent
from baselines.latent.train import WEIGHTS, load_coder
from pagoda_bench.diffusion import edm
from pagoda_bench.nets.unet import UNet
from pagoda_bench.nets.weights import load_file_whole
from pagoda_bench.sampling import diffusion
from pagoda_bench.sampling.network import Draw, NetworkSampler


def load(config: Latent, ctx: Any) -> NetworkSampler:
    """The loader of `Latent`."""
    coder = load_coder(config.through, ctx)
    net = UNet(config.of.unet)
    load_file_whole(net, ctx.input(config.of) / WEIGHTS)
    net = net.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    side = config.of.net.resolution

    def images(batch: Draw) -> Tensor:
        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            return edm.denoise(net, x, sigma, batch.labels)

        return coder.image_of(diffusion.draw(config.sampler, denoise, lambda: batch.normal(3, side, side)))

    return NetworkSampler(images, [net], resolution=config.resolution, classes=config.of.net.classes, others=[coder])
