"""EDM formulation and solvers: closed forms, orders of convergence, and outputs of the official PaGoDA code."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pagoda_bench.diffusion import edm, solvers
from pagoda_bench.nets.unet import UNet
from pagoda_bench.recipes.stages import UNetConfig
from pagoda_bench.sampling.counting import count_evaluations

OFFICIAL = Path(__file__).parent / "fixtures" / "official"
MEAN, STD = 0.3, 0.4


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """The ideal denoiser of data ~ N(MEAN, STD^2 I): E[image | x]."""
    s = sigma.view(-1, 1, 1, 1)
    return MEAN + STD**2 / (STD**2 + s**2) * (x - MEAN)


def gaussian_flow(x: Tensor, sigma: float, target: float) -> Tensor:
    """The exact solution of its probability-flow ODE: the distance from the mean scales with the standard deviation."""
    return MEAN + (x - MEAN) * math.sqrt((STD**2 + target**2) / (STD**2 + sigma**2))


@pytest.fixture
def z() -> Tensor:
    return 80 * torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def tiny() -> UNet:
    """The fixtures' network: weight k of the i-th key in code-point order is sin(i + k^2), scaled by the kind of tensor."""
    net = UNet(UNetConfig(resolution=16, channels=32, encoder=(1, 2), blocks=1, attention=(8,), head_channels=16, classes=5))
    state = net.state_dict()
    for i, key in enumerate(sorted(state)):
        shape = state[key].shape
        values = np.sin(i + np.arange(state[key].numel(), dtype=np.float64) ** 2)
        if not key.endswith("label_emb.weight"):
            if len(shape) > 1:
                values *= math.sqrt(2 * shape[0] / values.size)
            else:
                values = 1 + 0.25 * values if key.endswith("weight") else 0.25 * values
        state[key] = torch.from_numpy(values.astype(np.float32)).view(shape)
    net.load_state_dict(state)
    return net.eval().requires_grad_(False)


def official(name: str) -> dict[str, Tensor]:
    with np.load(OFFICIAL / f"{name}.npz") as file:
        return {key: torch.from_numpy(np.asarray(file[key])) for key in file}


@given(points=st.integers(2, 60), rho=st.floats(1, 12), low=st.floats(1e-4, 0.1), high=st.floats(1, 200))
def test_the_grid_falls_between_its_ends(points: int, rho: float, low: float, high: float) -> None:
    grid = edm.karras_grid(points, low, high, rho)
    assert grid.dtype == np.float64
    assert grid.shape == (points,)
    assert grid[0] == high
    assert grid[-1] == low
    assert (np.diff(grid) < 0).all()
    # Even spacing in sigma^(1/rho) is the definition.
    np.testing.assert_allclose(np.diff(grid ** (1 / rho), 2), 0, atol=1e-9)


def test_a_grid_of_one_point_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        edm.karras_grid(1)


@pytest.mark.parametrize("grid", [[1.0], [1.0, 2.0], [2.0, 1.0, 0.0], [2.0, 2.0]])
def test_solvers_refuse_other_grids(grid: list[float], z: Tensor) -> None:
    with pytest.raises(ValueError, match="falling and above 0"):
        solvers.heun(gaussian, z, grid)
    with pytest.raises(ValueError, match="falling and above 0"):
        solvers.invert(gaussian, z, grid)


def test_preconditioning_gives_unit_variance_and_the_loss_weight() -> None:
    sigma = torch.logspace(-3, 2, 30, dtype=torch.float64)
    c = edm.preconditioning(sigma)
    torch.testing.assert_close(c.c_in**2 * (sigma**2 + 0.25), torch.ones_like(sigma))
    # Effective target of the network, (image - c_skip x) / c_out, has variance 1 (Karras et al. 2022, appendix B.6).
    target = ((1 - c.c_skip) ** 2 * 0.25 + c.c_skip**2 * sigma**2) / c.c_out**2
    torch.testing.assert_close(target, torch.ones_like(sigma))
    torch.testing.assert_close(edm.loss_weight(sigma) * c.c_out**2, torch.ones_like(sigma))


