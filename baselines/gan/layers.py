"""The layers of a style-based generator: convolutions whose weights a style scales, and layers of equalised learning rate.

Weights are drawn from N(0, 1) and scaled where they are used, so that Adam's steps are as large for every layer (Karras et al.
2018, Section 4.1). No layer draws noise.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GAIN = math.sqrt(2)  # of the leaky rectifier: unit variance in gives about unit variance out


class EqualLinear(nn.Module):
    """(N, before) to (N, after). `rate` scales the learning rate of this layer, not what it computes at the start."""

    def __init__(self, before: int, after: int, *, bias: float = 0.0, rate: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(after, before) / rate)
        self.bias = nn.Parameter(torch.full((after,), bias / rate))
        self.gain, self.rate = rate * before**-0.5, rate

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.gain, self.bias * self.rate)


class StyledConv(nn.Module):
    """A convolution of maps (N, before, H, W) under a style made of w (N, width), with zero padding."""

    def __init__(self, before: int, after: int, width: int, *, kernel: int = 3, demodulate: bool = True) -> None:
        super().__init__()
        self.affine = EqualLinear(width, before, bias=1.0)
        self.weight = nn.Parameter(torch.randn(after, before, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(after))
        self.gain, self.demodulate = (before * kernel * kernel) ** -0.5, demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        y = modulated_conv(x, self.weight * self.gain, self.affine(w), demodulate=self.demodulate)
        return y + self.bias.to(y.dtype)[:, None, None]


def modulated_conv(x: Tensor, weight: Tensor, style: Tensor, *, demodulate: bool = True, eps: float = 1e-8) -> Tensor:
    """`x` (N, I, H, W) under `weight` (O, I, K, K), K odd, whose input channels are scaled for each image by `style` (N, I):
    (N, O, H, W).

    w'_oik = s_i w_oik; demodulated, w''_oik = w'_oik / sqrt(sum_ik w'_oik^2 + eps) (Karras et al. 2020, arXiv 1912.04958,
    equations 1 and 3). No image needs a kernel of its own: scaling input channels is scaling the input, and the divisor
    depends on the output channel alone, so it scales the output.
    """
    y = F.conv2d(x * style.to(x.dtype)[:, :, None, None], weight, padding=weight.shape[-1] // 2)
    if not demodulate:
        return y
    with torch.autocast(x.device.type, enabled=False):  # a sum of squares, too long for 8 bits of mantissa
        power = style.to(weight.dtype).square() @ weight.square().sum((2, 3)).T
        factor = (power + eps).rsqrt()
    return y * factor.to(y.dtype)[:, :, None, None]


def rectified(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2) * GAIN


def normalised(x: Tensor, eps: float = 1e-8) -> Tensor:
    """(N, C) with a mean square of 1 in every row."""
    return x * (x.square().mean(1, keepdim=True) + eps).rsqrt()


def enlarged(x: Tensor) -> Tensor:
    """Twice the size, bilinear: inside the image that is zero insertion and the filter (1, 3, 3, 1) of StyleGAN2."""
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
