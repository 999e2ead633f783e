"""Winograd's minimal filtering F(2x2, 3x3) for frozen networks on a CPU in float32 (Lavin and Gray 2016, section 4.1).

Four outputs of a 3x3 convolution take 36 products a pair of channels; by way of tiles of 4x4 inputs they take 16. Input and
output of the products are sums and differences only, so the result is as near to the exact one as a direct convolution's (by
measurement nearer, since fewer numbers are added up). The price are passes over memory, which only many channels make good:
`LEAST` was measured, and narrower networks compute as they always did, bit by bit. The weights are kept twice, the
transformed ones being 16/9 as large.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula

Net = TypeVar("Net", bound=nn.Module)

LEAST = 160
"""Channels, of input and of output, from which on it pays."""

WORKING_SET = 16 * 2**20
"""Bytes of transformed tiles at a time: they stay within the last cache of a processor."""

SWITCH = "PAGODA_BENCH_WINOGRAD"  # "off" leaves all convolutions direct


def winograd(net: Net, least: int = LEAST) -> Net:
    """Changes, in place, those convolutions of a network that gain by it: frozen ones (whose weights ask for no gradient), 3x3,
    stride 1, padding 1, at least `least` channels in and out. Names, parameters and the state dict stay as they are. Returns
    the network.

    The changed layers compute directly wherever they must: with a graph, under autocast, when compiled, in another type than
    float32, on another device than a CPU, at odd sizes. Counted work is that of the
    direct convolution, so that it is the same everywhere.
    """
    if os.environ.get(SWITCH) != "off":
        for layer in net.modules():
            if type(layer) is nn.Conv2d and min(layer.in_channels, layer.out_channels) >= least and _fits(layer):
                layer.__class__ = WinogradConv2d
    return net


def _fits(layer: nn.Conv2d) -> bool:
    if layer.weight.requires_grad:
        return False
    one = layer.stride == layer.dilation == layer.padding == (1, 1) and layer.groups == 1
    return one and layer.kernel_size == (3, 3) and layer.padding_mode == "zeros"


class WinogradConv2d(nn.Conv2d):
    """A 3x3 convolution that has been there as `nn.Conv2d`. Its weights are transformed at the first use, and again when they
    have changed."""

    _transformed: tuple[tuple[int, int], Tensor] | None = None

    def forward(self, input: Tensor) -> Tensor:
        if not self._applies(input):
            return super().forward(input)
        state = (self.weight.data_ptr(), self.weight._version)
        if self._transformed is None or self._transformed[0] != state:
            self._transformed = (state, transform_weight(self.weight))
        found: Tensor = torch.ops.pagoda_bench.winograd(input, self._transformed[1], self.bias)
        return found

    def _applies(self, x: Tensor) -> bool:
        if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
            return False
        plain = x.device.type == "cpu" and x.dtype == self.weight.dtype == torch.float32 and x.dim() == 4
        return plain and not (x.shape[2] % 2 or x.shape[3] % 2)


@torch.no_grad()
def transform_weight(weight: Tensor) -> Tensor:
    """G w G^T of weights (Cout, Cin, 3, 3), computed in float64: (16, Cin, Cout), contiguous, of the weights' type."""
    both = _weight_pass(_weight_pass(weight.double().permute(2, 3, 1, 0)).transpose(0, 1)).transpose(0, 1)
    return both.flatten(0, 1).to(weight.dtype).contiguous()


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """`F.conv2d(x, w, bias, padding=1)` for x (N, Cin, H, W) with even H and W, and `weight = transform_weight(w)`: without
    gradients, (N, Cout, H, W), channels-last. ValueError at odd sizes."""
    n, wide, height, width = x.shape
    if height % 2 or width % 2:
        raise ValueError(f"{height}x{width} is not a whole number of tiles of 2x2")
    to, rows, columns = weight.shape[2], height // 2, width // 2
    padded = F.pad(x.permute(0, 2, 3, 1).contiguous(), (0, 0, 1, 1, 1, 1))
    out = x.new_empty(n, rows, 2, columns, 2, to)
    fit = max(1, WORKING_SET // (64 * columns * (wide + to)))  # rows of tiles; a tile has 16 inputs and 16 products of 4 bytes
    images, fit = max(1, fit // rows), min(fit, rows)
    for first in range(0, n, images):
        for row in range(0, rows, fit):
            part = slice(row, min(row + fit, rows))
            tiles = _inputs(padded[first : first + images, 2 * part.start : 2 * part.stop + 2])
            products = torch.bmm(tiles.flatten(1, 4).view(16, -1, wide), weight).view(4, 4, *tiles.shape[2:5], to)
            if bias is not None:
                products[1, 1] += bias  # the one product that all four outputs take with the factor 1
            _outputs(products, out[first : first + images, part])
    return out.view(n, height, width, to).permute(0, 3, 1, 2)


# As an operator of its own it is seen whole by PyTorch's counter of operations.
torch.library.custom_op(
    "pagoda_bench::winograd", conv2d, mutates_args=(), schema="(Tensor x, Tensor weight, Tensor? bias) -> Tensor"
)


@register_flop_formula(torch.ops.pagoda_bench.winograd)
def _flops(x: Sequence[int], weight: Sequence[int], *_: object, **__: object) -> int:
    """Of the direct convolution: a multiply and an add counted apart."""
    return 2 * 9 * x[0] * x[2] * x[3] * weight[1] * weight[2]


def _inputs(x: Tensor) -> Tensor:
    """B^T d B of the tiles d of x (N, 2 R + 2, 2 C + 2, channels): (4, 4, N, R, C, channels)."""
    n, height, width, channels = x.shape
    rows, columns = height // 2 - 1, width // 2 - 1
    half = x.new_empty(4, n, rows, width, channels)
    _input_pass([x[:, k : k + 2 * rows : 2] for k in range(4)], half)
    tiles = x.new_empty(4, 4, n, rows, columns, channels)
    _input_pass([half[:, :, :, k : k + 2 * columns : 2] for k in range(4)], tiles.transpose(0, 1))
    return tiles


def _outputs(products: Tensor, out: Tensor) -> None:
    """A^T m A of the products m (4, 4, N, R, C, channels), into out (N, R, 2, C, 2, channels)."""
    half = products.new_empty(2, *products.shape[1:])
    _output_pass(products, half)
    _output_pass(half.transpose(0, 1), out.permute(4, 2, 0, 1, 3, 5))


def _weight_pass(w: Tensor) -> Tensor:
    """G along one direction (Lavin and Gray, equation 8): (3, ...) to (4, ...)."""
    return torch.stack([w[0], (w[0] + w[1] + w[2]) / 2, (w[0] - w[1] + w[2]) / 2, w[2]])


def _input_pass(d: Sequence[Tensor], to: Tensor) -> None:
    """B^T along one direction (Lavin and Gray, equation 8)."""
    torch.sub(d[0], d[2], out=to[0])
    torch.add(d[1], d[2], out=to[1])
    torch.sub(d[2], d[1], out=to[2])
    torch.sub(d[1], d[3], out=to[3])


def _output_pass(m: Tensor, to: Tensor) -> None:
    """A^T along one direction (Lavin and Gray, equation 8)."""
    torch.add(m[1], m[2], out=to[0])
    to[0] += m[0]
    torch.sub(m[1], m[2], out=to[1])
    to[1] -= m[3]
