"""Greedy growing: the process against closed forms, the core bit by bit, captions, growth, and the sizes of the presets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor
from toy_scale import toy_scale

from baselines.greedy import process, train
from baselines.greedy.net import GreedyNet, shard
from baselines.greedy.presets import PRESETS
from baselines.greedy.recipes import CoreConfig, Greedy, GreedyCore, GreedyGrown, OuterConfig, build
from baselines.training import steps_for
from pagoda_bench import resources
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.errors import UserError
from pagoda_bench.nets.features import save_half
from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.recipes.samplers import SamplerConfig
from pagoda_bench.recipes.stages import TrainConfig
from pagoda_bench.sampling import diffusion
from pagoda_bench.tables import spec

DATA = EmbeddedData(master=32)
SHORT = TrainConfig(steps=4, batch=4, warmup=1, lr=3e-3)
CORE = CoreConfig(grid=4, width=16, depth=2, heads=2)
LOW = GreedyCore(data=DATA, train=SHORT, core=CORE, outer=OuterConfig(resolution=8, patch=2))
GROWN = GreedyGrown(data=DATA, train=SHORT, base=LOW, outer=OuterConfig(resolution=16, widths=(8, 16)))
MEAN, STD = 0.3, 0.4


def run(recipe: Recipe, folder: Path, inputs: dict[str, Path] | None = None) -> tuple[dict[str, Tensor], StageContext]:
    ctx = StageContext.for_test(folder / recipe.key / "out", folder / recipe.key / "work", inputs)
    (train.core if isinstance(recipe, GreedyCore) else train.grown)(recipe, ctx)  # type: ignore[operator]
    return load_file(ctx.out / train.WEIGHTS), ctx


@pytest.fixture(scope="module")
def low(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], Path]:
    state, ctx = run(LOW, tmp_path_factory.mktemp("low"))
    return state, ctx.out


def of_core(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in state.items() if name.startswith("core.")}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"freeze": "always"}, True),
        ({"freeze": "until", "thaw_at": 2}, False),
        ({"freeze": "until", "thaw_at": 90}, True),
        ({"freeze": "never"}, False),
    ],
)
def test_a_frozen_core_keeps_its_bits(options: dict[str, Any], kept: bool, low: Any, tmp_path: Path) -> None:
    before, folder = low
    after, ctx = run(GROWN.model_copy(update=options), tmp_path, {LOW.key: folder})
    assert same(of_core(before), of_core(after)) == kept
    assert ctx.facts["core_parameters"] == sum(v.numel() for v in of_core(after).values())
    # What surrounds it has trained: the exit starts at zero.
    assert after["exit.weight"].abs().max() > 0
    assert after["up.1.1.in_layers.2.weight"].shape == (8, 16, 3, 3)


def test_the_work_of_a_core_that_thaws_is_counted_at_its_price(low: Any, tmp_path: Path) -> None:
    _, folder = low
    price = {}
    for freeze, at in (("always", 0), ("never", 0), ("until", 3)):
        recipe = GROWN.model_copy(update={"freeze": freeze, "thaw_at": at})
        price[freeze] = run(recipe, tmp_path, {LOW.key: folder})[1].facts["training_flops"] / 4
    assert price["always"] < price["never"]
    assert price["until"] * 4 == pytest.approx(3 * price["always"] + price["never"], rel=1e-12)


@given(st.integers(1, 10**6), st.integers(1, 10**6), st.integers(0, 500), st.floats(1e3, 1e12))
def test_the_number_of_steps_comes_nearest_to_the_work(flops: int, more: int, dearer_from: int, work: float) -> None:
    later = flops + more if dearer_from else flops

    def cost(steps: int) -> int:
        return min(steps, dearer_from) * flops + max(0, steps - dearer_from) * later if dearer_from else steps * flops

    steps = steps_for(work, flops, later, dearer_from)
    assert steps >= 1
    assert steps == 1 or abs(cost(steps) - work) <= later / 2 + 1e-6 * work


def test_a_core_that_is_not_whole_is_refused(low: Any, tmp_path: Path) -> None:
    before, folder = low
    other = {name: value.float() for name, value in before.items()}
    for change, words in [
        ({"core.place": None}, "lacks place"),
        ({"core.place": torch.zeros(1, 9, 16)}, r"place as \(1, 9, 16\), not \(1, 16, 16\)"),
        ({"core.blocks.7.qkv.bias": torch.zeros(3)}, "has blocks.7.qkv.bias, which the network does not"),
    ]:
        state = {name: value for name, value in {**other, **change}.items() if value is not None}
        save_half(state, tmp_path / train.WEIGHTS)
        net = GreedyNet(GROWN.core, GROWN.outer)
        with pytest.raises(UserError, match=words) as refused:
            train.start_from(net, tmp_path / train.WEIGHTS, octaves=False)
        assert "the core in" in str(refused.value)
    net = GreedyNet(GROWN.core, GROWN.outer)
    train.start_from(net, folder / train.WEIGHTS, octaves=False)
    assert same({k: v.half() for k, v in of_core(net.state_dict()).items()}, of_core(before))


def test_growth_by_octaves_keeps_the_levels_below(low: Any, tmp_path: Path) -> None:
    middle = GROWN.model_copy(update={"outer": OuterConfig(resolution=8, widths=(16,))})
    inner, ctx = run(middle, tmp_path, {LOW.key: low[1]})
    top = GreedyNet(CORE, GROWN.outer)
    fresh = {name: value.clone() for name, value in top.state_dict().items()}
    train.start_from(top, ctx.out / train.WEIGHTS, octaves=True)
    state = top.state_dict()
    for name, value in inner.items():
        outside = name.startswith(("entry", "exit", "norm"))
        assert torch.equal(state[name].half(), value) or outside, name
    assert all(torch.equal(state[name], fresh[name]) for name in state if name.startswith(("down.1", "up.1", "entry")))


def test_v_epsilon_and_image_turn_into_each_other() -> None:
    generator = torch.Generator().manual_seed(0)
    image, noise = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64, generator=generator)
    logsnr = torch.tensor([-12.0, -3.0, 0.0, 4.0, 13.0], dtype=torch.float64)
    z, v = process.noised(image, noise, logsnr)
    alpha, sigma = process.alpha_sigma(logsnr)
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones_like(alpha))
    torch.testing.assert_close((alpha**2 / sigma**2).log().flatten(), logsnr)
    torch.testing.assert_close(process.image_from_v(z, v, logsnr), image)
    torch.testing.assert_close(sigma * z + alpha * v, noise)
    wrong = torch.randn(v.shape, dtype=v.dtype, generator=generator)
    for loss, expected in (("v", v - wrong), ("epsilon", noise - (sigma * z + alpha * wrong))):
        found = process.training_loss(lambda *_: wrong, image, noise, logsnr, torch.zeros(5), loss)
        torch.testing.assert_close(found, expected.square().flatten(1).mean(1))


def ideal(z: Tensor, logsnr: Tensor, condition: Tensor) -> Tensor:
    """E[v | z] for data ~ N(MEAN, STD^2)."""
    alpha, sigma = process.alpha_sigma(logsnr)
    image = MEAN + alpha * STD**2 / (alpha**2 * STD**2 + sigma**2) * (z - alpha * MEAN)
    return alpha * (z - alpha * image) / sigma - sigma * image


@pytest.mark.parametrize("solver", ["heun", "ddim"])
def test_the_ideal_denoiser_of_a_gaussian_gives_the_gaussian(solver: Any) -> None:
    x = torch.randn(3, 3, 4, 4, dtype=torch.float64)
    sigma, none = torch.tensor([0.01, 1.0, 60.0], dtype=torch.float64), torch.zeros(3)
    s = sigma.view(-1, 1, 1, 1)
    torch.testing.assert_close(process.denoise(ideal, x, sigma, none), MEAN + STD**2 / (STD**2 + s**2) * (x - MEAN))
    torch.testing.assert_close(process.guided(ideal, x, sigma, none, none, 3.0), process.denoise(ideal, x, sigma, none))
    config = SamplerConfig(solver=solver, points=120 if solver == "heun" else 300, eta=float(solver == "ddim"), clamp=False)
    found = diffusion.draw(
        config,
        lambda x, sigma: process.denoise(ideal, x, sigma, none),
        lambda: torch.randn(16, 3, 16, 16, dtype=torch.float64),
    )
    assert found.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert found.std().item() == pytest.approx(STD, rel=0.06)


@pytest.mark.parametrize("resolution", [8, 32, 256])
def test_the_shift_is_what_averaging_pixels_takes_away(resolution: int) -> None:
    t = torch.linspace(0.05, 0.95, 19, dtype=torch.float64)
    shifted = process.logsnr_of(t, resolution, 32, -40, 40)
    # (resolution / 32)^2 pixels become one: the noise loses that factor in variance, and the plain cosine is left.
    averaged = shifted + math.log((resolution / 32) ** 2)
    plain = torch.log(torch.cos(math.pi * t / 2) ** 2 / torch.sin(math.pi * t / 2) ** 2)
    torch.testing.assert_close(averaged, plain, atol=1e-6, rtol=0)
    ends = process.logsnr_of(torch.tensor([0.0, 1.0], dtype=torch.float64), resolution, None, -9, 7)
    torch.testing.assert_close(ends, torch.tensor([7.0, -9.0], dtype=torch.float64))


@pytest.mark.parametrize(("preset", "billions"), [("paper-600m", 0.6), ("paper-2b", 2), ("paper-4b", 4), ("paper-8b", 8)])
def test_presets_have_the_size_of_their_name(preset: str, billions: float) -> None:
    values = PRESETS[preset]
    core = CoreConfig.model_validate(values["core"])
    with torch.device("meta"):
        net = GreedyNet(core, OuterConfig.model_validate({"resolution": 1024, **values["grown"]["outer"]}))
        shallow = GreedyNet(core, OuterConfig.model_validate({"resolution": 64, **values["low"]["outer"]}))
    total = sum(p.numel() for p in net.parameters())
    assert all(p.device.type == "meta" for p in net.parameters())
    assert total / 1e9 == pytest.approx(billions, rel=0.06)
    assert sum(p.numel() for p in net.core.parameters()) == sum(p.numel() for p in shallow.core.parameters()) > 0.7 * total


def test_a_sharded_network_gives_the_same(tmp_path: Path) -> None:
    """FSDP2 in a group of one process: every parameter is a sharded one, and the outputs are those of the whole network."""
    import torch.distributed as dist
    from torch.distributed.tensor import DTensor

    torch.manual_seed(0)
    net = GreedyNet(CORE, GROWN.outer)
    torch.nn.init.normal_(net.exit.weight)
    given = torch.randn(2, 3, 16, 16), torch.zeros(2), torch.tensor([1, 10])
    whole = net(*given).detach()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    try:
        sharded = shard(net)
        assert all(isinstance(p, DTensor) for p in sharded.parameters())
        found = sharded(*given)
        found.square().mean().backward()
        assert all(p.grad is not None for p in sharded.core.blocks.parameters())
        torch.testing.assert_close(found.detach(), whole)
    finally:
        dist.destroy_process_group()


def test_rows_of_the_method() -> None:
    toy = dict(build.facts.toy)  # type: ignore[attr-defined]
    chain = build(toy_scale(greedy={**toy, "match": "chain"}), 16)
    assert isinstance(chain, Greedy)
    assert isinstance(chain.of, GreedyGrown)
    assert isinstance(chain.of.base, GreedyCore)
    assert (chain.of.base.share, chain.of.share) == (0.25, 1.0)
    assert chain.of.match == toy_scale().work_of(16)
    scratch = build(toy_scale(greedy={**toy, "mode": "scratch"}), 16).of  # type: ignore[attr-defined]
    assert (scratch.base, scratch.freeze, scratch.core.width) == (None, "never", 32)
    thawed = build(toy_scale(greedy={**toy, "mode": "thawed", "thaw_at": 3}), 16).of  # type: ignore[attr-defined]
    assert (thawed.freeze, thawed.thaw_at) == ("until", 3)
    grid = spec.read(resources.folder("experiments") / "growing.yaml")
    rows = {row.row: row.generator for row in spec.build(grid, spec.load_scale(grid, "embedded")).rows}
    level, found = rows["octaves"].of, []  # type: ignore[union-attr]
    while isinstance(level, GreedyGrown):
        found.append((level.outer.resolution, level.outer.widths, round(level.share, 4)))
        level = level.base
    assert found == [(32, (64,), 1.0), (16, (), 0.625)]
    assert (level.outer.resolution, level.share) == (8, 0.25)
    process = {name: rows[name].of.process for name in ("frozen", "scratch")}  # type: ignore[union-attr]
    assert process["frozen"] == process["scratch"]
    assert (process["frozen"].shift, process["frozen"].deviation) == (32, 0.5)
    assert (level.process.shift, level.process.deviation) == (16, 0.5)
    assert (rows["thawed"].of.freeze, rows["thawed"].of.thaw_at) == ("until", 850)  # type: ignore[union-attr]
    base = build(toy_scale(greedy=toy), 8)
    assert (base.resolution, base.of.share) == (8, 1.0)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"mode": "froze"}, "'froze' is none of frozen"),
        ({"coer": {}}, "unknown key 'coer'"),
        ({"grown": {"outer": {"widths": [8]}}}, "needs 2 widths, there are 1"),
        ({"thaw_at": 3}, "give both or neither"),
        ({"mode": "thawed", "thaw_at": 0}, "give both or neither"),
        ({"process": {"deviation": 0}}, "deviation: .*greater than 0"),
        ({"preset": "embeded"}, "unknown preset 'embeded'"),
        ({"core": {"heads": 3}}, "cannot have 3 heads"),
        ({"core": {"text": {"encoder": "t5"}}}, "need a name"),
    ],
)
def test_wrong_values_are_refused_in_one_line(values: dict[str, Any], words: str) -> None:
    from baselines.sections import merged

    toy = dict(build.facts.toy)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=words):
        build(toy_scale(greedy=merged(toy, values)), 16)
    with pytest.raises(UserError, match="make 8 px, not 16"):
        GreedyNet(CORE, OuterConfig(resolution=16, patch=2))
