"""The style-based GAN against its formulas: modulation image by image, closed forms of demodulation, a frozen stem."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from scipy import signal
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from toy_scale import context, make

from baselines.gan import train
from baselines.gan.layers import EqualLinear, enlarged, modulated_conv, normalised
from baselines.gan.net import StyleNet
from baselines.gan.recipes import Adversary, GanGrown, GanSampler, GanStem, StyleConfig
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.artifacts.store import Store
from pagoda_bench.errors import UserError
from pagoda_bench.nets.discriminator import Judge
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.recipes.stages import EDM, FeatureNet, TrainConfig, UNetConfig
from pagoda_bench.sampling.generators import load

DATA = EmbeddedData(master=32)
SHORT = TrainConfig(steps=3, batch=4, warmup=1)
FEATURES = FeatureNet(data=DATA, train=SHORT, width=8, resolution=32)
SMALL = StyleConfig(channels=(8, 8), layers=(1, 2), latent=6, width=12)
COMMON: dict[str, Any] = {"data": DATA, "train": SHORT, "features": FEATURES, "adversary": Adversary(width=8)}
STEM = GanStem(net=SMALL, **COMMON)
GROWN = GanGrown(base=STEM, channels=6, layers=1, **COMMON)
TOP = GanGrown(base=GROWN, channels=4, layers=1, **COMMON)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """With the feature network, the stem and the block above it."""
    found = Store(tmp_path_factory.mktemp("gan") / "store")
    make(found, [GROWN])
    return found


def made(store: Store, recipe: GanStem | GanGrown) -> Path:
    artifact = store.find(recipe)
    assert artifact is not None
    return artifact.path / train.WEIGHTS


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("kernel", [1, 3])
def test_modulation_is_a_kernel_for_each_image(kernel: int, demodulate: bool) -> None:
    """Equations 1 and 3 of 1912.04958 as they are written: scaled weights, their norm, one convolution an image."""
    x, weight, style = normal(3, 5, 7, 6), normal(4, 5, kernel, kernel, seed=1), normal(3, 5, seed=2)
    for image, s, y in zip(x, style, modulated_conv(x, weight, style, demodulate=demodulate), strict=True):
        own = torch.empty_like(weight)
        for o, i in np.ndindex(4, 5):
            own[o, i] = s[i] * weight[o, i]
        if demodulate:
            for o in range(4):
                own[o] /= (sum(float(v) ** 2 for v in own[o].flatten()) + 1e-8) ** 0.5
        torch.testing.assert_close(y, F.conv2d(image[None], own, padding=kernel // 2)[0], rtol=1e-10, atol=1e-10)


def test_demodulated_kernels_have_norm_one_whatever_the_style() -> None:
    """Seen by impulses: what one place of each input channel adds to a channel, squared and summed, is its kernel's norm."""
    weight, style = normal(4, 6, 3, 3), normal(1, 6, seed=1)
    impulses = torch.zeros(6, 6, 5, 5, dtype=torch.float64)
    impulses[torch.arange(6), torch.arange(6), 2, 2] = 1
    for factor in (1.0, 100.0):
        seen = modulated_conv(impulses, weight, factor * style.expand(6, -1))
        torch.testing.assert_close(seen.square().sum((0, 2, 3)), torch.ones(4, dtype=torch.float64), rtol=1e-6, atol=0)
    plain = modulated_conv(impulses, weight, style.expand(6, -1), demodulate=False)
    expected = (weight.square().sum((2, 3)) * style.square()).sum(1)
    torch.testing.assert_close(plain.square().sum((0, 2, 3)), expected)


def test_white_noise_keeps_its_variance() -> None:
    """Independent input of variance 1 comes out with variance 1 inside the image; 4 standard errors of the estimate."""
    x, weight, style = normal(40, 8, 18, 18), normal(6, 8, 3, 3, seed=1), normal(40, 8, seed=2)
    inside = modulated_conv(x, weight, style)[:, :, 1:-1:3, 1:-1:3]  # places whose kernels do not overlap
    variance = inside.square().mean((0, 2, 3))
    count = inside[:, 0].numel()
    assert (variance - 1).abs().max() < 4 * (2 / count) ** 0.5


