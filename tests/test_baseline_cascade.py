"""The cascade against a Gaussian data set whose every denoiser is known, and the augmentation against its formulas."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn
from toy_scale import toy_scale

from baselines.cascade import augment as cond
from baselines.cascade import recipes, sample, train
from baselines.cascade.net import SuperResolutionUNet
from baselines.cascade.presets import PRESETS
from baselines.cascade.recipes import Augmentation, Cascade, SuperResolution
from pagoda_bench import resources
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.diffusion.edm import karras_grid, preconditioning
from pagoda_bench.errors import UserError
from pagoda_bench.nets.unet import UNet
from pagoda_bench.recipes.base import walk
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.recipes.stages import EDM, Heun, TrainConfig, UNetConfig, Upsampled
from pagoda_bench.sampling.counting import count_evaluations
from pagoda_bench.sampling.network import Draw
from pagoda_bench.tables import spec

DATA = EmbeddedData(master=16)
SHORT = TrainConfig(steps=2, batch=4, warmup=1)
NET = UNetConfig(resolution=16, channels=16, encoder=(1, 2), attention=(8,))
LOW, DETAIL = 0.2, 0.1  # standard deviations of a low-resolution pixel, and of what a pixel adds to it at twice the size
TINY = Cascade(
    base=EDM(data=DATA, net=UNetConfig(resolution=2), train=SHORT),
    stages=(SuperResolution(data=DATA, train=SHORT, net=UNetConfig(resolution=4), low=2, filter="nearest"),),
    points=(64, 64),  # 18 make a Gaussian of this width 7 % too wide, 64 half a per cent
    levels=(0.0,),
)


def as_network(denoised: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """What a network says so that EDM's preconditioning makes `denoised` of it; x is the network's own, scaled input."""
    c_skip, c_out, c_in = (c.view(-1, 1, 1, 1) for c in preconditioning(sigma))
    return (denoised - c_skip * x / c_in) / c_out


class Base(nn.Module):
    """The ideal denoiser of low-resolution pixels ~ N(0, LOW^2), as a network."""

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        s = sigma.view(-1, 1, 1, 1)
        return as_network(LOW**2 / (LOW**2 + s**2) * x * (s**2 + 0.25).sqrt(), x, sigma)


class Upper(nn.Module):
    """The ideal denoiser of pixels = low pixel + N(0, DETAIL^2), given the low pixel under noise of the level it is told."""

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor, low: Tensor, level: Tensor) -> Tensor:
        s, told = sigma.view(-1, 1, 1, 1), level.view(-1, 1, 1, 1)
        state = x * (s**2 + 0.25).sqrt()
        keep = LOW**2 / (LOW**2 + told**2)
        mean, variance = keep * low * (told**2 + 0.25).sqrt(), keep * told**2  # of the low pixel, given what is seen of it
        block = nn.functional.avg_pool2d(state, 2).repeat_interleave(2, 2).repeat_interleave(2, 3)
        # The covariance of a block's four pixels has this eigenvalue along their mean, and DETAIL^2 across it.
        along = 4 * variance + DETAIL**2
        denoised = mean + along / (along + s**2) * (block - mean) + DETAIL**2 / (DETAIL**2 + s**2) * (state - block)
        return as_network(denoised, x, sigma)


@pytest.mark.parametrize("truncated", [False, True])
@pytest.mark.parametrize("level", [0.0, 0.05, 0.3, 1.0])
def test_with_ideal_models_a_cascade_makes_the_data_at_any_level(level: float, truncated: bool) -> None:
    """Means of blocks have variance LOW^2 + DETAIL^2 / 4, deviations from them 3/4 DETAIL^2, whatever noise is handed up."""
    indices = np.arange(1500)
    config = TINY.model_copy(update={"levels": (level,), "truncated": truncated})
    nets: list[nn.Module] = [Base(), Upper()]
    with torch.no_grad(), count_evaluations(nets[0]) as base, count_evaluations(nets[1]) as upper:
        x = sample.cascade(nets, config, Draw(indices, indices % 10))
    block = nn.functional.avg_pool2d(x, 2)
    rest = x - block.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert block.std().item() == pytest.approx(math.sqrt(LOW**2 + DETAIL**2 / 4), rel=0.03)
    assert rest.std().item() == pytest.approx(math.sqrt(0.75) * DETAIL, rel=0.03)
    above = int((karras_grid(64) > level).sum())
    assert base.calls == (2 * above if truncated and level else 127)
    assert upper.calls == 127


def test_a_level_that_the_stage_above_is_not_told_shows() -> None:
    """The test above can fail: noise at a level other than the one that is told makes too wide a distribution."""

    class Deaf(Upper):
        def forward(self, x: Tensor, sigma: Tensor, labels: Tensor, low: Tensor, level: Tensor) -> Tensor:
            silent = torch.full_like(level, 0.002)
            factor = (preconditioning(silent).c_in / preconditioning(level).c_in).view(-1, 1, 1, 1)
            return super().forward(x, sigma, labels, low * factor, silent)

    indices = np.arange(500)
    with torch.no_grad():
        x = sample.cascade([Base(), Deaf()], TINY.model_copy(update={"levels": (0.3,)}), Draw(indices, indices % 10))
    assert nn.functional.avg_pool2d(x, 2).std().item() > 1.5 * math.sqrt(LOW**2 + DETAIL**2 / 4)


def test_the_first_noise_is_that_of_all_methods_and_levels_change_nothing_below() -> None:
    """The base image under a sweep of levels is one and the same."""
    indices = np.arange(4)
    seen = []
    for level in (0.1, 0.2):
        normal = Draw(indices, indices)
        image = sample.handed_up(lambda x, s: 0 * x, lambda normal=normal: normal.normal(3, 2, 2), karras_grid(4), level, False)  # type: ignore[misc]
        seen.append(image / level)
    torch.testing.assert_close(seen[0], seen[1])
    assert abs(seen[0].std().item() - 1) < 0.3


def test_the_grid_is_cut_at_the_level() -> None:
    grid = karras_grid(18)
    for level in (0.01, 0.3, float(grid[5])):
        found = sample.cut(grid, level)
        assert found[-1] == level
        assert (np.diff(found) < 0).all()
        np.testing.assert_array_equal(found[:-1], grid[grid > level])


@pytest.mark.parametrize("size", [3, 5])
def test_the_blur_is_scipys_gaussian_filter(size: int) -> None:
    image = torch.randn(4, 3, 9, 9, dtype=torch.float64)
    sigma = torch.tensor([0.4, 0.5, 0.6, 1.3], dtype=torch.float64)
    found = cond.blur(image, sigma, size)
    for n in range(4):
        for c in range(3):
            want = ndimage.gaussian_filter(image[n, c].numpy(), sigma[n].item(), mode="mirror", radius=size // 2)
            np.testing.assert_allclose(found[n, c].numpy(), want, atol=1e-12)


def test_half_of_the_images_are_blurred_by_a_uniform_width() -> None:
    """A single bright pixel tells the width that it was blurred with: its neighbour over itself is exp(-1 / (2 sigma^2))."""
    torch.manual_seed(0)
    image = torch.zeros(20_000, 1, 5, 5)
    image[:, 0, 2, 2] = 1
    found = cond.blur_some(image, *cond.draw_blur(len(image), 0.5, 0.4, 0.6))
    ratio = (found[:, 0, 2, 3] / found[:, 0, 2, 2]).double()
    blurred = ratio > 0
    assert blurred.double().mean().item() == pytest.approx(0.5, abs=0.015)
    sigma = (-0.5 / ratio[blurred].log()).sqrt()
    assert sigma.min().item() == pytest.approx(0.4, abs=0.002)
    assert sigma.max().item() == pytest.approx(0.6, abs=0.002)
    quarters = torch.histc(sigma.float(), 4, 0.4, 0.6) / len(sigma)
    torch.testing.assert_close(quarters, torch.full((4,), 0.25), atol=0.015, rtol=0)


def test_levels_are_even_in_the_root_of_sigma() -> None:
    uniform = torch.linspace(0, 1, 11, dtype=torch.float64)
    found = cond.draw_levels(uniform, 1.5)
    np.testing.assert_allclose(found.numpy(), karras_grid(11, 0.002, 1.5)[::-1], rtol=1e-12)


def test_what_the_network_sees_has_unit_variance_at_every_level() -> None:
    torch.manual_seed(0)
    image, noise = 0.5 * torch.randn(64, 3, 16, 16), torch.randn(64, 3, 16, 16)
    level = torch.linspace(0.002, 2.0, 64)
    seen = cond.condition(cond.corrupt(image, level, noise), level, 32, "nearest")
    assert seen.shape == (64, 3, 32, 32)
    np.testing.assert_allclose(seen.flatten(1).std(1).numpy(), 1, atol=0.12)
    torch.testing.assert_close(seen[:, :, ::2, ::2] / seen[:, :, 1::2, 1::2], torch.ones(64, 3, 16, 16))


def test_training_images_are_corrupted_by_the_level_that_is_told() -> None:
    torch.manual_seed(0)
    small = torch.zeros(40, 3, 32, 32)
    seen, level = train.augmented(small, Augmentation(noise=0.8), np.random.default_rng(0), len(small))
    assert 0.002 <= level.min().item() < 0.02
    assert 0.6 < level.max().item() <= 0.8
    np.testing.assert_allclose(seen.flatten(1).std(1).numpy(), level.numpy(), rtol=0.1)
    plain, none = train.augmented(small, Augmentation(noise=0), np.random.default_rng(0), len(small))
    assert plain is small
    assert (none == 0.002).all()


@pytest.mark.parametrize("patch", [1, 2])
def test_without_its_new_inputs_the_network_is_the_unet(patch: int) -> None:
    torch.manual_seed(0)
    config = NET.model_copy(update={"patch": patch, "attention": (16 // patch,)})
    plain, ours = UNet(config), SuperResolutionUNet(config)
    state = {k: v + 0.05 * torch.randn_like(v) for k, v in plain.state_dict().items()}
    plain.load_state_dict(state)
    weight = state["input_blocks.0.0.weight"]
    wide = torch.cat([weight, torch.zeros_like(weight)], 1)
    silent = {k: torch.zeros_like(v) for k, v in ours.state_dict().items() if k.startswith("level_embed.")}
    ours.load_state_dict({**state, "input_blocks.0.0.weight": wide, **silent})
    x, low, sigma = torch.randn(2, 3, 16, 16), torch.randn(2, 3, 16, 16), torch.tensor([0.1, 5.0])
    labels, level = torch.tensor([1, 2]), torch.tensor([0.1, 0.2])
    with torch.no_grad():
        expected = plain(x, sigma, labels)
        torch.testing.assert_close(ours(x, sigma, labels, low, level), expected)
        ours.load_state_dict({**state, "input_blocks.0.0.weight": torch.cat([weight, weight], 1), **silent})
        assert (ours(x, sigma, labels, low, level) - expected).abs().max() > 0.01
        loud = {k: torch.ones_like(v) for k, v in silent.items()}
        ours.load_state_dict({**state, "input_blocks.0.0.weight": wide, **loud})
        other = ours(x, sigma, labels, low, 2 * level)
        assert (ours(x, sigma, labels, low, level) - other).abs().max() > 1e-4


@pytest.mark.slow
def test_the_whole_cascade_costs_what_it_is_matched_with(tmp_path: Path) -> None:
    """Base, then two stages with shares 0.5 and 1: their counted work and the base's sum to that of the matched model."""
    matched = EDM(data=DATA, net=NET, train=SHORT, seed=9)
    base = EDM(data=DATA, net=UNetConfig(resolution=4, channels=16, encoder=(1,), attention=()), train=SHORT)
    common = {"data": DATA, "train": SHORT, "match": matched}
    first = SuperResolution(
        net=NET.model_copy(update={"resolution": 8, "attention": ()}), low=4, share=0.5, after=base, **common
    )
    second = SuperResolution(net=NET, low=8, after=first, **common)
    whole, spent = 1.2e9, {"base": 3e8}
    folders = {recipe.key: tmp_path / recipe.key for recipe in (matched, base, first, second)}
    for recipe in (matched, base):
        folders[recipe.key].mkdir()
        facts = {"training_flops": whole if recipe is matched else spent["base"], "upstream_training_flops": {}}
        (folders[recipe.key] / "provenance.json").write_text(json.dumps(facts))
    steps = []
    for recipe in (first, second):
        context = StageContext.for_test(folders[recipe.key], tmp_path / f"work-{recipe.key}", folders)
        train.run(recipe, context)
        upstream = {f"edm/{base.key}": spent["base"]}
        if recipe is second:
            upstream[f"super-resolution/{first.key}"] = spent["first"]
        facts = {"training_flops": context.facts["training_flops"], "upstream_training_flops": upstream}
        (folders[recipe.key] / "provenance.json").write_text(json.dumps(facts))
        spent["first" if recipe is first else "second"] = context.facts["training_flops"]
        steps.append(context.facts["training_flops"] / context.facts["steps"])
    assert spent["base"] + spent["first"] == pytest.approx(0.5 * whole, abs=steps[0] / 2)
    assert sum(spent.values()) == pytest.approx(whole, abs=steps[1] / 2)


