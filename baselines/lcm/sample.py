"""The loader of latent consistency models."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from baselines.latent.train import WEIGHTS, load_coder
from baselines.lcm import functions as lcm
from baselines.lcm.recipes import LatentConsistencySampler
from baselines.lcm.train import told
from pagoda_bench.diffusion.edm import SIGMA_DATA
from pagoda_bench.nets.device import compute_device
from pagoda_bench.nets.unet import UNet
from pagoda_bench.nets.weights import load_file_whole
from pagoda_bench.sampling.network import Draw, NetworkSampler


def load(config: LatentConsistencySampler, ctx: Any) -> NetworkSampler:
    """The first noise is that of every method that starts from this shape, index by index."""
    coder, model = load_coder(config.through, ctx), config.of
    net = UNet(model.net)
    load_file_whole(net, ctx.input(model) / WEIGHTS)
    net = net.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    of = lcm.process(model.objective.beta_min, model.objective.beta_max, compute_device())
    side, times = model.teacher.net.resolution, lcm.times_of(config.steps, model.objective.points)

    def images(batch: Draw) -> Tensor:
        asked = told(net, torch.full((len(batch),), config.w, device=batch.labels.device))

        def function(x: Tensor, t: Tensor) -> Tensor:
            return lcm.consistency(asked, x, t, batch.labels, of)

        return coder.image_of(lcm.multistep(function, times, lambda: batch.normal(3, side, side), of) * SIGMA_DATA)

    return NetworkSampler(images, [net], resolution=config.resolution, classes=model.teacher.net.classes, others=[coder])