def test_layers_start_with_unit_gain_and_learn_at_their_rate() -> None:
    torch.manual_seed(0)
    x = torch.randn(4000, 64)
    for rate in (1.0, 0.01):
        layer = EqualLinear(64, 32, bias=1.0, rate=rate)
        y = layer(x).detach()
        assert float(y.var(0).mean()) == pytest.approx(1, abs=0.1)
        torch.testing.assert_close(y.mean(0), torch.ones(32), atol=0.1, rtol=0)
        before = y[:8].clone()
        with torch.no_grad():  # the same step of an optimiser moves the output `rate` times as far
            layer.weight += 1
        moved = layer(x[:8]).detach() - before
        torch.testing.assert_close(moved, (rate * x[:8].sum(1) / 8)[:, None].expand_as(moved), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(normalised(x).square().mean(1), torch.ones(4000))


def test_enlarging_is_stylegan2s_filter() -> None:
    x = normal(1, 1, 6, 6)
    spread = np.zeros((12, 12))
    spread[::2, ::2] = x[0, 0].numpy()
    taps = np.outer([1, 3, 3, 1], [1, 3, 3, 1]) / 16
    expected = signal.convolve2d(spread, taps, mode="full")[1:-2, 1:-2]
    np.testing.assert_allclose(enlarged(x)[0, 0].numpy()[2:-2, 2:-2], expected[2:-2, 2:-2], atol=1e-12)


def test_a_network_in_two_parts_is_the_network() -> None:
    torch.manual_seed(0)
    net, z, labels = StyleNet(SMALL), torch.randn(5, 6), torch.arange(5)
    whole = net(z, labels)
    assert whole.shape == (5, 3, 8, 8)
    torch.testing.assert_close(net.finish(net.trunk(net.mapping(z, labels), 1), 1), whole, rtol=0, atol=0)
    torch.testing.assert_close(train.generate(net, z, labels, 1), whole, rtol=0, atol=0)
    assert (net(z, labels + 1) - whole).abs().flatten(1).amax(1).min() > 1e-3  # the class enters
    assert (net(z.flip(0), labels) - whole)[:2].abs().flatten(1).amax(1).min() > 1e-3  # and the latent
    for i in range(5):  # alone as in the batch
        torch.testing.assert_close(net(z[i : i + 1], labels[i : i + 1])[0], whole[i], rtol=1e-4, atol=1e-5)


def test_a_new_block_starts_from_the_image_below_enlarged(store: Store) -> None:
    net = StyleNet(GROWN.style)
    assert train.start_from(net, STEM.style, made(store, STEM)) == 2
    base, z, labels = StyleNet(STEM.style), torch.randn(4, 6), torch.arange(4)
    base.load_state_dict({k: v.float() for k, v in load_file(made(store, STEM)).items()})
    torch.testing.assert_close(net(z, labels), enlarged(base(z, labels)), rtol=0, atol=0)
    trained = {name for name, p in net.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in net.named_parameters() if name.startswith("blocks.2.")}


def test_what_lies_below_is_frozen_bit_by_bit(store: Store) -> None:
    below, above = load_file(made(store, STEM)), load_file(made(store, GROWN))
    assert {name for name in above if name not in below} == {n for n in above if n.startswith("blocks.2.")}
    for name, value in below.items():
        assert value.numpy().tobytes() == above[name].numpy().tobytes(), name
    assert above["blocks.2.to_rgb.weight"].abs().max() > 0, "the new block has learnt nothing"
    # The mean image of a class, too: what a sample shows at 8 px is in the network of 16 px as it was.
    net, base = StyleNet(GROWN.style), StyleNet(STEM.style)
    net.load_state_dict(above)
    base.load_state_dict(below)
    z, labels = torch.randn(3, 6), torch.arange(3)
    torch.testing.assert_close(net.trunk(net.mapping(z, labels), 2).image, base(z, labels), rtol=0, atol=0)


def test_a_generator_below_that_does_not_fit_is_refused(store: Store, tmp_path: Path) -> None:
    state = load_file(made(store, STEM))
    state.pop("blocks.1.convs.0.weight")
    save_file(state, tmp_path / "model.safetensors")
    net = StyleNet(GROWN.style)
    with pytest.raises(UserError, match=r"lacks blocks\.1\.convs\.0\.weight"):
        train.start_from(net, STEM.style, tmp_path / "model.safetensors")


def test_truncation_moves_towards_the_class(store: Store, tmp_path: Path) -> None:
    def images(psi: float, indices: list[int]) -> np.ndarray:
        ctx = context(store, [STEM], tmp_path / f"{psi}")
        found = load(GanSampler(of=STEM, truncation=psi), ctx).sample(np.array(indices), np.array([3] * len(indices)))
        assert found[1] == 1
        return found[0].astype(int)

    assert np.ptp(images(0.0, [4, 5, 6]), axis=0).max() == 0  # all the same
    spread = [np.ptp(images(psi, list(range(20))), axis=0).mean() for psi in (0.5, 1.0)]
    assert 0 < spread[0] < spread[1]
    net, z = StyleNet(SMALL), torch.randn(20_000, 6)
    label = torch.full((len(z),), 3)
    with torch.no_grad():
        w = net.mapping(z, label)
        centre = net.centres(torch.randn(20_000, 6))
        error = w.std(0) * (2 / len(z)) ** 0.5
        assert ((centre[3] - w.mean(0)).abs() < 5 * error + 1e-6).all()
        half = net.trunk(centre[3] + 0.5 * (w[:2] - centre[3]), 2).image
        torch.testing.assert_close(net(z[:2], label[:2], 0.5, centre), half, rtol=1e-4, atol=1e-5)


class Certain(Judge):
    """Logits far beyond the margin: the hinge loss is 0 from the first look."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.calls = 0

    def decide(self, seen: Any, labels: Tensor) -> Tensor:
        self.calls += 1
        return self.weight * (5.0 if self.calls % 2 else -5.0) * torch.ones(len(labels), 1)


def test_a_discriminator_that_is_certain_is_updated_once() -> None:
    for until, updates in ((0.0, 4), (0.5, 1)):
        recipe = STEM.model_copy(update={"adversary": Adversary(width=8, updates=4, until=until)})
        judge = Certain()
        optimizers = {"discriminator": torch.optim.Adam(judge.parameters())}
        step = train.Step(recipe, StyleNet(SMALL), 0, None, judge, optimizers, None)  # type: ignore[arg-type]
        maps = [torch.zeros(4, 1)]
        assert step._discriminator(maps, maps, torch.zeros(4), 7) == {"d": 0.0}
        assert int(step.tally.updates) == updates
        step._discriminator(maps, maps, torch.zeros(4), 0)  # the step that is counted makes all of them
        assert int(step.tally.updates) == updates + 4


def test_adaptive_updates_are_counted_as_they_were_made(store: Store, tmp_path: Path) -> None:
    """With a threshold that is always met, every step but the first makes one update of three: against a count of it all."""
    choice = Adversary(width=8, updates=3).model_copy(update={"until": 100.0})
    recipe = STEM.model_copy(update={"adversary": choice, "train": SHORT.model_copy(update={"steps": 5})})
    ctx = context(store, [FEATURES], tmp_path)
    whole: list[int] = []
    call = train.Step.__call__

    def counted(self: train.Step, index: int, rng: np.random.Generator) -> dict[str, float]:
        with FlopCounterMode(display=False) as counter:
            found = call(self, index, rng)
        whole.append(counter.get_total_flops())
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Step, "__call__", counted)
        train.stem(recipe, ctx)
    own = whole[-5:]  # those before find out what a step and an update cost
    assert ctx.facts["training_flops"] == sum(own)
    assert ctx.facts["discriminator_updates"] == (3 + 4 * 1) / 5
    assert own[0] > own[1] == own[4]


@pytest.mark.parametrize("loss", ["hinge_discriminator", "generator_loss"])
def test_an_update_that_is_not_finite_is_counted_and_averages_follow_what_was_applied(
    loss: str, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the second of three steps the loss of one network is not a number: that network stays, the other goes on."""
    spoilt, averaged, moved = False, [], []
    call, average, real = train.Step.__call__, train.EMA.update, getattr(train, loss)

    def step(self: train.Step, index: int, rng: np.random.Generator) -> dict[str, float]:
        nonlocal spoilt
        spoilt = index == 1
        nets = (self.net, self.judge)
        before = [[p.detach().clone() for p in net.parameters() if p.requires_grad] for net in nets]
        found = call(self, index, rng)
        after = [[p for p in net.parameters() if p.requires_grad] for net in nets]
        moved.append([not all(map(torch.equal, *pair)) for pair in zip(before, after, strict=True)])
        return found

    def update(self: train.EMA, net: torch.nn.Module, index: int) -> None:
        averaged.append(index)
        average(self, net, index)

    monkeypatch.setattr(train.Step, "__call__", step)
    monkeypatch.setattr(train.EMA, "update", update)
    monkeypatch.setattr(train, loss, lambda *given: real(*given) * (math.nan if spoilt else 1))
    ctx = context(store, [FEATURES], tmp_path)
    train.stem(STEM.model_copy(update={"train": SHORT.model_copy(update={"skips": 1})}), ctx)
    alone = loss == "hinge_discriminator"
    assert ctx.facts["skipped"] == 1
    assert moved[-3:] == [[True, True], [alone, False], [True, True]]
    assert averaged == ([0, 1, 2] if alone else [0, 2])


def test_all_levels_together_cost_what_they_are_matched_with(store: Store, tmp_path: Path) -> None:
    """Stem and two blocks with shares 0.4, 0.7 and 1: each within half a step of its own."""
    matched = EDM(data=DATA, net=UNetConfig(resolution=8), train=SHORT, seed=9)
    folders = {recipe.key: tmp_path / recipe.key for recipe in (matched,)}
    folders[matched.key].mkdir()
    whole, spent, upstream = 4e8, 0.0, {}
    (folders[matched.key] / "provenance.json").write_text(
        json.dumps({"training_flops": whole, "upstream_training_flops": {}}), encoding="utf-8"
    )
    features = store.find(FEATURES)
    assert features is not None
    folders[FEATURES.key] = features.path
    stem = STEM.model_copy(update={"match": matched, "share": 0.4})
    middle = GROWN.model_copy(update={"match": matched, "share": 0.7, "base": stem})
    top = TOP.model_copy(update={"match": matched, "share": 1.0, "base": middle})
    for recipe in (stem, middle, top):
        folders[recipe.key] = tmp_path / recipe.key
        ctx = StageContext.for_test(folders[recipe.key], tmp_path / f"work-{recipe.key}", folders)
        (train.stem if recipe is stem else train.grown)(recipe, ctx)  # type: ignore[arg-type]
        flops, steps = ctx.facts["training_flops"], ctx.facts["steps"]
        assert steps > 1
        spent += flops
        assert spent == pytest.approx(recipe.share * whole, abs=0.5 * flops / steps + 1)
        facts = {"training_flops": flops, "upstream_training_flops": upstream}
        (folders[recipe.key] / "provenance.json").write_text(json.dumps(facts), encoding="utf-8")
        upstream = {**upstream, f"{recipe.kind}/{recipe.key}": flops}
