"""Real training steps with a value that is not finite put in at one place: what is applied, what follows, what is counted."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.errors import UserError
from pagoda_bench.pagoda import distill, steps, teacher
from pagoda_bench.pagoda.steps import Step
from pagoda_bench.recipes.losses import LossConfig
from pagoda_bench.recipes.stages import Distill
from pagoda_bench.training import features
from pagoda_bench.training.loop import EMA
from pagoda_bench.training.updates import LossScale
from tests.test_steps import FEATURES, PAIRS, SHORT, TEACHER, inputs_with_pairs

AT = 1  # the step that is spoilt, of three
TRAIN = SHORT.model_copy(update={"skips": 1, "schedule": "constant"})


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return inputs_with_pairs(tmp_path_factory.mktemp("upstream"))


class Spoilt(torch.autograd.Function):
    """Finite forward, infinite backward: an overflow that no loss shows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * math.inf


def spoil(x: Tensor, how: str) -> Tensor:
    found: Tensor = x * math.nan if how == "loss" else Spoilt.apply(x)
    return found


class Course:
    """What the steps of a training did: state before and after, whether the averages followed, updates of the scale."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.index = -1
        self.before: dict[int, dict[str, list[Tensor]]] = {}
        self.after: dict[int, dict[str, list[Tensor]]] = {}
        self.averaged: list[int] = []
        self.scaled: list[int] = []
        self.counting = True
        step, average, scale = Step.__call__, EMA.update, LossScale.update

        def call(mine: Step, index: int, rng: np.random.Generator) -> dict[str, float]:
            self.index = -1 if self.counting else index  # the first one is counted and undone
            self.counting = False
            self.before[self.index] = state_of(mine)
            found = step(mine, index, rng)
            self.after[self.index] = state_of(mine)
            return found

        def update(mine: EMA, net: nn.Module, index: int) -> None:
            self.averaged.append(index)
            average(mine, net, index)

        def tell(mine: LossScale, finite: bool) -> None:
            self.scaled.append(self.index)
            scale(mine, finite)

        monkeypatch.setattr(Step, "__call__", call)
        monkeypatch.setattr(EMA, "update", update)
        monkeypatch.setattr(LossScale, "update", tell)

    def changed(self, index: int) -> set[str]:
        """Of "generator", "discriminator" and its like, what step `index` changed: weights or moments."""
        before, after = self.before[index], self.after[index]
        return {name for name in after if not _same(before[name], after[name])}


def state_of(step: Step) -> dict[str, list[Tensor]]:
    """Weights and the optimisers' states, by optimiser."""
    found = {}
    for name, optimizer in step.optimizers.items():
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        moments = [v for p in weights for v in optimizer.state.get(p, {}).values() if isinstance(v, Tensor)]
        found[name] = [t.detach().clone() for t in (*weights, *moments)]
    return found


def _same(before: list[Tensor], after: list[Tensor]) -> bool:
    return len(before) == len(after) and all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def run(recipe: Distill, upstream: dict[str, Path], folder: Path) -> StageContext:
    ctx = StageContext.for_test(folder / "out", folder / "work", upstream)
    distill.run(recipe, ctx)
    return ctx


