"""The real images of a training step, for the methods that learn from images alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from pagoda_bench.data import Dataset
from pagoda_bench.diffusion.edm import lognormal_sigma, normal_from_uniform
from pagoda_bench.nets.features import to_network
from pagoda_bench.training.loop import batch_indices


def images_of_step(data: Dataset, resolutions: Sequence[int], batch: int, index: int, seed: int) -> tuple[list[Tensor], Tensor]:
    """The images of step `index` at each of the resolutions, (batch, 3, R, R) in [-1, 1], and their labels (batch,) int64.

    Photographs are mirrored at random, the same image at every resolution alike; the embedded data need no such help.
    """
    numbers = batch_indices(data.size("train"), batch, index, seed)
    images = [to_network(data.images(numbers, resolution, "train")) for resolution in resolutions]
    if data.size("train") is not None:
        mirror = (torch.rand(batch) < 0.5)[:, None, None, None]
        images = [torch.where(mirror, image.flip(3), image) for image in images]
    return images, torch.from_numpy(data.labels(numbers, "train"))


def stratified(batch: int) -> Tensor:
    """One uniform draw from every 1/batch of (0, 1), float64 (batch,): less variance from batch to batch."""
    return ((torch.arange(batch) + torch.rand(batch, dtype=torch.float64)) / batch).clamp(1e-6, 1 - 1e-6)


def stratified_sigma(batch: int, p_mean: float, p_std: float) -> Tensor:
    """EDM's training noise levels, ln sigma ~ N(p_mean, p_std^2), float32 (batch,), stratified."""
    return lognormal_sigma(normal_from_uniform(stratified(batch)), p_mean, p_std).float()
