"""The generator: a mapping network, then blocks of twice the size each, every one with an image of its own that is added up.

What a stage grows is a block. All that lies below it is the generator of the stage before, name by name.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn

from baselines.gan.layers import EqualLinear, StyledConv, enlarged, normalised, rectified
from baselines.gan.recipes import StyleConfig


class Mapping(nn.Module):
    """Latents (N, latent) and labels (N,) to w (N, width). The class enters once, here."""

    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        self.embed = nn.Embedding(config.classes, config.latent)
        sizes = [2 * config.latent, *[config.width] * config.mapping]
        rate = config.mapping_rate
        self.layers = nn.ModuleList(EqualLinear(a, b, rate=rate) for a, b in pairwise(sizes))

    def forward(self, z: Tensor, labels: Tensor) -> Tensor:
        x = torch.cat([normalised(z), normalised(self.embed(labels))], 1)
        for layer in self.layers:
            x = rectified(layer(x))
        return x


class Block(nn.Module):
    """Maps to maps of the block's size, and what these add to the image."""

    def __init__(self, before: int, after: int, layers: int, width: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(StyledConv(before if i == 0 else after, after, width) for i in range(layers))
        self.to_rgb = StyledConv(after, 3, width, kernel=1, demodulate=False)

    def forward(self, x: Tensor, w: Tensor) -> tuple[Tensor, Tensor]:
        for conv in self.convs:
            x = rectified(conv(x, w))
        return x, self.to_rgb(x, w).float()


class State(NamedTuple):
    """Between two blocks."""

    w: Tensor
    maps: Tensor
    image: Tensor


class StyleNet(nn.Module):
    """Latents (N, latent) and labels (N,) to images (N, 3, R, R), about in [-1, 1], in one evaluation."""

    def __init__(self, config: StyleConfig) -> None:
        super().__init__()
        self.config = config
        self.mapping = Mapping(config)
        self.constant = nn.Parameter(torch.randn(1, config.channels[0], config.grid, config.grid))
        before = (config.channels[0], *config.channels[:-1])
        self.blocks = nn.ModuleList(
            Block(a, b, layers, config.width) for a, b, layers in zip(before, config.channels, config.layers, strict=True)
        )

    def forward(self, z: Tensor, labels: Tensor, truncation: float = 1.0, centre: Tensor | None = None) -> Tensor:
        """`centre` (classes, width): with `truncation` below 1, w moves towards its class's (2106.12423, 1812.04948)."""
        w = self.mapping(z, labels)
        if centre is not None:
            w = torch.lerp(centre[labels], w, truncation)
        return self.finish(self.trunk(w, len(self.blocks)), len(self.blocks))

    def trunk(self, w: Tensor, stop: int) -> State:
        """What the blocks below `stop` make."""
        maps = self.constant.expand(len(w), -1, -1, -1)
        state = State(w, maps, maps.new_zeros(()))
        return self._run(state, 0, stop)

    def finish(self, state: State, start: int) -> Tensor:
        """The image, by the blocks from `start` on."""
        return self._run(state, start, len(self.blocks)).image

    def _run(self, state: State, start: int, stop: int) -> State:
        w, maps, image = state
        for i in range(start, stop):
            if i > 0:
                maps, image = enlarged(maps), enlarged(image)
            maps, own = self.blocks[i](maps, w)
            image = image + own
        return State(w, maps, image)

    @torch.no_grad()
    def centres(self, z: Tensor) -> Tensor:
        """The mean of w over latents (M, latent), for each class: (classes, width)."""
        each = range(self.config.classes)
        return torch.stack([self.mapping(z, torch.full((len(z),), label, device=z.device)).mean(0) for label in each])
