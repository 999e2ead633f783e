"""Samplers of a diffusion model: stochastic steps and DDIM's noise against closed forms and diffusers' schedulers."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from pagoda_bench.diffusion import edm, solvers
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.samplers import SamplerConfig
from pagoda_bench.sampling import diffusion
from pagoda_bench.sampling.network import SEED, Draw, NetworkSampler
from pagoda_bench.sampling.noise import noise

MEAN, STD = 0.3, 0.4


def gaussian(x: Tensor, sigma: Tensor) -> Tensor:
    """The ideal denoiser of data ~ N(MEAN, STD^2 I)."""
    s = sigma.view(-1, 1, 1, 1)
    return MEAN + STD**2 / (STD**2 + s**2) * (x - MEAN)


def noises(seed: int, *shape: int) -> Callable[[], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return lambda: torch.randn(*shape, dtype=torch.float64, generator=generator)


SHAPE = (16, 3, 16, 16)


def moments(config: SamplerConfig) -> tuple[float, float]:
    x = diffusion.draw(config, gaussian, noises(1, *SHAPE))
    return x.mean().item(), x.std().item()


@pytest.mark.parametrize(
    "config",
    [
        SamplerConfig(solver="heun", points=60, clamp=False),
        SamplerConfig(solver="heun", points=60, churn=10, churn_noise=1.0, clamp=False),
        SamplerConfig(solver="euler", points=300, churn=20, churn_noise=1.0, clamp=False),
        SamplerConfig(solver="ddim", points=200, clamp=False),
        SamplerConfig(solver="ddim", points=300, eta=1, clamp=False),
    ],
    ids=lambda c: f"{c.solver}-{c.churn:g}-{c.eta:g}",
)
def test_every_sampler_gives_the_data_distribution(config: SamplerConfig) -> None:
    """Of 12,288 values the mean is known to 0.0036, the deviation to 0.0026; the rest is left for the size of the steps."""
    mean, std = moments(config)
    assert mean == pytest.approx(MEAN, abs=0.015)
    assert std == pytest.approx(STD, rel=0.02 if config.solver == "heun" else 0.04)


def stochastic_variance(levels: list[float], churn: solvers.Churn, heun: bool) -> float:
    """The variance of the samples in float64: for Gaussian data each step multiplies the distance from the mean by a factor
    and adds independent noise, so it follows from the steps alone."""
    variance = levels[0] ** 2
    for sigma, target in pairwise([*levels, 0.0]):
        raised = sigma * (1 + min(churn.total / len(levels), math.sqrt(2) - 1) * (churn.low <= sigma <= churn.high))
        variance += churn.noise**2 * (raised**2 - sigma**2)
        slope = raised / (STD**2 + raised**2)  # of dx/dsigma, over the distance from the mean
        factor = 1 + (target - raised) * slope
        if heun and target:
            factor = 1 + (target - raised) / 2 * (slope + target / (STD**2 + target**2) * factor)
        variance *= factor**2
    return variance


@pytest.mark.parametrize("solver", ["heun", "ddim"])
@pytest.mark.parametrize("churn", [solvers.Churn(20, 0.05, 50, 1.003), solvers.Churn(400), solvers.Churn()])
def test_stochastic_steps_have_the_variance_of_the_algorithm(solver: solvers.Solver, churn: solvers.Churn) -> None:
    grid = edm.karras_grid(9)
    normal = noises(2, 100, 3, 32, 32)
    z = 80 * normal()
    found = solvers.stochastic(gaussian, z, grid, normal, churn, solver, clamp=False).var().item()
    assert found == pytest.approx(stochastic_variance([float(s) for s in grid], churn, solver == "heun"), rel=0.01)


def test_without_noise_the_samplers_are_the_deterministic_ones() -> None:
    grid, z = edm.karras_grid(7), 80 * noises(3, 2, 3, 4, 4)()

    def never() -> Tensor:
        raise AssertionError("no noise is wanted")

    for solver, plain in (("heun", solvers.heun), ("ddim", solvers.ddim)):
        assert torch.equal(solvers.stochastic(gaussian, z, grid, never, solvers.Churn(), solver), plain(gaussian, z, grid))
    torch.testing.assert_close(solvers.ddim_eta(gaussian, z, grid, never, 0.0), solvers.ddim(gaussian, z, grid))
    # A range of noise levels that the grid does not meet adds nothing either.
    outside = solvers.Churn(40, 100, 200)
    assert torch.equal(solvers.stochastic(gaussian, z, grid, never, outside), solvers.heun(gaussian, z, grid))


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_order_of_convergence_with_a_fixed_share_of_noise(solver: str) -> None:
    """The bias of the variance falls with the step as the solver's order says (a closed form: no sampling error)."""
    order = 2 if solver == "heun" else 1
    exact = STD**2
    errors = []
    for points in (65, 129, 257):
        grid = [float(s) for s in edm.karras_grid(points, sigma_min=0.0005)]
        errors.append(abs(stochastic_variance(grid, solvers.Churn(10.0), order == 2) - exact))
    # The constant part of sigma_max and sigma_min is below 1e-5 of the variance.
    assert math.log2(errors[0] / errors[1]) == pytest.approx(order, abs=0.4)
    assert math.log2(errors[1] / errors[2]) == pytest.approx(order, abs=0.4)


