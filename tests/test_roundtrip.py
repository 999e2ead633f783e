"""The round-trip report against a diffusion model whose ODE has a closed solution, and on the official tiny network."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from pagoda_bench.diffusion.edm import denoise
from pagoda_bench.diffusion.solvers import evaluations
from pagoda_bench.pagoda.roundtrip import report, round_trip, table
from tests.official import TINY, arrays, filled_net

S = 0.5


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser of data N(0, S^2): D = S^2 / (S^2 + sigma^2) x. Its ODE scales x by sqrt(S^2 + sigma^2)."""
    return S**2 / (S**2 + sigma.view(-1, 1, 1, 1) ** 2) * x


def data(n: int = 4) -> Tensor:
    return S * torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def scaled(points: int, *, solver: str) -> float:
    """The factor by which a linear problem's round trip multiplies every pixel: computed step by step on numbers."""
    levels = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), points) ** 7

    def slope(x: float, sigma: float) -> float:
        return x * sigma / (S**2 + sigma**2)

    x = 1.0
    for a, b in [*pairwise(levels[::-1]), *pairwise(levels)]:
        d = slope(x, a)
        end = x + (b - a) * d
        x = end if solver == "ddim" else x + (b - a) * (d + slope(end, b)) / 2
    return float(x * S**2 / (S**2 + levels[-1] ** 2))


@pytest.mark.parametrize("solver", ["heun", "ddim"])
@pytest.mark.parametrize("points", [5, 18])
def test_the_error_of_a_gaussian_is_the_computed_one(solver: str, points: int) -> None:
    image = data()
    found = round_trip(gaussian, image, solver=solver, points=points, clamp=False)  # type: ignore[arg-type]
    factor = abs(scaled(points, solver=solver) - 1)
    per_image = image.square().flatten(1).mean(1).sqrt()
    assert found.rms == pytest.approx(factor * float(image.square().mean().sqrt()), rel=1e-6)
    assert found.worst == pytest.approx(factor * float(image.abs().max()), rel=1e-6)
    assert found.worst_image == pytest.approx(factor * float(per_image.max()), rel=1e-6)
    assert found.psnr == pytest.approx(20 * math.log10(2 / found.rms))


def test_the_latent_of_a_gaussian_is_the_closed_solution() -> None:
    image = data()
    found = round_trip(gaussian, image, points=200, clamp=False)
    exact = float(image.std()) * math.sqrt((S**2 + 80**2) / (S**2 + 0.002**2)) / 80
    assert found.latent_std == pytest.approx(exact, rel=1e-3)


def test_the_round_trip_of_heun_hides_most_of_the_error_of_its_latents() -> None:
    """Halving the steps: DDIM's two errors halve. Heun's latents gain four times, its round trip eight, because the leading
    errors of the two ways cancel."""
    rows = report(gaussian, data(), points=(20, 40, 80), clamp=False, reference_points=600)
    for solver, image_gain, latent_gain in (("heun", (7, 11), (3.6, 4.2)), ("ddim", (1.8, 2.1), (1.8, 2.1))):
        mine = [r for r in rows if r.solver == solver]
        assert all(image_gain[0] < a.rms / b.rms < image_gain[1] for a, b in pairwise(mine))
        assert all(latent_gain[0] < a.latent_rms / b.latent_rms < latent_gain[1] for a, b in pairwise(mine))  # type: ignore[operator]
    heun = rows[1]
    assert heun.latent_rms / heun.latent_std == pytest.approx(0.0087, rel=0.05)  # type: ignore[operator]
    assert heun.rms / float(data().square().mean().sqrt()) == pytest.approx(0.00098, rel=0.05)


@pytest.mark.parametrize(("solver", "points"), [("heun", 6), ("ddim", 9)])
def test_evaluations_are_counted_both_ways(solver: str, points: int) -> None:
    found = round_trip(gaussian, data(), solver=solver, points=points)  # type: ignore[arg-type]
    assert found.evaluations == evaluations(points, solver, inversion=True) + evaluations(points, solver)  # type: ignore[arg-type]


def test_the_official_tiny_network_comes_back_and_is_reported() -> None:
    """Untrained weights make a rough ODE, and clamping loses what leaves [-1, 1]: the report must say so, not fail."""
    case, net = arrays("tiny_inversion"), filled_net(TINY)
    labels = torch.tensor([0, 1, 4, 3])
    rows = report(lambda x, sigma: denoise(net, x, sigma, labels), case["image"], points=(6,))
    assert [(r.solver, r.points) for r in rows] == [("heun", 6), ("ddim", 6)]
    assert all(math.isfinite(r.rms) and 0 < r.rms <= r.worst_image <= r.worst for r in rows)
    assert rows[0].latent_std == pytest.approx(float(case["inv6_z"].double().std()) / 80, rel=1e-4)
    lines = table(rows).splitlines()
    assert len(lines) == 3
    assert lines[1].split()[:3] == ["heun", "6", "21"]
