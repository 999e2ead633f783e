"""The real images of a training step, for the methods that learn from images alone, and what is random in it.

Several processes share a batch. Random numbers are drawn for the whole of it on each, from the CPU's generator, and `mine`
takes this process's part: so they depend neither on the number of processes nor on the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pagoda_bench.data import Dataset
from pagoda_bench.diffusion.edm import lognormal_sigma, normal_from_uniform, stratified
from pagoda_bench.nets.features import to_network
from pagoda_bench.training import parallel
from pagoda_bench.training.loop import batch_indices


def images_of_step(data: Dataset, resolutions: Sequence[int], batch: int, index: int, seed: int) -> tuple[list[Tensor], Tensor]:
    """This process's images of step `index` at each of the resolutions, (n, 3, R, R) in [-1, 1], and their labels (n,) int64:
    n is `batch`, or its share where several processes have part in it. On the CPU.

    Photographs are mirrored at random, the same image at every resolution alike; the embedded data need no such help.
    """
    (part,) = parallel.parts(batch)
    numbers = batch_indices(data.size("train"), batch, index, seed)[part]
    images = [to_network(data.images(numbers, resolution, "train")) for resolution in resolutions]
    if data.size("train") is not None:
        mirror = (torch.rand(batch) < 0.5)[part, None, None, None]
        images = [torch.where(mirror, image.flip(3), image) for image in images]
    return images, torch.from_numpy(data.labels(numbers, "train"))


def mine(*drawn: Tensor) -> list[Tensor]:
    """This process's part of what was drawn for a whole batch."""
    (part,) = parallel.parts(len(drawn[0]))
    return [value[part] for value in drawn]


def stratified_sigma(batch: int, p_mean: float, p_std: float, *, shuffled: bool = False) -> Tensor:
    """EDM's training noise levels, ln sigma ~ N(p_mean, p_std^2), float32 (batch,), stratified."""
    return lognormal_sigma(normal_from_uniform(stratified(batch, shuffled=shuffled)), p_mean, p_std).float()
