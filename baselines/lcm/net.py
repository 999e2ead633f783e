"""The student's network: the ADM U-Net that is also told the guidance weight."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from baselines.lcm.functions import guidance_waves
from pagoda_bench.nets.unet import UNet
from pagoda_bench.recipes.stages import UNetConfig


class GuidedUNet(UNet):
    """F(x, sigma, labels, w): w (N,) is the guidance weight, whose waves join those of the time through a linear layer that
    starts at zero (Meng et al. 2022, arXiv 2210.03142). With the teacher's weights it so starts as the teacher, whatever w."""

    def __init__(self, config: UNetConfig, width: int) -> None:
        super().__init__(config)
        self.width = width
        self.guidance_proj = nn.Linear(width, config.channels, bias=False)
        nn.init.zeros_(self.guidance_proj.weight)

    def forward(self, x: Tensor, sigma: Tensor | float, labels: Tensor, w: Tensor) -> Tensor:  # type: ignore[override]  # one input more
        waves = guidance_waves(w, self.width).to(self.label_emb.weight.dtype)
        emb = self.time_embed(self.time_waves(sigma, len(labels)) + self.guidance_proj(waves)) + self.label_emb(labels)
        return self.head(self.decode(self.encode_from(x, emb)).h)

    @torch.no_grad()
    def start_from(self, teacher: UNet) -> None:
        """Takes every weight of the teacher; what it lacks, the layer of w alone, keeps its zeros."""
        self.load_state_dict({**teacher.state_dict(), "guidance_proj.weight": self.guidance_proj.weight})