def test_the_training_loss_is_the_plain_error_of_the_network_target() -> None:
    generator = torch.Generator().manual_seed(1)
    image, noise = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64, generator=generator)
    sigma = torch.tensor([0.01, 0.5, 3.0, 70.0], dtype=torch.float64)
    labels = torch.arange(4)

    def net(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        return torch.tanh(x) + labels.view(-1, 1, 1, 1)

    loss = edm.training_loss(net, image, labels, noise, sigma)
    for i in range(4):
        s = sigma[i].item()
        x = image[i] + s * noise[i]
        target = (image[i] - 0.25 / (s * s + 0.25) * x) / (s * 0.5 / math.sqrt(s * s + 0.25))
        output = torch.tanh(x / math.sqrt(s * s + 0.25)) + i
        torch.testing.assert_close(loss[i], (output - target).square().mean())


def test_training_noise_levels_are_lognormal() -> None:
    uniform = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    log_sigma = edm.lognormal_sigma(edm.normal_from_uniform(uniform), p_mean=-0.7, p_std=0.9).log()
    assert log_sigma.mean().item() == pytest.approx(-0.7, abs=1e-9)
    assert log_sigma.std().item() == pytest.approx(0.9, rel=1e-3)
    assert log_sigma.quantile(0.975).item() == pytest.approx(-0.7 + 0.9 * 1.959964, rel=1e-3)


def test_heun_reaches_the_exact_flow_of_a_gaussian(z: Tensor) -> None:
    grid = edm.karras_grid(200)
    # The last step to 0 gives D(x; sigma_min), which is off by order sigma_min^2.
    found = solvers.heun(gaussian, z, grid, clamp=False)
    torch.testing.assert_close(found, gaussian_flow(z, 80, 0), atol=1e-3, rtol=0)
    latent = solvers.invert(gaussian, found, grid, clamp=False)
    torch.testing.assert_close(latent, gaussian_flow(found, grid[-1], 80), atol=0.2, rtol=0)


@pytest.mark.parametrize(("solver", "order"), [("heun", 2), ("ddim", 1)])
@pytest.mark.parametrize("inversion", [False, True])
def test_order_of_convergence(solver: solvers.Solver, order: int, inversion: bool, z: Tensor) -> None:
    """Halving the step divides the error by 2^order. The lowest level is raised: no last step to 0 may drown the order."""
    errors = []
    for points in (33, 65, 129):
        grid = edm.karras_grid(points, sigma_min=0.05)
        if inversion:
            image = z / 80
            found = solvers.invert(gaussian, image, grid, solver, clamp=False)
            exact = gaussian_flow(image, 0.05, 80)
        else:
            sample = solvers.heun if solver == "heun" else solvers.ddim
            found = sample(gaussian, z, grid, clamp=False)
            # Undo the exact last step: D(x; sigma_min) of the exact state.
            exact = gaussian(gaussian_flow(z, 80, 0.05), torch.full((3,), 0.05, dtype=torch.float64))
        errors.append((found - exact).abs().max().item())
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert orders[-1] == pytest.approx(order, abs=0.15)


def test_inversion_then_sampling_is_the_identity(z: Tensor) -> None:
    image = MEAN + STD * z / 80
    grid = edm.karras_grid(60)
    latent = solvers.invert(gaussian, image, grid, clamp=False)
    assert latent.std().item() == pytest.approx(80, rel=0.2)
    torch.testing.assert_close(solvers.heun(gaussian, latent, grid, clamp=False), image, atol=1e-3, rtol=0)


class Gaussian(nn.Module):
    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        return gaussian(x, sigma)


@pytest.mark.parametrize("points", [2, 7])
def test_evaluations_and_progress(points: int, z: Tensor) -> None:
    net, grid = Gaussian(), edm.karras_grid(points)
    runs = {
        ("heun", False): lambda p: solvers.heun(net, z, grid, progress=p),
        ("ddim", False): lambda p: solvers.ddim(net, z, grid, progress=p),
        ("heun", True): lambda p: solvers.invert(net, z, grid, "heun", progress=p),
        ("ddim", True): lambda p: solvers.invert(net, z, grid, "ddim", progress=p),
    }
    expected = {("heun", False): 2 * points - 1, ("ddim", False): points}
    expected |= {("heun", True): 2 * (points - 1), ("ddim", True): points - 1}
    for (solver, inversion), run in runs.items():
        seen: list[tuple[int, int]] = []
        with count_evaluations(net) as counted:
            run(lambda done, total, seen=seen: seen.append((done, total)))
        assert counted.per_image(len(z)) == expected[solver, inversion] == solvers.evaluations(points, solver, inversion)
        steps = points - 1 if inversion else points
        assert seen == [(i + 1, steps) for i in range(steps)]


def test_clamping_limits_the_denoised_image(z: Tensor) -> None:
    def wild(x: Tensor, sigma: Tensor) -> Tensor:
        return x.sign() * 5

    assert solvers.heun(wild, z, edm.karras_grid(5)).abs().max() == 1
    assert solvers.heun(wild, z, edm.karras_grid(5), clamp=False).abs().max() == 5


def test_denoiser_equals_the_official_one(tiny: UNet) -> None:
    data = official("tiny_denoise_r1")
    for i, sigma in enumerate(data["sigma"]):
        found = edm.denoise(tiny, data["image"] + sigma * data["noise"], sigma.expand(4), data["labels"])
        torch.testing.assert_close(found, data["denoised"][i], atol=2e-5, rtol=0)
    mixed = edm.denoise(tiny, data["mixed_x_noisy"], data["mixed_sigma"], data["labels"])
    torch.testing.assert_close(mixed, data["mixed_denoised"], atol=2e-5, rtol=0)


def test_one_step_call_equals_the_official_one(tiny: UNet) -> None:
    data = official("tiny_base_r1")
    torch.testing.assert_close(edm.one_step(tiny, data["z"], data["labels"]), data["out"], atol=2e-5, rtol=0)


@pytest.mark.parametrize("points", [6, 18])
def test_inversion_and_sampling_equal_the_official_ones(points: int, tiny: UNet) -> None:
    data = official("tiny_inversion")
    # The official grid is rounded to float32 on the way (its top is 79.9999847), which moves samples by up to 3e-5.
    grid = data[f"inv{points}_grid"].numpy()[::-1].astype(np.float64)
    np.testing.assert_allclose(edm.karras_grid(points), grid, rtol=1e-6)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        return edm.denoise(tiny, x, sigma, data["labels"])

    latent = solvers.invert(denoise, data["image"], grid)
    torch.testing.assert_close(latent, data[f"inv{points}_z"], atol=3e-3, rtol=0)
    image = solvers.heun(denoise, data["z"], grid)
    torch.testing.assert_close(image, data[f"samp{points}_x"], atol=2e-5, rtol=0)
    if points == 6:
        unclamped = solvers.invert(denoise, data["image"], grid, clamp=False)
        torch.testing.assert_close(unclamped, data["solver6_z"], atol=3e-3, rtol=0)
