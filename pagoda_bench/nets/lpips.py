"""LPIPS with VGG-16 (Zhang et al. 2018, version 0.1), written from the paper and held against the `lpips` package.

After five blocks of VGG-16 the features of two images are normalised over channels, their squared difference is weighed by
a learnt non-negative factor a channel, summed over channels and averaged over places; the five values are added. The
factors come from the file `vgg.pth` of the lpips package (version 0.1, BSD licence), recognised by its SHA-256.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from pagoda_bench.artifacts.digests import sha256
from pagoda_bench.errors import UserError
from pagoda_bench.nets.weights import stored

HEADS_SHA256 = "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"
HEADS = "PAGODA_BENCH_LPIPS"  # environment variable: the path of vgg.pth
CHANNELS = (64, 128, 256, 512, 512)
TAKEN = (3, 8, 15, 22, 29)  # layers of torchvision's VGG-16 features: the last ReLU of each block
MEAN = (-0.030, -0.088, -0.188)  # of images in [-1, 1]
STD = (0.458, 0.448, 0.450)
EPS = 1e-10


class LPIPS(nn.Module):
    """Two batches of images (N, 3, H, W) in [-1, 1], H and W at least 16, to (N,). Never trained, differentiable in both."""

    mean: Tensor
    std: Tensor

    def __init__(self, features: nn.Sequential, heads: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.features = features
        for i, channels in enumerate(CHANNELS):
            weight = heads[f"lin{i}.model.1.weight"]
            if weight.shape != (1, channels, 1, 1):
                raise UserError(f"LPIPS: lin{i} has the shape {tuple(weight.shape)}, not {(1, channels, 1, 1)}: give vgg.pth")
            self.register_buffer(f"head{i}", weight.clone())
        self.register_buffer("mean", torch.tensor(MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, 3, 1, 1), persistent=False)
        self.eval().requires_grad_(False)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        total = a.new_zeros(len(a))
        for i, (x, y) in enumerate(zip(self._maps(a), self._maps(b), strict=True)):
            difference = (_unit(x) - _unit(y)).square()
            total = total + (difference * self.get_buffer(f"head{i}")).sum(1).mean((1, 2))
        return total

    def _maps(self, x: Tensor) -> list[Tensor]:
        h, taken = (x - self.mean) / self.std, []
        for i, layer in enumerate(self.features):
            # Not in place: torchvision's layers would overwrite what was taken before them.
            h = torch.relu(h) if isinstance(layer, nn.ReLU) else layer(h)
            if i in TAKEN:
                taken.append(h)
        return taken


def vgg_features(*, pretrained: bool = True) -> nn.Sequential:
    """Torchvision's VGG-16 up to its last needed layer."""
    try:
        from torchvision.models import VGG16_Weights, vgg16
    except ImportError:
        raise UserError("LPIPS needs torchvision, which is not installed: pip install 'pagoda-bench[eval]'") from None
    net = vgg16(weights=VGG16_Weights.IMAGENET1K_V1 if pretrained else None)
    layers: nn.Sequential = net.features[: TAKEN[-1] + 1]
    return layers


def heads_path() -> Path:
    """Where the learnt factors lie: $PAGODA_BENCH_LPIPS, else the installed lpips package. `UserError` when nowhere."""
    if chosen := os.environ.get(HEADS):
        return Path(chosen)
    spec = importlib.util.find_spec("lpips")
    path = Path(spec.origin).parent / "weights" / "v0.1" / "vgg.pth" if spec and spec.origin else None
    if path is None or not path.is_file():
        raise UserError(f"LPIPS needs its learnt factors: pip install lpips, or set {HEADS} to the path of its v0.1/vgg.pth")
    return path


def load_heads(path: Path) -> dict[str, Tensor]:
    """The factors, after the file's SHA-256 was found to be that of version 0.1."""
    if not path.is_file():
        raise UserError(f"LPIPS: {path} is no file: set {HEADS} to the path of v0.1/vgg.pth of the lpips package")
    if (found := sha256(path)) != HEADS_SHA256:
        raise UserError(
            f"LPIPS: {path} is not vgg.pth of version 0.1 (SHA-256 {found[:12]}, not {HEADS_SHA256[:12]}): replace it"
        )
    state: dict[str, Tensor] = stored(path)
    return state


def load_lpips() -> LPIPS:
    """The published network: VGG-16 of torchvision with ImageNet weights, and the factors of version 0.1."""
    return LPIPS(vgg_features(), load_heads(heads_path()))


def _unit(x: Tensor) -> Tensor:
    # The tiny number keeps the root differentiable where no channel fires.
    return x / ((x.square().sum(1, keepdim=True) + 1e-20).sqrt() + EPS)
