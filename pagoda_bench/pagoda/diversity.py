"""How different samples of one class are beside real images of it, for the alarm of a training."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pagoda_bench.data import Dataset
from pagoda_bench.nets.features import to_network
from pagoda_bench.pagoda.looks import Look
from pagoda_bench.sampling.generators import ByClass
from pagoda_bench.training.alarm import alike
from pagoda_bench.training.evaluation import Draw

CLASSES, EACH = 8, 8  # images of so many classes, so many of each

Numbers = NDArray[np.int64]


def chosen(data: Dataset) -> tuple[Numbers, Numbers]:
    """(indices, labels) of training images: up to `EACH` of each of the first `CLASSES` classes that have two. Empty where none
    has."""
    classes, size = len(data.classes), data.size("train")
    if size is None:
        numbers = np.arange(min(CLASSES, classes) * EACH, dtype=np.int64)
        labels = numbers % min(CLASSES, classes)
        return ByClass(data, "train").indices(labels, numbers // min(CLASSES, classes), "near"), labels
    every = data.labels(np.arange(size, dtype=np.int64), "train")
    parts: list[Numbers] = []
    for label in range(classes):
        own = np.flatnonzero(every == label)[:EACH]
        if len(own) > 1 and len(parts) < CLASSES:
            parts.append(own)
    indices = np.concatenate(parts) if parts else np.empty(0, np.int64)
    return indices, every[indices]


class Diversity:
    """Called, it gives `alarm.alike` of samples and real images, in the means of the maps that the discriminator looks at."""

    def __init__(self, draw: Draw, look: Look, data: Dataset, net: nn.Module, resolution: int) -> None:
        self.draw, self.look, self.net = draw, look, net
        self.indices, self.labels = chosen(data)
        self.data, self.resolution = data, resolution

    def __call__(self) -> float:
        samples = self.draw(np.arange(len(self.labels), dtype=np.int64), self.labels)
        real = self.data.images(self.indices, self.resolution, "train")
        return alike(self._seen(samples), self._seen(real), self.labels)

    @torch.no_grad()
    def _seen(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        maps = self.look.maps(to_network(images).to(next(self.net.parameters()).device), None)
        return torch.cat([m.float().mean((2, 3)) for m in maps], 1).cpu().numpy()
