"""The loader of the GAN: one evaluation of the generator."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from baselines.gan.net import StyleNet
from baselines.gan.recipes import GanSampler
from pagoda_bench.nets.device import compute_device
from pagoda_bench.nets.weights import load_file_whole
from pagoda_bench.sampling.network import Draw, NetworkSampler
from pagoda_bench.sampling.noise import noise

AVERAGED = 1024
"""Latents over which the mean w of a class is taken."""
SEED = 2**62
"""Of these latents: far from the streams of samples."""


def load(config: GanSampler, ctx: Any) -> NetworkSampler:
    """Latents belong to the sample's index. The centres of truncation are computed from fixed latents, not trained."""
    net = StyleNet(config.of.style)
    load_file_whole(net, ctx.input(config.of) / "model.safetensors")
    net = net.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    latent = config.of.style.latent
    centre = None
    if config.truncation < 1:
        device = compute_device()
        centre = net.to(device).centres(torch.from_numpy(noise(np.arange(AVERAGED), (latent,), SEED)).to(device))

    def draw(batch: Draw) -> Tensor:
        image: Tensor = net(batch.normal(latent), batch.labels, config.truncation, centre)
        return image

    return NetworkSampler(draw, [net], resolution=config.resolution, classes=config.of.style.classes)
