"""The super-resolution network: the ADM U-Net with the enlarged image beside its input, and the augmentation level beside the
noise level."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pagoda_bench.nets.unet import Stack, UNet
from pagoda_bench.recipes.stages import UNetConfig


class SuperResolutionUNet(UNet):
    """F(x, sigma, labels, low, level): x (N, 3, R, R), scaled by c_in(sigma); low (N, 3, R, R), scaled and enlarged before;
    level (N,) above 0, the noise level of the low-resolution image."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__(config)
        first = self.input_blocks.get_submodule("0.0")
        assert isinstance(first, nn.Conv2d)
        self.input_blocks[0] = Stack(nn.Conv2d(2 * first.in_channels, first.out_channels, 3, padding=1))
        emb = 4 * config.channels
        self.level_embed = nn.Sequential(nn.Linear(config.channels, emb), nn.SiLU(), nn.Linear(emb, emb))

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor, low: Tensor, level: Tensor) -> Tensor:  # type: ignore[override]  # two inputs more
        emb = self.embed(sigma, labels) + self.level_embed(self.time_waves(level, len(labels)))
        return self.head(self.decode(self.encode_from(torch.cat([x, low], dim=1), emb)).h)
