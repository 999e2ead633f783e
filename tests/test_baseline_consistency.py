"""Consistency models against closed forms, a Gaussian data set whose ODE is solved on paper, and diffusers' scheduler."""

from __future__ import annotations

import json
import math
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from baselines.consistency import functions as cm
from baselines.consistency import recipes, train
from baselines.consistency.presets import CD, CT, ICT, TWO_STEPS
from baselines.consistency.recipes import ConsistencyDistillation, ConsistencySampler, ConsistencyTraining, Objective
from baselines.consistency.sample import load
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.diffusion.consistency import boundary, consistency
from pagoda_bench.diffusion.edm import karras_grid
from pagoda_bench.errors import UserError
from pagoda_bench.nets.features import save_half
from pagoda_bench.nets.unet import UNet
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.recipes.stages import EDM, TrainConfig, UNetConfig

MEAN, STD = 0.3, 0.4
DATA = EmbeddedData(master=16)
NET = UNetConfig(resolution=8, channels=16, encoder=(1, 2), attention=(4,))
TEACHER = EDM(data=DATA, net=NET, train=TrainConfig(steps=1))
SHORT = TrainConfig(steps=3, batch=4, warmup=1)
NO_LABELS = torch.zeros(1, dtype=torch.int64)


def ideal(x: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser of data ~ N(MEAN, STD^2)."""
    return MEAN + STD**2 / (STD**2 + sigma.view(-1, 1, 1, 1) ** 2) * (x - MEAN)


def flow(x: Tensor, sigma: Tensor | float) -> Tensor:
    """Its exact consistency function: distances from the mean scale with the standard deviation, down to sigma 0.002."""
    sigma = torch.as_tensor(sigma, dtype=x.dtype).view(-1, 1, 1, 1)
    return MEAN + (x - MEAN) * ((STD**2 + 0.002**2) / (STD**2 + sigma**2)).sqrt()


class AsNetwork(nn.Module):
    """A network whose consistency function is `flow`: c_skip and c_out undone."""

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        c = [v.view(-1, 1, 1, 1) for v in boundary(sigma)]
        return (flow(x / c[2], sigma) - c[0] * x / c[2]) / c[1].clamp(min=1e-12)


class Small(nn.Module):
    """Two values an image, from them and the noise level."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        t = sigma.log()[:, None] / 4
        out: Tensor = self.layers(torch.cat([x.flatten(1), t, t.sin(), t.cos(), (2 * t).sin()], 1))
        return out.view(-1, 2, 1, 1)


def squared(a: Tensor, b: Tensor) -> Tensor:
    return (a - b).square().flatten(1).mean(1)


# sigma, c_skip, c_out as diffusers 0.42.1's CMStochasticIterativeScheduler.get_scalings_for_boundary_condition has them.
SCALINGS = [
    (0.002, 1.0, 0.0),
    (0.5, 0.5020039999678717, 0.35213917703090064),
    (1.3823679566485092, 0.11598690707035052, 0.46950843811480003),
    (80.0, 3.90629272263522e-05, 0.49997773490522646),
]


@pytest.mark.parametrize(("sigma", "c_skip", "c_out"), SCALINGS)
def test_the_boundary_factors_are_the_published_ones(sigma: float, c_skip: float, c_out: float) -> None:
    found = boundary(torch.tensor(sigma, dtype=torch.float64))
    assert found.c_skip.item() == pytest.approx(c_skip, rel=1e-12)
    assert found.c_out.item() == pytest.approx(c_out, rel=1e-12, abs=1e-15)
    assert found.c_in.item() == pytest.approx(1 / math.hypot(sigma, 0.5), rel=1e-12)


def test_at_the_lowest_level_f_is_the_identity_whatever_the_network_says() -> None:
    x = torch.randn(5, 3, 4, 4)
    found = consistency(lambda x, s, y: 100 * torch.ones_like(x), x, torch.full((5,), 0.002, dtype=torch.float64), NO_LABELS)
    torch.testing.assert_close(found, x)


@pytest.mark.parametrize(("solver", "order"), [("heun", 2), ("euler", 1)])
def test_a_step_of_the_teacher_converges_to_the_exact_flow(solver: str, order: int) -> None:
    """The local error is one order higher than the method's: halving the step divides it by 2^(order + 1)."""
    x = torch.randn(4, 2, 1, 1, dtype=torch.float64) * 2
    high = torch.tensor([2.0, 1.0, 0.7, 0.3], dtype=torch.float64)
    errors = []
    for step in (0.1, 0.05):
        low = high * (1 - step)
        exact = MEAN + (x - MEAN) * ((STD**2 + low**2) / (STD**2 + high**2)).sqrt().view(-1, 1, 1, 1)
        errors.append((cm.teacher_step(ideal, x, high, low, solver) - exact).abs().amax().item())  # type: ignore[arg-type]
    assert errors[0] / errors[1] == pytest.approx(2 ** (order + 1), rel=0.25)


def test_a_step_without_a_teacher_keeps_the_noise() -> None:
    image, noise = torch.randn(2, 4, 3, 8, 8, dtype=torch.float64)
    high, low = torch.tensor([80.0, 3, 1, 0.1], dtype=torch.float64), torch.tensor([60.0, 2, 0.5, 0.002], dtype=torch.float64)
    x = image + high.view(-1, 1, 1, 1) * noise
    torch.testing.assert_close(cm.data_step(x, image, high, low), image + low.view(-1, 1, 1, 1) * noise)


def test_the_loss_of_the_exact_function_vanishes_as_the_grid_refines() -> None:
    """With the exact flow as student, target and teacher, the loss is the squared local error of Heun's step: O(h^6)."""
    image = MEAN + STD * torch.randn(2000, 2, 1, 1, dtype=torch.float64)
    lower: train.Lower = lambda x, image, high, low, _: cm.teacher_step(ideal, x, high, low, "heun")  # noqa: E731
    found = []
    for points in (161, 321):  # level 80 of 160 intervals is level 160 of 320
        torch.manual_seed(0)
        at = torch.full((2000,), points // 2)
        grid = torch.from_numpy(karras_grid(points))
        loss = train.losses(
            AsNetwork(),
            AsNetwork(),
            lower,
            squared,
            image,
            torch.randn_like(image),
            NO_LABELS,
            grid[at],
            grid[at + 1],
            "uniform",
        )
        found.append(loss.mean().item())
    assert found[0] < 1e-9
    assert found[0] / found[1] == pytest.approx(2**6, rel=0.25)


def test_pseudo_huber_is_the_square_near_zero_and_the_length_far_away() -> None:
    a, b = torch.zeros(2, 3, 4, 4, dtype=torch.float64), torch.zeros(2, 3, 4, 4, dtype=torch.float64)
    a[0, 0, 0, 0], a[1] = 1e-6, 50.0
    c = cm.huber_constant(0.00054, (3, 32, 32))
    assert c == pytest.approx(0.0299, abs=5e-5)  # 0.00054 sqrt(3072)
    found = cm.pseudo_huber(a, b, c)
    assert found[0].item() == pytest.approx(1e-12 / (2 * c), rel=1e-3)
    assert found[1].item() == pytest.approx(50 * math.sqrt(48) - c, rel=1e-6)


@pytest.mark.parametrize(
    ("schedule", "first", "last", "expected"),
    [
        ("fixed", 18, 99, {0: 18, 799: 18}),
        ("sqrt", 2, 200, {0: 2, 799_999: 201}),
        # K' = floor(800 / (log2(128) + 1)) = 100: doubled every 100 steps
        ("exponential", 10, 1280, {0: 11, 99: 11, 100: 21, 350: 81, 699: 641, 700: 1281, 799: 1281}),
    ],
)
def test_the_number_of_levels_follows_its_formula(schedule: str, first: int, last: int, expected: dict[int, int]) -> None:
    steps = 800_000 if schedule == "sqrt" else 800
    assert {k: cm.points_at(k, steps, schedule, first, last) for k in expected} == expected


@given(
    steps=st.integers(1, 5000),
    first=st.integers(2, 20),
    factor=st.integers(1, 100),
    schedule=st.sampled_from(["sqrt", "exponential"]),
)
def test_the_number_of_levels_never_falls_nor_leaves_its_bounds(steps: int, first: int, factor: int, schedule: str) -> None:
    found = [cm.points_at(k, steps, schedule, first, first * factor) for k in range(0, steps, max(1, steps // 50))]
    assert found == sorted(found)
    assert found[0] >= 2
    assert found[-1] <= first * factor + 1


def test_the_targets_decay_starts_at_its_value_and_rises_with_the_levels() -> None:
    assert cm.target_decay(points=3, first=2, start=0.95) == pytest.approx(0.95)
    assert cm.target_decay(points=201, first=2, start=0.95) == pytest.approx(0.95 ** (2 / 200))


def test_intervals_are_drawn_as_the_lognormal_noise_falls_into_them() -> None:
    grid = karras_grid(21)
    chances = cm.lognormal_probabilities(grid, -1.1, 2.0)
    drawn = np.exp(np.random.default_rng(0).normal(-1.1, 2.0, 400_000))
    inside = drawn[(drawn > grid[-1]) & (drawn < grid[0])]
    counted = np.histogram(inside, bins=grid[::-1])[0][::-1] / len(inside)
    np.testing.assert_allclose(chances, counted, atol=0.003)
    even = (np.arange(100_000) + 0.5) / 100_000
    np.testing.assert_allclose(np.bincount(cm.pick(chances, even), minlength=20) / 100_000, chances, atol=2e-5)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["cd", "ict"])
def test_training_finds_the_exact_flow_of_a_gaussian(method: str) -> None:
    """One evaluation from any level lands where the ODE, solved on paper, does; untrained, the same network is far off."""
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    net, steps = Small(), 800
    optimizer = torch.optim.Adam(net.parameters())
    improved = {**ICT["embedded"]["objective"]}
    choice = Objective(first=18, decay=0) if method == "cd" else Objective.model_validate(improved)
    distance: train.Distance = partial(cm.pseudo_huber, c=cm.huber_constant(choice.huber, (2,)))
    lower: train.Lower = lambda x, image, high, low, _: cm.data_step(x, image, high, low)  # noqa: E731
    if method == "cd":
        distance = squared
        lower = lambda x, image, high, low, _: cm.teacher_step(ideal, x, high, low, "heun")  # noqa: E731

    def error(sigma: float) -> float:
        x = MEAN + math.hypot(STD, sigma) * torch.randn(2000, 2, 1, 1)
        with torch.no_grad():
            found = consistency(net, x, torch.full((2000,), sigma, dtype=torch.float64), NO_LABELS)
        return float((found - flow(x, sigma)).square().mean().sqrt() / STD)

    before = {sigma: error(sigma) for sigma in (0.3, 1.0, 5.0, 80.0)}
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 3e-3 * 0.5 * (1 + math.cos(math.pi * step / steps))
        image = MEAN + STD * torch.randn(256, 2, 1, 1)
        points = cm.points_at(step, steps, choice.schedule, choice.first, choice.last)
        high, low = train.levels(points, 256, choice, rng)
        loss = train.losses(
            net, net, lower, distance, image, torch.randn_like(image), NO_LABELS, high, low, choice.weight
        ).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    after = {sigma: error(sigma) for sigma in before}
    assert before[80.0] > 1
    assert max(after.values()) < 0.15, after


def test_sampling_is_that_of_diffusers() -> None:
    """Two steps of their scheduler from the same network outputs and the same noise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        diffusers = pytest.importorskip("diffusers")
        scheduler = diffusers.CMStochasticIterativeScheduler()
    scheduler.set_timesteps(timesteps=[22, 0])

    def net(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        return torch.tanh(x) + sigma.log().view(-1, 1, 1, 1) / 10

    z = 80 * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x, generator = z, torch.Generator().manual_seed(1)
    for sigma, t in zip(scheduler.sigmas, scheduler.timesteps, strict=False):
        scaled = scheduler.scale_model_input(x, t)
        x = scheduler.step(net(scaled, sigma.expand(4), NO_LABELS), t, x, generator=generator).prev_sample
    ours = torch.Generator().manual_seed(1)
    levels = (80.0, TWO_STEPS["cd"])
    assert scheduler.sigmas[:2].tolist() == pytest.approx(levels)
    found = cm.multistep(
        lambda x, s: consistency(net, x, s, NO_LABELS), z, levels, lambda: torch.randn(4, 3, 8, 8, generator=ours)
    )
    torch.testing.assert_close(found, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize("levels", [(), (1.0, 2.0), (80.0, 80.0), (80.0, 0.002)])
def test_levels_that_do_not_fall_are_refused(levels: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="must fall"):
        cm.multistep(lambda x, s: x, torch.zeros(1, 1, 1, 1), levels, lambda: torch.zeros(1, 1, 1, 1))


def saved_teacher(tmp_path: Path) -> Path:
    """A teacher with weights in which no branch is at its initial zero, as a trained one."""
    folder = tmp_path / "teacher"
    folder.mkdir()
    torch.manual_seed(5)
    state = {k: v + 0.02 * torch.randn_like(v) for k, v in UNet(NET).state_dict().items()}
    save_half(state, folder / "model.safetensors")
    return folder


@pytest.mark.slow
def test_the_student_starts_from_its_teacher_and_costs_what_it_should(tmp_path: Path) -> None:
    """A learning rate of zero leaves the teacher's weights; a step is six forward passes of work, and `match` fills up."""
    matched = ConsistencyTraining(data=DATA, net=NET, train=SHORT, seed=9)
    still = SHORT.model_copy(update={"lr": 0.0})
    student = ConsistencyDistillation(data=DATA, teacher=TEACHER, train=still, match=matched)
    teacher, other = saved_teacher(tmp_path), tmp_path / "other"
    other.mkdir()
    with FlopCounterMode(display=False) as counter:
        UNet(NET)(torch.zeros(4, 3, 8, 8), 1.0, torch.zeros(4, dtype=torch.int64))
    for folder, flops in ((teacher, 1e9), (other, 5e9)):
        facts = {"training_flops": flops, "upstream_training_flops": {}}
        (folder / "provenance.json").write_text(json.dumps(facts))
    context = StageContext.for_test(tmp_path / "out", tmp_path / "work", {TEACHER.key: teacher, matched.key: other})
    train.run(student, context)
    step = context.facts["training_flops"] / context.facts["steps"]
    assert context.facts["matched_flops"] == 4e9
    assert abs(context.facts["training_flops"] - 4e9) <= step / 2
    # Teacher 2 (Heun), target 1, student 1 and twice that backward, less the gradient at its input that nobody asks for.
    assert step / counter.get_total_flops() == pytest.approx(6, rel=0.05)
    made, given = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", teacher))
    assert made.keys() == given.keys()
    assert all(torch.equal(made[name], given[name]) for name in given)
    sampler = load(
        ConsistencySampler(of=student, levels=(5.0, 0.8)), StageContext(tmp_path, tmp_path, {student.key: tmp_path / "out"})
    )
    images, nfe = sampler.sample(np.arange(4), np.arange(4))
    assert images.shape == (4, 8, 8, 3)
    assert nfe == 3


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"objective": {"distance": "features"}}, "give both or neither"),
        ({"objective": {"schedule": "sqrt", "first": 20, "last": 10}}, "must grow"),
        ({"objective": {"decay": 0, "adaptive": True}}, "above 0"),
        ({"objective": {"levles": "uniform"}}, "levels"),
        ({"data": {"kind": "embedded", "master": 64}}, "its teacher's data"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused_in_one_line(changes: dict[str, object], words: str) -> None:
    fields = {"data": DATA, "teacher": TEACHER, "train": SHORT, **changes}
    with pytest.raises(UserError, match=words) as refused:
        ConsistencyDistillation.load(fields, "methods.cd")
    assert "\n" not in str(refused.value)


def test_every_preset_makes_a_recipe() -> None:
    for presets in (CD, CT, ICT):
        assert set(presets) == {"smoke", "embedded", "cifar10", "paper"}
        for values in presets.values():
            Objective.model_validate(values["objective"])
            TrainConfig.model_validate({"steps": 1, **values["train"]})
        # As published, there at the full scale; the small ones decay.
        rates = {name: values["train"].get("schedule", "cosine") for name, values in presets.items()}
        assert rates == {"smoke": "cosine", "embedded": "cosine", "cifar10": "cosine", "paper": "constant"}
    assert recipes.cd.facts.at == "all"  # type: ignore[attr-defined]