@pytest.mark.parametrize("total", [0.0, 30.0])
def test_euler_equals_the_scheduler_of_diffusers(total: float) -> None:
    """With churn the scheduler adds its noise after the network was called; here it is given the denoised image of what
    that noise makes, as the algorithm wants it."""
    diffusers = pytest.importorskip("diffusers")
    points, churn = 12, solvers.Churn(total, 0.05, 50.0, 1.003)
    scheduler = diffusers.EDMEulerScheduler(sigma_min=0.002, sigma_max=80.0, sigma_data=0.5, rho=7.0)
    scheduler.set_timesteps(points)
    levels = [float(s) for s in scheduler.sigmas[:-1]]
    np.testing.assert_allclose(levels, edm.karras_grid(points), rtol=1e-5)
    normal, theirs, ahead = noises(4, 2, 3, 8, 8), torch.Generator().manual_seed(4), torch.Generator().manual_seed(4)
    z = 80 * normal()
    for generator in (theirs, ahead):
        torch.randn(z.shape, dtype=z.dtype, generator=generator)
    x = z
    for sigma, t in zip(levels, scheduler.timesteps, strict=True):
        raised, noisy = churn.raised(sigma, points), x
        if raised > sigma:
            noisy = x + math.sqrt(raised**2 - sigma**2) * churn.noise * torch.randn(x.shape, dtype=x.dtype, generator=ahead)
        denoised = gaussian(noisy, torch.full((2,), raised, dtype=torch.float64))
        options = {"s_churn": churn.total, "s_tmin": churn.low, "s_tmax": churn.high, "s_noise": churn.noise}
        x = scheduler.step(denoised, t, x, generator=theirs, pred_original_sample=denoised, **options).prev_sample
    ours = solvers.stochastic(gaussian, z, levels, normal, churn, "ddim", clamp=False)
    torch.testing.assert_close(ours, x, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_equals_the_scheduler_of_diffusers(eta: float) -> None:
    """In the variance-preserving variables of the scheduler the state is ours times sqrt(abar)."""
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(beta_start=1e-4, beta_end=0.02, prediction_type="sample", clip_sample=False)
    scheduler.set_timesteps(25)
    abar = scheduler.alphas_cumprod.double()[scheduler.timesteps]
    levels = ((1 - abar) / abar).sqrt()
    normal, theirs = noises(5, 2, 3, 8, 8), noises(5, 2, 3, 8, 8)
    z = levels[0] * normal()
    x = abar[0].sqrt() * levels[0] * theirs()
    for i, t in enumerate(scheduler.timesteps):
        denoised = gaussian(x / abar[i].sqrt(), levels[i].expand(2))
        last = i == len(levels) - 1
        extra = {"variance_noise": torch.zeros_like(x) if last or not eta else theirs()}
        x = scheduler.step(denoised, t, x, eta=eta, **extra).prev_sample
    ours = solvers.ddim_eta(gaussian, z, levels.tolist(), normal, eta, clamp=False)
    torch.testing.assert_close(ours, x, atol=1e-5, rtol=1e-5)


def test_the_grid_of_ddpm_is_its_schedule() -> None:
    """sigma^2 + 1 = 1 / abar, and abar falls by 1 - beta_t at each timestep."""
    grid = solvers.ddpm_grid(1000)
    ratio = (grid[1:] ** 2 + 1) / (grid[:-1] ** 2 + 1)  # abar_t / abar_(t-1), from the last timestep down
    np.testing.assert_allclose(ratio, 1 - np.linspace(1e-4, 0.02, 1000)[:0:-1], rtol=1e-9)
    assert solvers.ddpm_grid(2).tolist() == pytest.approx([grid[0], grid[-1]])
    for wrong in (1, 1001):
        with pytest.raises(ValueError, match="2 to 1000 points"):
            solvers.ddpm_grid(wrong)


@pytest.mark.parametrize("points", [2, 18, 400])
def test_ddim_takes_the_timesteps_that_the_network_knows(points: int) -> None:
    levels = diffusion.grid(SamplerConfig(solver="ddim", points=points))
    assert len(levels) == points
    assert set(levels) <= set(solvers.ddpm_grid(1000))
    assert 75 < levels[0] <= 80
    assert levels[-1] == pytest.approx(0.01, rel=0.01)


def test_more_levels_than_ddpm_has_in_the_range_are_refused() -> None:
    grid = solvers.ddpm_grid(1000)
    known = int(((grid <= 2.0) & (grid >= 1.0)).sum())
    most = SamplerConfig(solver="ddim", points=known, sigma_min=1.0, sigma_max=2.0)
    assert len(diffusion.grid(most)) == known
    with pytest.raises(
        UserError, match=rf"{known} of DDPM's timesteps lie between sigma 1 and 2, fewer than points={known + 1}"
    ):
        diffusion.grid(most.model_copy(update={"points": known + 1}))


def test_draws_belong_to_the_index() -> None:
    indices, labels = np.array([7, 3, 2**40]), np.array([1, 0, 4])
    whole, part = Draw(indices, labels), Draw(indices[1:2], labels[1:2])
    first, second = whole.normal(3, 4), whole.normal(3, 4)
    np.testing.assert_array_equal(first.numpy(), noise(indices, (3, 4), SEED))  # what every method starts from
    assert torch.equal(part.normal(3, 4), first[1:2])
    assert torch.equal(part.normal(3, 4), second[1:2])
    assert not torch.isclose(first, second).any()
    assert len(whole) == 3
    assert whole.labels.tolist() == labels.tolist()


def test_a_network_sampler_counts_all_its_networks() -> None:
    first, second, decoder = torch.nn.Linear(4, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)
    second.weight = first.weight  # shared parameters are held once

    def images(batch: Draw) -> Tensor:
        x = batch.normal(3, 4, 4)
        return decoder(second(first(first(torch.cat([x, x]))).chunk(2)[0]))

    source = NetworkSampler(images, [first, second], resolution=4, classes=10, others=[decoder])
    made, nfe = source.sample(np.arange(5), np.arange(5))
    assert made.shape == (5, 4, 4, 3)
    assert nfe == 2 * 2 + 1  # twice on the doubled batch, once on the batch; the decoder is no network of the process
    assert source.parameters == 16 + 4 + 4 + 20


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"solver": "ddim", "churn": 3}, "by eta, not by churn"),
        ({"solver": "heun", "eta": 1}, "by churn, not by eta"),
        ({"sigma_min": 90}, "below sigma_max"),
        ({"points": 1}, "greater than or equal to 2"),
        ({"solver": "huen"}, "heun"),
    ],
)
def test_options_that_do_not_fit_are_refused(values: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        SamplerConfig.load(values, "sampler")