def test_a_sweep_of_levels_trains_nothing_again() -> None:
    one, other = TINY.at_levels(0.1), TINY.at_levels([0.7])
    assert (one.levels, other.levels) == ((0.1,), (0.7,))
    assert one.stages[0].key == other.stages[0].key == TINY.stages[0].key


def planned(name: str, scale: str) -> list[spec.Row]:
    grid = spec.read(resources.folder("experiments") / f"{name}.yaml")
    return [row for row in spec.build(grid, spec.load_scale(grid, scale)).rows if isinstance(row.generator, Cascade)]


def trained(row: spec.Row) -> set[str]:
    return {recipe.key for recipe in walk(row.scores[0]) if hasattr(recipe, "train")}


@pytest.mark.parametrize("name", ["smoke", "embedded"])
def test_every_row_of_the_sweep_is_of_the_one_cascade_of_the_baselines(name: str) -> None:
    swept, (cascade,) = planned("augmentation", name), planned("baselines", name)
    assert len(trained(cascade)) > 2
    assert all(trained(row) == trained(cascade) for row in swept)
    how = {(row.generator.truncated, *row.generator.levels) for row in swept}  # type: ignore[union-attr]
    assert len(how) == len(swept) == 11
    assert cascade.generator in [row.generator for row in swept], "the baselines' own level is one of them"
    for row in swept:  # what a label and the figure say is what is sampled
        level = float(row.label.rpartition("= ")[2])
        assert set(row.generator.levels) == {level}  # type: ignore[union-attr]
        assert row.generator.truncated == row.label.startswith("Truncated") == ("truncated" in row.system)  # type: ignore[union-attr]
    (plot,) = spec.read(resources.folder("experiments") / "augmentation.yaml").plots
    levels = {row.row: row.generator.levels[0] for row in swept}  # type: ignore[union-attr]
    assert [levels[row] for row in plot.rows] == list(plot.over)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"levels": [1.5]}, "knows 0.002 to 1"),
        ({"levels": [0.1, 0.1]}, "1 stages take 2 points and 1 levels"),
        ({"stages": []}, "at least one"),
        ({"leves": [0.1]}, "levels"),
        ({"base": EDM(data=DATA, net=UNetConfig(resolution=1), train=SHORT)}, "wants 2 px, and gets 1"),
    ],
)
def test_a_cascade_that_does_not_fit_is_refused_in_one_line(changes: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        Cascade.load({**{name: getattr(TINY, name) for name in Cascade.model_fields}, **changes}, "methods.cascade")
    assert "\n" not in str(refused.value)


def test_the_row_is_built_from_the_scale() -> None:
    stage = {"net": {"channels": 16, "encoder": [1, 2], "attention": [8]}, "share": 0.3}
    scale = toy_scale(cascade={"stages": [stage], "levels": 0.2, "truncated": True})
    found = recipes.build(scale, 16)
    assert isinstance(found, Cascade)
    assert found.base == scale.teacher_model()
    assert (found.resolution, found.levels, found.truncated) == (16, (0.2,), True)
    assert found.stages[0].match == scale.work_of(16)
    assert found.stages[0].after == found.base
    assert found.stages[0].share == 1  # the last stage spends what is left
    floor = recipes.floor(scale, 16)
    assert floor == Upsampled(of=Heun(of=scale.teacher_model(), points=3), to=16, filter="bicubic")
    with pytest.raises(UserError, match="no stage makes 8 px"):
        recipes.build(toy_scale(cascade={"stages": [{**stage, "net": {**stage["net"], "resolution": 16}}]}), 8)
    with pytest.raises(UserError, match=r"unknown preset 'papr'.*'paper'"):
        recipes.build(toy_scale(cascade={"preset": "papr"}), 16)


@pytest.mark.parametrize("name", PRESETS)
def test_the_networks_of_every_preset_can_be_built(name: str) -> None:
    assert {"smoke", "embedded", "embedded-32", "cifar10", "paper"} == set(PRESETS)
    for stage in PRESETS[name]["stages"]:
        with torch.device("meta"):
            net = SuperResolutionUNet(UNetConfig.model_validate(stage["net"]))
        Augmentation.model_validate(stage.get("augment", {}))
        size = sum(p.numel() for p in net.parameters())
        assert (300e6 if name == "paper" else 1e5) < size < (330e6 if name == "paper" else 3e6)
