"""Greedy growing: the noise that it is trained on and that its core is told of, and the size of its embedded preset."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from baselines.greedy import process
from baselines.greedy.net import Core, GreedyNet
from baselines.greedy.recipes import CoreConfig, Greedy, OuterConfig, build
from pagoda_bench import resources
from pagoda_bench.diffusion import edm
from pagoda_bench.tables import spec

CORE = CoreConfig(grid=4, width=16, depth=2, heads=2)
GROWN = OuterConfig(resolution=16, widths=(8, 16))


def test_images_of_unit_variance_make_it_the_preconditioning_of_edm() -> None:
    """With the data's deviation v is EDM's network with the sign turned, at every noise level (Karras et al. 2022, Table 1)."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 4, 4, dtype=torch.float64, generator=generator)
    weight = torch.randn(3, 3, dtype=torch.float64, generator=generator)
    sigma, none = torch.tensor([0.01, 0.2, 0.5, 3.0, 60.0], dtype=torch.float64), torch.zeros(5)
    ours = process.denoise(lambda z, *_: torch.einsum("oc,bchw->bohw", weight, z), x, sigma, none, 0.5)
    theirs = edm.denoise(lambda z, *_: -torch.einsum("oc,bchw->bohw", weight, z), x, sigma, none, 0.5)
    torch.testing.assert_close(ours, theirs)
    # and the loss of v is EDM's weighted loss
    image, noise = x.clamp(-1, 1), torch.randn(x.shape, dtype=x.dtype, generator=generator)
    loss = process.training_loss(lambda z, *_: 0.3 * z, image / 0.5, noise, -2 * (sigma / 0.5).log(), none, "v")
    torch.testing.assert_close(loss, edm.training_loss(lambda z, *_: -0.3 * z, image, none, noise, sigma, 0.5))


def test_the_core_is_told_the_noise_of_its_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """At another resolution the same logSNR of pixels means another one of tokens: that of their mean."""
    told: list[Tensor] = []
    conditions = Core.conditions
    monkeypatch.setattr(Core, "conditions", lambda self, logsnr, given: told.append(logsnr) or conditions(self, logsnr, given))
    logsnr, labels = torch.tensor([-2.0, 5.0]), torch.tensor([1, 2])
    for outer in (OuterConfig(resolution=4), GROWN):
        GreedyNet(CORE, outer)(torch.zeros(2, 3, outer.resolution, outer.resolution), logsnr, labels)
    torch.testing.assert_close(told[0], logsnr)
    noise = torch.randn(20000, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mean((1, 2))
    assert (told[1] - logsnr).tolist() == pytest.approx([-math.log(noise.var().item())] * 2, abs=0.05)


def test_what_the_embedded_preset_trains_fits_into_a_release() -> None:
    grid = spec.read(resources.folder("experiments") / "baselines.yaml")
    (row,) = spec.build(grid, spec.load_scale(grid, "embedded")).only(["greedy"]).rows
    assert isinstance(row.generator, Greedy)
    with torch.device("meta"):
        net = GreedyNet(row.generator.of.core, row.generator.of.outer)
    assert 2 * sum(p.numel() for p in net.parameters()) < 2.95e6  # bytes as float16


def test_the_embedded_preset_trains_on_the_noise_levels_of_the_edm_rows() -> None:
    grid = spec.read(resources.folder("experiments") / "baselines.yaml")
    scale = spec.load_scale(grid, "embedded")
    model = build(scale, 64).of  # type: ignore[attr-defined]
    for phase, edm_row, margin in ((model, scale.edm_model(), 0.02), (model.base, scale.teacher_model(), 0.2)):
        how = phase.process
        t = (torch.arange(10000, dtype=torch.float64) + 0.5) / 10000
        logsnr = process.logsnr_of(t, phase.outer.resolution, how.shift, how.logsnr_min, how.logsnr_max)
        log_sigma = math.log(how.deviation) - logsnr / 2
        assert log_sigma.mean().item() == pytest.approx(edm_row.p_mean, abs=margin)
        assert log_sigma.std().item() == pytest.approx(edm_row.p_std, rel=0.35)
