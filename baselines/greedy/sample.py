"""Sampling either phase: v-prediction in EDM's variables, so that all its samplers serve, with guidance as an option."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from baselines.greedy import process
from baselines.greedy.recipes import Greedy
from baselines.greedy.train import WEIGHTS, Condition, network
from pagoda_bench.data import open_dataset
from pagoda_bench.sampling import diffusion
from pagoda_bench.sampling.generators import ByClass
from pagoda_bench.sampling.network import Draw, NetworkSampler


def load(config: Greedy, ctx: Any) -> NetworkSampler:
    """The loader of `Greedy`."""
    model = config.of
    net = network(model.core, model.outer, ctx.input(model) / WEIGHTS)
    data = open_dataset(model.data, ctx.data_path)
    condition, size, classes = Condition(model.core, data), model.outer.resolution, len(data.classes)
    deviation = model.process.deviation
    by_class = ByClass(data, "val") if model.core.text else None

    def given(batch: Draw) -> Tensor:
        if by_class is None:
            return batch.labels
        ranks: np.ndarray = (batch.indices // classes).numpy()
        return condition.of(by_class.indices(batch.labels.cpu().numpy(), ranks, "far"), "val").to(batch.labels.device)

    def images(batch: Draw) -> Tensor:
        wanted = given(batch)

        def denoise(x: Tensor, sigma: Tensor) -> Tensor:
            if not config.guidance:
                return process.denoise(net, x, sigma, wanted, deviation)
            null = condition.null(len(x)).to(wanted)
            return process.guided(net, x, sigma, wanted, null, config.guidance, deviation)

        return diffusion.draw(config.sampler, denoise, lambda: batch.normal(3, size, size))

    return NetworkSampler(images, [net], resolution=size, classes=classes)
