"""The class-conditional discriminator of StyleGAN-XL (Sauer et al. 2022), as the official PaGoDA code uses it: on each of
two frozen backbones a small discriminator at each of four scales, 27.5 million parameters in all, under the official names.

The shipped class table (EfficientNet features of the ImageNet classes) is not part of this project: pass it as `table`,
or it starts at random. As in the official code it trains, a copy in each of the eight discriminators.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pagoda_bench.nets.discriminator import Judge
from pagoda_bench.nets.projection import CHANNELS, KINDS, TIMM, Kind

CLASS_FEATURES = 320
MAP = 64  # channels in which what is seen and the class are compared
LADDER = (64, 128, 256, 512)


class SpectralConv2d(nn.Module):
    """A convolution whose weight is divided by an estimate of its largest singular value (Miyato et al. 2018).

    In training mode every call does one step of the power iteration from the stored vectors, so two calls in a row see
    different weights, as in the official code. The names are those of PyTorch's first implementation.
    """

    def __init__(self, before: int, after: int, size: int, *, stride: int = 1, padding: int = 0, bias: bool = True) -> None:
        super().__init__()
        self.stride, self.padding = stride, padding
        conv = nn.Conv2d(before, after, size, bias=bias)  # for its initialisation
        self.weight_orig = nn.Parameter(conv.weight.detach().clone())
        self.bias = nn.Parameter(conv.bias.detach().clone()) if conv.bias is not None else None
        self.weight_u: Tensor
        self.weight_v: Tensor
        self.register_buffer("weight_u", F.normalize(torch.randn(after), dim=0))
        self.register_buffer("weight_v", F.normalize(torch.randn(before * size**2), dim=0))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self._weight(), self.bias, self.stride, self.padding)

    def _weight(self) -> Tensor:
        matrix = self.weight_orig.flatten(1)
        if self.training:
            with torch.no_grad():
                self.weight_v.copy_(F.normalize(matrix.T @ self.weight_u, dim=0, eps=1e-12))
                self.weight_u.copy_(F.normalize(matrix @ self.weight_v, dim=0, eps=1e-12))
        # Copies: the stored vectors may move again before the backward pass.
        u, v = self.weight_u.clone(), self.weight_v.clone()
        return self.weight_orig / torch.dot(u, matrix @ v)


class ScaledLinear(nn.Module):
    """A linear layer whose weight is stored at unit variance and scaled when it runs, then leaky ReLU with gain sqrt 2
    (Karras et al. 2018)."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before))
        self.bias = nn.Parameter(torch.zeros(after))

    def forward(self, x: Tensor) -> Tensor:
        gain = 1 / math.sqrt(self.weight.shape[1])
        return F.leaky_relu(F.linear(x, gain * self.weight, self.bias), 0.2) * math.sqrt(2)


class MiniDiscriminator(nn.Module):
    """One map (N, C, S, S), S a power of two times 7 or 8, and labels (N,), to 16 or 25 logits an image, (N, places)."""

    def __init__(self, channels: int, halvings: int, classes: int, table: Tensor | None) -> None:
        super().__init__()
        widths = [channels, *LADDER[len(LADDER) - halvings :]]
        self.main = nn.Sequential(*(_Down(a, b) for a, b in pairwise(widths)))
        self.cls = SpectralConv2d(widths[-1], MAP, 4, bias=False)
        self.embed = nn.Embedding(classes, CLASS_FEATURES)
        if table is not None:
            with torch.no_grad():
                self.embed.weight.copy_(table)
        self.embed_proj = ScaledLinear(CLASS_FEATURES, MAP)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        seen = self.cls(self.main(x))
        wanted = self.embed_proj(self.embed(labels))
        return (seen * wanted[:, :, None, None]).sum(1).flatten(1) / math.sqrt(MAP)


class MultiscaleDiscriminator(Judge):
    """Maps of the backbones, one after the other and each finest first, and labels, to logits (backbones * N, places).

    Rows are those of the first backbone, then of the second; columns those of its four scales, one after the other.
    """

    def __init__(
        self, classes: int = 1000, *, kinds: Sequence[Kind] = KINDS, table: Tensor | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.kinds = tuple(kinds)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for kind in self.kinds:
                minis = [MiniDiscriminator(c, 4 - i, classes, table) for i, c in enumerate(CHANNELS)]
                holder = nn.Module()
                holder.add_module("mini_discs", nn.ModuleList(minis))
                self.add_module(TIMM[kind], holder)

    def decide(self, seen: Sequence[Tensor], labels: Tensor) -> Tensor:
        scales = len(CHANNELS)
        rows = []
        for k, kind in enumerate(self.kinds):
            minis = [self.get_submodule(f"{TIMM[kind]}.mini_discs.{i}") for i in range(scales)]
            own = seen[k * scales : (k + 1) * scales]
            rows.append(torch.cat([mini(m, labels) for mini, m in zip(minis, own, strict=True)], 1))
        return torch.cat(rows)


class _Down(nn.Module):
    """Half the size: convolution, batch norm, leaky ReLU."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        conv = SpectralConv2d(before, after, 4, stride=2, padding=1)
        self.main = nn.Sequential(conv, nn.BatchNorm2d(after), nn.LeakyReLU(0.2, inplace=True))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.main(x)
        return y