@pytest.mark.parametrize("how", ["loss", "gradient"])
@pytest.mark.parametrize(
    ("updates", "where", "changed"),
    [
        ("joint", "adv", set()),
        ("separate", "rec", set()),
        ("separate", "adv", {"generator"}),  # by L_rec
        ("joint", "d", {"generator"}),
    ],
)
def test_what_is_not_finite_is_not_applied_and_averages_follow_what_is(
    updates: Any,
    where: str,
    how: str,
    changed: set[str],
    upstream: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    course = Course(monkeypatch)
    name = {"adv": "generator_loss", "d": "discriminator_loss", "rec": "distance_of"}[where]
    inner = getattr(steps, name)

    def spoilt(*arguments: Any) -> Any:
        if where == "rec":  # called once; gives the distance of every step
            distance = inner(*arguments)
            return lambda a, b, draws: spoil(distance(a, b, draws), how) if course.index == AT else distance(a, b, draws)
        found = inner(*arguments)
        return spoil(found, how) if course.index == AT else found

    monkeypatch.setattr(steps, name, spoilt)
    ctx = run(Distill(pairs=PAIRS, features=FEATURES, train=TRAIN, loss=LossConfig(updates=updates)), upstream, tmp_path)
    assert course.changed(AT) == changed
    assert course.changed(0) == course.changed(2) == {"generator", "discriminator"}
    assert course.averaged == ([0, 1, 2] if "generator" in changed else [0, 2])
    assert ctx.facts["skipped"] == 1


def test_a_discriminator_that_stays_what_it_is_stops_the_training(
    upstream: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where only the first of its updates in a step is not finite."""
    course, calls = Course(monkeypatch), [0]
    inner = steps.discriminator_loss

    def spoilt(*arguments: Any) -> Tensor:
        calls[0] += course.index == AT
        found = inner(*arguments)
        return spoil(found, "gradient") if course.index == AT and calls[0] == 1 else found

    monkeypatch.setattr(steps, "discriminator_loss", spoilt)
    loss = LossConfig(discriminator_steps=2)
    with pytest.raises(UserError, match=rf"training stopped at step {AT}: .*norm_d=nan is not finite"):
        run(Distill(pairs=PAIRS, features=FEATURES, train=SHORT, loss=loss), upstream, tmp_path)


def test_an_overflow_of_float16_is_counted_once_a_step_and_averages_nothing(
    upstream: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = Course(monkeypatch)
    train = SHORT.model_copy(update={"precision": "fp16"})
    inner = steps.distance_of

    def spoilt(*arguments: Any) -> Any:
        distance = inner(*arguments)
        return lambda a, b, draws: spoil(distance(a, b, draws), "gradient") if course.index == AT else distance(a, b, draws)

    monkeypatch.setattr(steps, "distance_of", spoilt)
    monkeypatch.setattr(LossScale.__init__, "__defaults__", ("fp32", 1.0, 2000))  # a scale under which the others are finite
    ctx = run(Distill(pairs=PAIRS, features=FEATURES, train=train, loss=LossConfig(updates="separate")), upstream, tmp_path)
    assert course.scaled == [-1, 0, 1, 2]
    assert course.changed(AT) == set()
    assert course.averaged == [0, 2]
    assert "skipped" not in ctx.facts


def test_the_teachers_average_leaves_an_overflow_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    course, calls = Course(monkeypatch), [0]
    inner = teacher.training_loss

    def spoilt(*arguments: Any) -> Tensor:
        calls[0] += 1
        return spoil(inner(*arguments), "gradient") if calls[0] == 2 + AT else inner(*arguments)

    monkeypatch.setattr(teacher, "training_loss", spoilt)
    monkeypatch.setattr(LossScale.__init__, "__defaults__", ("fp32", 1.0, 2000))
    recipe = TEACHER.model_copy(update={"train": SHORT.model_copy(update={"precision": "fp16"})})
    teacher.run(recipe, StageContext.for_test(tmp_path / "out", tmp_path / "work"))
    assert course.averaged == [0, 2]


def test_the_feature_network_skips_images_that_are_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, moments and running statistics are those of a training that ended before."""
    inner = features._embedded_batch

    def spoilt(numbers: Any, index: int, rng: Any, recipe: Any) -> features.Batch:
        batch = inner(numbers, index, rng, recipe)
        if index == 1:
            batch.x = batch.x * math.nan
        return batch

    monkeypatch.setattr(features, "_embedded_batch", spoilt)
    made = {}
    for length in (1, 2):
        train = TRAIN.model_copy(update={"steps": length})
        ctx = StageContext.for_test(tmp_path / f"{length}", tmp_path / f"work{length}")
        features.run(FEATURES.model_copy(update={"train": train}), ctx)
        made[length] = (ctx.out / "features.safetensors").read_bytes()
        assert ctx.facts.get("skipped", 0) == length - 1
    assert made[1] == made[2]
    ctx = StageContext.for_test(tmp_path / "none", tmp_path / "work-none")
    with pytest.raises(UserError, match="training stopped at step 1"):
        features.run(FEATURES, ctx)


@pytest.mark.parametrize(
    "change",
    [
        {"accumulate": 2},
        {"clip": 1.0},
        {"emas": (0.9,)},
        {"evaluate": 1},
        {"grids": 1},
        {"optimizer": "radam"},
        {"precision": "fp16"},
    ],
)
def test_settings_that_the_feature_network_does_not_have_are_refused(change: dict[str, Any], tmp_path: Path) -> None:
    recipe = FEATURES.model_copy(update={"train": SHORT.model_copy(update=change)})
    with pytest.raises(UserError, match=rf"train\.{next(iter(change))} ") as refused:
        features.run(recipe, StageContext.for_test(tmp_path / "out", tmp_path / "work"))
    assert "\n" not in str(refused.value)
