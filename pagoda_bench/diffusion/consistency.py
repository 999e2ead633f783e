"""Consistency functions around a network, in EDM's variables: x = image + sigma * n.

A consistency function f(x, sigma) maps every point of a trajectory of the probability-flow ODE to its end at `SIGMA_MIN`
(Song et al. 2023, arXiv 2303.01469); a trajectory function to its point at any lower level (CTM, Kim et al. 2024,
arXiv 2310.02279). Noise levels are float64 (N,), one an image; x is (N, C, H, W); labels (N,) int64. Nothing is clamped.
"""

from __future__ import annotations

from torch import Tensor

from pagoda_bench.diffusion.edm import SIGMA_DATA, SIGMA_MIN, Network, Preconditioning, denoise


def boundary(sigma: Tensor, sigma_data: float = SIGMA_DATA, sigma_min: float = SIGMA_MIN) -> Preconditioning:
    """EDM's factors with sigma - sigma_min in place of sigma, so that f is the identity at sigma_min (2303.01469, App. C)."""
    scale = (sigma**2 + sigma_data**2).sqrt()
    return Preconditioning(
        c_skip=sigma_data**2 / ((sigma - sigma_min) ** 2 + sigma_data**2),
        c_out=(sigma - sigma_min) * sigma_data / scale,
        c_in=1 / scale,
    )


def consistency(
    net: Network, x: Tensor, sigma: Tensor, labels: Tensor, sigma_data: float = SIGMA_DATA, sigma_min: float = SIGMA_MIN
) -> Tensor:
    """f(x, sigma) = c_skip x + c_out net(c_in x, sigma)."""
    c_skip, c_out, c_in = (c.to(x.dtype).view(-1, 1, 1, 1) for c in boundary(sigma, sigma_data, sigma_min))
    return c_skip * x + c_out * net(c_in * x, sigma.to(x.dtype), labels)


def trajectory(net: Network, x: Tensor, sigma: Tensor, labels: Tensor, end: float = SIGMA_MIN) -> Tensor:
    """G(x, sigma, end) = (end / sigma) x + (1 - end / sigma) g, where g = c_skip x + c_out net(c_in x, sigma) has EDM's
    factors: 2310.02279 with the choices of sony/ctm for ImageNet 64. `net` is the network for this `end`, 0 < end <= sigma."""
    share = (end / sigma).to(x.dtype).view(-1, 1, 1, 1)
    return share * x + (1 - share) * denoise(net, x, sigma.to(x.dtype), labels)
