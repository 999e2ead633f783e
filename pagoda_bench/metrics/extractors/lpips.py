"""LPIPS (Zhang et al. 2018, arXiv 1801.03924) with VGG16: a distance of two images that follows people's judgement.

Five maps of torchvision's VGG16, each place brought to length 1; squared differences, weighted by channel with what was fitted
to the judgements (version 0.1), averaged over places and added up. In the images' own size: nothing is resized.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.extractors.base import Extractor, Precision, frozen, normalised, optional
from pagoda_bench.metrics.extractors.weights import ORIGINALS, Found, find, load_into, state_dict

# On images in [-1, 1] it takes off (-0.030, -0.088, -0.188) and divides by (0.458, 0.448, 0.450): the same on [0, 1].
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ENDS = (4, 9, 16, 23, 30)  # of the layers that lead to the five maps, each behind its ReLU
CHANNELS = (64, 128, 256, 512, 512)
SMALLEST = 32  # px, below which four poolings leave too little
TINY = 1e-10


def map_distance(a: Tensor, b: Tensor, weights: Tensor | None = None) -> Tensor:
    """(N,) mean over places of the squared difference of maps (N, C, h, w), brought to length 1 over the channels.

    `weights` (C,) of the channels; without them all are 1.
    """
    unlike = (_unit(a) - _unit(b)).square()
    if weights is not None:
        unlike = unlike * weights[:, None, None]
    return unlike.sum(1).mean((1, 2))


class LPIPS(Extractor):
    """Gives no features, only `distance`. `found` are the weights of the channels, `vgg` is torchvision's VGG16."""

    original = "lpips-vgg16"

    def __init__(self, found: Found, vgg: Found, device: str | torch.device = "cpu", precision: Precision = "float32") -> None:
        both = hashlib.sha256(f"{found.sha256} {vgg.sha256}".encode()).hexdigest()
        super().__init__("lpips v0.1 vgg16", both, "none", {}, device, precision)
        network: Any = optional("torchvision.models").vgg16(weights=None, init_weights=False)
        load_into(network, state_dict(vgg), vgg, "torchvision's VGG16")
        layers: Any = frozen(network.features[: ENDS[-1]], device)
        self.parts = [layers[start:end] for start, end in zip((0, *ENDS), ENDS, strict=False)]
        self.weights_of_channels = [weight.to(device) for weight in _channel_weights(found)]

    @classmethod
    def load(cls, weights: Path | None = None, device: str = "cpu", precision: Precision = "float32", **options: Any) -> LPIPS:
        """`weights`: the file of the channels' weights, or a folder that holds it and VGG16's."""
        own, vgg = ORIGINALS[cls.original], ORIGINALS["vgg16"]
        if weights is not None and Path(weights).is_dir():
            return cls(find(own, Path(weights) / own.file), find(vgg, Path(weights) / vgg.file), device, precision)
        return cls(find(own, weights), find(vgg), device, precision)

    def extract(self, images: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        return {}

    def unlikeness(self, a: Tensor, b: Tensor) -> Tensor:
        if min(a.shape[-2:]) < SMALLEST:
            raise UserError(
                f"LPIPS needs images of {SMALLEST} px or more, not {a.shape[-1]} x {a.shape[-2]}: enlarge them first"
            )
        x, y = (normalised(images.float(), MEAN, STD) for images in (a, b))
        total = torch.zeros(len(a), device=x.device)
        for part, weights in zip(self.parts, self.weights_of_channels, strict=True):
            x, y = part(x), part(y)
            total += map_distance(x, y, weights)
        return total


def _channel_weights(found: Found) -> list[Tensor]:
    state = state_dict(found)
    weights = [state.get(f"lin{i}.model.1.weight") for i in range(len(CHANNELS))]
    for weight, channels in zip(weights, CHANNELS, strict=True):
        if weight is None or weight.numel() != channels:
            raise UserError(f"{found.path} has no LPIPS weights of VGG16's channels: give {ORIGINALS['lpips-vgg16'].file}")
    return [weight.flatten().float() for weight in weights if weight is not None]


def _unit(x: Tensor) -> Tensor:
    return x / (x.square().sum(1, keepdim=True).sqrt() + TINY)
