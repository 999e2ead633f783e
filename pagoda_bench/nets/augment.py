"""Differentiable augmentation (Zhao et al. 2020): what the discriminator and L_rec see is shifted, recoloured and cut alike.

Order and draws follow the official PaGoDA code: brightness, saturation, contrast, translation with zeros, cutout.
Images (N, 3, H, W) in [-1, 1]. The draws come first, so that the same ones can be applied to several images.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Draws(NamedTuple):
    """One value an image, each of length N."""

    brightness: Tensor  # added, in [-0.5, 0.5)
    saturation: Tensor  # factor about the mean over channels, in [0, 2)
    contrast: Tensor  # factor about the mean of the image, in [0.5, 1.5)
    rows: Tensor  # shift of the content upwards, pixels (the sign of the official code)
    columns: Tensor  # and to the left
    cut_row: Tensor  # centre of the square that is zeroed
    cut_column: Tensor


def draw(n: int, size: int, *, translation: float = 0.125, device: torch.device | None = None) -> Draws:
    """Random draws for `n` images of `size` px, from PyTorch's global generator."""
    shift = round(size * translation)
    cut = int(size * 0.2 + 0.5)
    u = torch.rand(3, n, device=device)
    whole = torch.randint(-shift, shift + 1, (2, n), device=device)
    centre = torch.randint(0, size + (1 - cut % 2), (2, n), device=device)
    return Draws(u[0] - 0.5, u[1] * 2, u[2] + 0.5, whole[0], whole[1], centre[0], centre[1])


def augment(x: Tensor, d: Draws, *, cutout: float = 0.2) -> Tensor:
    """`x` under the draws `d`: the same shape, differentiable in `x`."""
    x = color(x, d)
    x = translate(x, d)
    return cut(x, d, cutout)


def color(x: Tensor, d: Draws) -> Tensor:
    x = x + _each(d.brightness)
    mean = x.mean(1, keepdim=True)
    x = (x - mean) * _each(d.saturation) + mean
    mean = x.mean((1, 2, 3), keepdim=True)
    return (x - mean) * _each(d.contrast) + mean


def translate(x: Tensor, d: Draws) -> Tensor:
    n, _, height, width = x.shape
    rows = torch.arange(height, device=x.device)[None] + d.rows[:, None]
    columns = torch.arange(width, device=x.device)[None] + d.columns[:, None]
    kept = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    image = torch.arange(n, device=x.device)[:, None, None]
    moved = x.permute(0, 2, 3, 1)[image, rows.clamp(0, height - 1)[:, :, None], columns.clamp(0, width - 1)[:, None, :]]
    return (moved * kept[..., None]).permute(0, 3, 1, 2)


def cut(x: Tensor, d: Draws, fraction: float = 0.2) -> Tensor:
    _, _, height, width = x.shape
    size = int(height * fraction + 0.5)
    rows, columns = torch.arange(height, device=x.device)[None], torch.arange(width, device=x.device)[None]
    low_row, low_column = d.cut_row[:, None] - size // 2, d.cut_column[:, None] - size // 2
    in_rows = _within(rows, low_row, size, height)
    in_columns = _within(columns, low_column, size, width)
    inside = in_rows[:, :, None] & in_columns[:, None, :]
    return x * (~inside)[:, None]


def _within(at: Tensor, low: Tensor, size: int, limit: int) -> Tensor:
    """Places covered by `size` places from `low` on, each clamped into the image: at a border it piles up there."""
    first, last = low.clamp(0, limit - 1), (low + size - 1).clamp(0, limit - 1)
    return (at >= first) & (at <= last)


def _each(v: Tensor) -> Tensor:
    return v[:, None, None, None]
