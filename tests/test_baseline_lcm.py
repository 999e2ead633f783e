"""Latent consistency distillation against its formulas, a guided Gaussian whose ODE is solved on paper, and diffusers."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from baselines.lcm import functions as lcm
from baselines.lcm import train
from baselines.lcm.recipes import GuidedObjective
from pagoda_bench.diffusion import edm
from pagoda_bench.nets.unet import UNet, guidance_waves
from pagoda_bench.recipes.stages import UNetConfig

BETAS = (0.00085, 0.012)
OF = lcm.process(*BETAS)
# Latents z of class c ~ N(MEAN[c], STD^2) at unit variance; class 2 stands for no class.
MEAN, STD = torch.tensor([0.8, -0.5, 0.1], dtype=torch.float64), 0.6


def scheduler(name: str, **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers = pytest.importorskip("diffusers")
        schedule = {"beta_start": BETAS[0], "beta_end": BETAS[1], "beta_schedule": "scaled_linear", "clip_sample": False}
        return getattr(diffusers, name)(**schedule, **options)


def spread(value: Tensor) -> Tensor:
    return value.view(-1, 1, 1, 1)


def ideal(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
    """E[z | x, c] of the Gaussian above."""
    alpha, sigma = OF.at(t, x)
    gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
    return spread(MEAN[label].to(x.dtype)) + gain * (x - alpha * spread(MEAN[label].to(x.dtype)))


def guided_ideal(x: Tensor, t: Tensor, label: Tensor, w: Tensor) -> Tensor:
    return edm.guided(ideal(x, t, label), ideal(x, t, torch.full_like(label, 2)), w)


def flow(x: Tensor, t: Tensor, end: Tensor, label: Tensor, w: Tensor) -> Tensor:
    """The exact guided ODE. Both Gaussians have one deviation, so guidance moves the mean alone, to c + w (c - none), and
    distances from it scale, in x / alpha, with sqrt(STD^2 + (sigma / alpha)^2)."""
    alpha, sigma = OF.at(t, x)
    to_alpha, to_sigma = OF.at(end, x)
    mean = spread((MEAN[label] + w * (MEAN[label] - MEAN[2])).to(x.dtype))
    ratio = ((STD**2 + (to_sigma / to_alpha) ** 2) / (STD**2 + (sigma / alpha) ** 2)).sqrt()
    return to_alpha * (mean + ratio * (x / alpha - mean))


def test_the_boundary_factors_are_the_papers() -> None:
    t = torch.tensor([0, 1, 19, 999])
    c_skip, c_out = lcm.boundary(t)
    for i, at in enumerate((0.0, 10.0, 190.0, 9990.0)):
        assert c_skip[i].item() == pytest.approx(0.25 / (at**2 + 0.25), rel=1e-12)
        assert c_out[i].item() == pytest.approx(at / math.sqrt(at**2 + 0.25), rel=1e-12)
    x = torch.randn(4, 3, 2, 2)
    found = lcm.consistency(lambda x, s, y: 9 * torch.ones_like(x), x, torch.zeros(4, dtype=torch.int64), t, OF)
    assert torch.equal(found, x)  # f is the identity at t = 0, whatever the network says


def test_boundary_schedule_and_times_are_those_of_diffusers() -> None:
    theirs = scheduler("LCMScheduler")
    torch.testing.assert_close(OF.alpha**2, theirs.alphas_cumprod.double(), rtol=2e-4, atol=0)  # theirs is float32
    t = torch.arange(lcm.TIMES)
    both = torch.tensor([theirs.get_scalings_for_boundary_condition_discrete(int(i)) for i in t], dtype=torch.float64)
    torch.testing.assert_close(torch.stack(lcm.boundary(t), 1), both, rtol=1e-12, atol=0)
    for steps in (1, 2, 3, 4, 8, 50):
        theirs.set_timesteps(steps)
        assert lcm.times_of(steps, 50) == tuple(theirs.timesteps.tolist())


@given(steps=st.integers(1, 40), points=st.sampled_from([40, 50, 100, 1000]))
def test_times_fall_from_the_last_and_stay_on_the_grid(steps: int, points: int) -> None:
    found = lcm.times_of(steps, points)
    assert found[0] == 999
    assert len(found) == steps
    assert list(found) == sorted(set(found), reverse=True)
    assert set(found) <= set(lcm.grid(points).tolist())


@pytest.mark.parametrize("steps", [1, 2, 4, 8])
def test_sampling_is_that_of_diffusers(steps: int) -> None:
    """The same network outputs and the same noise."""
    theirs, shape = scheduler("LCMScheduler", prediction_type="sample"), (4, 3, 4, 4)
    theirs.set_timesteps(steps)

    def net(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        return torch.tanh(x) + spread(sigma.log()) / 10

    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for t in theirs.timesteps:
        z = lcm.denoised(net, x, t.expand(4), torch.zeros(4), OF)
        step = theirs.step(z, t, x, generator=generator)
        x = step.prev_sample
    draws = [torch.Generator().manual_seed(0), torch.Generator().manual_seed(1)]

    def normal() -> Tensor:
        return torch.randn(shape, generator=draws.pop(0) if len(draws) == 2 else draws[0])

    found = lcm.multistep(lambda x, t: lcm.consistency(net, x, t, torch.zeros(4), OF), lcm.times_of(steps, 50), normal, OF)
    torch.testing.assert_close(found, step.denoised, rtol=1e-4, atol=1e-4)


def test_a_step_is_ddims_from_every_time_of_the_grid() -> None:
    theirs = scheduler("DDIMScheduler", set_alpha_to_one=False, timestep_spacing="trailing", prediction_type="sample")
    theirs.set_timesteps(50)
    x, z = torch.randn(2, 50, 3, 2, 2)
    start, end = train.times(50, (np.arange(50) + 0.5) / 50)
    assert start.tolist() == theirs.timesteps.flip(0).tolist()
    assert end.tolist() == [0, *start[:-1].tolist()]
    expected = torch.cat([theirs.step(z[i : i + 1], t, x[i : i + 1]).prev_sample for i, t in enumerate(start.tolist())])
    torch.testing.assert_close(lcm.ddim_step(x, z, start, end, OF), expected, rtol=1e-3, atol=1e-4)


def test_the_guided_step_is_the_papers_and_converges_to_the_exact_flow() -> None:
    """x + (1 + w) Psi(c) - w Psi(none), Psi the change of x in one step; its local error is of second order."""
    start, label = torch.tensor([999, 799, 599, 399, 199]), torch.tensor([0, 1, 0, 1, 0])
    w = torch.tensor([0.0, 0.5, 2.0, 7.0, 1.0], dtype=torch.float64)
    x = torch.randn(5, 3, 2, 2, dtype=torch.float64)
    errors = []
    for k in (20, 10):
        end = start - k
        found = lcm.ddim_step(x, guided_ideal(x, start, label, w), start, end, OF)
        psi = [lcm.ddim_step(x, ideal(x, start, c), start, end, OF) - x for c in (label, torch.full_like(label, 2))]
        torch.testing.assert_close(found, x + (1 + spread(w)) * psi[0] - spread(w) * psi[1])
        errors.append((found - flow(x, start, end, label, w)).abs().flatten(1).amax(1))
    ratio = errors[0] / errors[1]
    assert ratio.min() > 3.4
    assert ratio.max() < 4.6


def test_the_teacher_is_asked_with_and_without_the_label() -> None:
    """An EDM network that knows the Gaussian, in EDM's units, gives the guided mean."""

    class Net(nn.Module):
        def forward(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
            mean, deviation = 0.5 * spread(MEAN[labels]), 0.5 * STD
            total = spread(sigma**2 + 0.25).sqrt()
            noisy = x * total
            clean = mean + deviation**2 / (deviation**2 + spread(sigma) ** 2) * (noisy - mean)
            return (clean - 0.25 / total**2 * noisy) / (spread(sigma) * 0.5 / total)

    x, label = torch.randn(4, 3, 2, 2, dtype=torch.float64), torch.tensor([0, 1, 0, 1])
    t, w = torch.tensor([999, 500, 100, 0]), torch.tensor([0.0, 1.0, 3.0, 0.5], dtype=torch.float64)
    found = train.guided_by(Net(), x, t, label, w, 2, OF)
    torch.testing.assert_close(found, guided_ideal(x, t, label, w))


def test_w_is_embedded_by_the_published_formula() -> None:
    w, width = torch.tensor([0.0, 0.37, 7.5]), 256
    found = guidance_waves(w, width)
    for row, value in enumerate(w.double().tolist()):
        angles = [1000 * value * math.exp(-math.log(10000) * i / 127) for i in range(128)]
        expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
        assert found[row].tolist() == pytest.approx(expected, abs=1e-6)


def test_w_joins_the_time_as_in_diffusers() -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    net = UNet(UNetConfig(resolution=4, channels=16, encoder=(1,), attention=(), guidance=32))
    assert net.guidance_proj is not None
    nn.init.normal_(net.guidance_proj.weight)
    theirs = embeddings.TimestepEmbedding(16, 64, cond_proj_dim=32)
    first, last = net.time_embed[0], net.time_embed[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    theirs.linear_1, theirs.linear_2, theirs.cond_proj = first, last, net.guidance_proj
    seen: list[Tensor] = []
    net.time_embed.register_forward_hook(lambda module, args, output: seen.append(output))
    sigma, w = torch.tensor([0.3, 5.0]), torch.tensor([0.5, 1.5])
    net(torch.randn(2, 3, 4, 4), sigma, torch.tensor([0, 1]), w)
    torch.testing.assert_close(seen[0], theirs(net.time_waves(sigma, 2), guidance_waves(w, 32)))


def test_huber_is_the_square_near_zero_and_the_distance_far_away() -> None:
    a, b = torch.zeros(2, 3, 4, 4, dtype=torch.float64), torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    a[0], a[1] = 1e-6, 50.0
    assert lcm.huber(a, b, 1e-3).tolist() == pytest.approx([1e-12 / 2e-3, 50 - 1e-3], rel=1e-3)


class Small(nn.Module):
    """Three values an image, from them, noise level, label and w."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 3))

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor, w: Tensor) -> Tensor:
        t, c = sigma.log() / 4, labels.to(x.dtype)
        out: Tensor = self.layers(torch.cat([x.flatten(1), torch.stack([t, t.sin(), t.cos(), c, w], 1)], 1))
        return out.view(-1, 3, 1, 1)


@pytest.mark.slow
def test_distillation_finds_the_guided_flow_of_a_gaussian() -> None:
    """One evaluation lands where the guided ODE, solved on paper, does, for weak and strong guidance alike."""
    torch.manual_seed(0)
    rng, net, steps, choice = np.random.default_rng(0), Small(), 8000, GuidedObjective(points=50, decay=0)
    optimizer = torch.optim.Adam(net.parameters())

    def error(w: float) -> float:
        label, t = torch.arange(2000) % 2, torch.full((2000,), 999)
        x, weights = torch.randn(2000, 3, 1, 1), torch.full((2000,), w)
        with torch.no_grad():
            found = lcm.consistency(train.told(net, weights), x, t, label, OF)
        return float((found - flow(x, t, torch.zeros_like(t), label, weights)).square().mean().sqrt() / STD)

    before = {w: error(w) for w in (0.0, 1.0, 2.0)}
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
        label, w = torch.randint(2, (256,)), 2 * torch.rand(256)
        z = spread(MEAN[label].float()) + STD * torch.randn(256, 3, 1, 1)
        start, end = train.times(50, rng.uniform(size=256))
        ask: train.Teacher = lambda x, t, w, label=label: guided_ideal(x, t, label, w)  # type: ignore[misc]  # noqa: E731
        loss = train.losses(net, net, ask, z, torch.randn_like(z), label, start, end, w, OF, choice).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = {w: error(w) for w in before}
    assert min(before.values()) > 0.8
    assert max(after.values()) < 0.2, after


def test_grids_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="whole"):
        lcm.grid(30)
    with pytest.raises(ValueError, match="1 to 50 steps"):
        lcm.times_of(51, 50)
