"""A projected discriminator (Sauer et al. 2021, StyleGAN-XL family): small heads on the maps of a frozen feature network.

The maps are first mixed across channels by fixed random 1x1 convolutions and across scales, coarse to fine; every scale has a
head with spectral normalisation whose logits are conditioned on the class by projection (Miyato and Koyama 2018).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm


class Judge(nn.Module):
    """Maps of a frozen network and labels (N,) to logits, in two parts: `see` has nothing that trains, so what it makes of an
    image serves several updates of `decide`."""

    def see(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return list(maps)

    @abstractmethod
    def decide(self, seen: Sequence[Tensor], labels: Tensor) -> Tensor: ...

    def forward(self, maps: Sequence[Tensor], labels: Tensor) -> Tensor:
        return self.decide(self.see(maps), labels)


class ProjectedDiscriminator(Judge):
    """Maps (finest first, map i at half the size of map i-1) and labels (N,) to logits (N, M): M over scales and places.

    A head halves its map once, so that a logit of a fine scale sees a small part of the image. A `deep` one, as in
    StyleGAN-XL, halves it until all scales are as small as the coarsest: a logit then sees a quarter of its map and more.
    """

    def __init__(self, channels: Sequence[int], classes: int, width: int = 32, seed: int = 0, *, deep: bool = False) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.mix_channels = nn.ModuleList(_fixed(c, width, generator) for c in channels)
        self.mix_scales = nn.ModuleList(_fixed(width, width, generator) for _ in channels[:-1])
        count = len(channels)
        self.heads = nn.ModuleList(_Head(width, classes, count - i if deep else 1) for i in range(count))

    def see(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """The mixed maps, finest first."""
        mixed = [mix(m) for mix, m in zip(self.mix_channels, maps, strict=True)]
        for i in reversed(range(len(mixed) - 1)):
            mixed[i] = self.mix_scales[i](mixed[i] + F.interpolate(mixed[i + 1], scale_factor=2, mode="nearest"))
        return mixed

    def decide(self, seen: Sequence[Tensor], labels: Tensor) -> Tensor:
        coarse_first = reversed(list(zip(self.heads, seen, strict=True)))
        return torch.cat([head(m, labels) for head, m in coarse_first], 1)


class _Head(nn.Module):
    """Strided convolutions, then one logit a place: what the place shows, plus how well it goes with the class.

    A convolution is normalised (spectral norm, then batch norm over the images of the call: reals and fakes apart, as in
    the official code); the last layers are free, or no logit could reach the hinge's margin.
    """

    def __init__(self, width: int, classes: int, halvings: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = _strided(width), nn.BatchNorm2d(width)
        self.deeper_convs = nn.ModuleList(_strided(width) for _ in range(halvings - 1))
        self.deeper_norms = nn.ModuleList(nn.BatchNorm2d(width) for _ in range(halvings - 1))
        self.logit = nn.Conv2d(width, 1, 1)
        self.embed = nn.Embedding(classes, width)

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        h = F.leaky_relu(self.norm(_halved(self.conv, x)), 0.2)
        for conv, norm in zip(self.deeper_convs, self.deeper_norms, strict=True):
            assert isinstance(conv, nn.Conv2d)
            h = F.leaky_relu(norm(_halved(conv, h)), 0.2)
        match = (h * self.embed(labels)[:, :, None, None]).sum(1, keepdim=True) * h.shape[1] ** -0.5
        # Every scale weighs the same, however many places it has: at most 4x4 of them.
        return F.adaptive_avg_pool2d(self.logit(h) + match, min(4, h.shape[-1])).flatten(1)


def _strided(width: int) -> nn.Conv2d:
    conv = spectral_norm(nn.Conv2d(width, width, 3, stride=2, padding=1))
    assert isinstance(conv, nn.Conv2d)
    return conv


def _halved(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """`conv(x)`. On a single place a stride changes nothing, but oneDNN's bfloat16 gradient of a strided convolution is wrong
    there (PyTorch 2.15 on a CPU: it reads memory that nobody wrote)."""
    if x.shape[-1] == 1:
        return F.conv2d(x, conv.weight, conv.bias, padding=1)
    found: Tensor = conv(x)
    return found


def hinge_discriminator(real: Tensor, fake: Tensor) -> Tensor:
    """mean relu(1 - D(real)) + mean relu(1 + D(fake)) (Lim and Ye 2017)."""
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def _fixed(before: int, after: int, generator: torch.Generator) -> nn.Conv2d:
    """A 1x1 convolution with random weights that never train; its seed is part of the recipe."""
    conv = nn.Conv2d(before, after, 1, bias=False)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator) * before**-0.5)
    return conv.requires_grad_(False)
