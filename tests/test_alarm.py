"""The alarm of a training: a discriminator that stands still, and samples that are all alike."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import pdist

from pagoda_bench.data import open_dataset
from pagoda_bench.errors import UserError
from pagoda_bench.pagoda.diversity import Diversity, chosen
from pagoda_bench.pagoda.losses import discriminator_loss
from pagoda_bench.recipes.stages import TrainConfig
from pagoda_bench.training import checkpoints, loop
from pagoda_bench.training.alarm import ALIKE, LEAST, PINS, Alarm, alike, spread
from pagoda_bench.training.loop import Task, train
from tests.test_steps import DATA
from tests.test_training import context, task


@pytest.mark.parametrize("gan", ["hinge", "non-saturating"])
def test_the_pins_are_where_a_discriminator_teaches_nothing(gan: str) -> None:
    blind = torch.zeros(4, 3)
    right, wrong = torch.full((4, 3), 50.0), torch.full((4, 3), -50.0)
    sure, unsure = PINS[gan]
    assert float(discriminator_loss(right, wrong, gan)) == pytest.approx(sure, abs=1e-6)
    assert float(discriminator_loss(blind, blind, gan)) == pytest.approx(unsure, abs=1e-6)


def rings(values: list[float], steps: int = 1000, state: dict[str, Any] | None = None) -> list[str]:
    alarm = Alarm({"d": PINS["hinge"]}, steps, {} if state is None else state)
    return [line for i, value in enumerate(values) for line in alarm.losses(i, {"d": value})]


def test_a_discriminator_that_stands_still_is_named_once() -> None:
    (line,) = rings([2.001] * (3 * LEAST))
    assert line.startswith(f"alarm at step {LEAST - 1}: the discriminator's loss 'd' has stood at 2 for {LEAST} steps")
    (line,) = rings([1.0, *[0.005] * LEAST])
    assert "it tells everything apart" in line


def test_a_single_step_elsewhere_begins_the_row_anew() -> None:
    row = [2.0] * (LEAST - 1)
    assert rings([*row, 1.5, *row]) == []
    assert rings([*row, math.nan, *row]) == []
    assert len(rings([*row, 1.5, *row, 2.0])) == 1


def test_healthy_losses_are_left_alone() -> None:
    """Those of a discriminator near balance wander about 2 by more than what counts as standing still."""
    rng = np.random.default_rng(0)
    assert rings(list(1.95 + 0.1 * rng.standard_normal(5000)), 5000) == []


def test_the_alarm_goes_on_after_a_resume() -> None:
    state: dict[str, Any] = {}
    assert rings([2.0] * (LEAST - 1), state=state) == []
    assert len(rings([2.0], state=state)) == 1
    assert rings([2.0] * LEAST, state=state) == []
    assert state["rung"] == [{"step": 0, "sign": "d=2"}]


@given(st.integers(0, 1000), st.floats(0.01, 10))
def test_spread_is_the_mean_distance_within_classes(seed: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    features, labels = rng.normal(size=(12, 5)), np.arange(12) % 3
    expected = np.mean([pdist(features[labels == label]) for label in range(3)])
    assert spread(features, labels) == pytest.approx(float(expected))
    apart = features + 1e3 * labels[:, None]  # how far apart classes are does not count
    assert spread(apart, labels) == pytest.approx(float(expected), rel=1e-6)
    assert alike(scale * features, features, labels) == pytest.approx(scale)
    with pytest.raises(ValueError, match="no two images"):
        spread(features[:3], labels[:3])


def watched(values: list[float], diversity: float) -> Task:
    t = task()
    inner = t.step
    t.step = lambda index, rng: {**inner(index, rng), "d": values[index]}
    t.watched = {"d": PINS["hinge"]}
    t.samples = lambda: np.zeros((1, 2, 2, 3), np.uint8)
    t.diversity = lambda: diversity
    return t


def test_an_alarm_is_one_line_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = TrainConfig(steps=LEAST + 10, grids=2)
    ctx = context(tmp_path / "a")
    train(watched([2.0] * config.steps, ALIKE / 2), config, 0, ctx)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 2
    assert lines[0].startswith("pagoda-bench: alarm at step 54: samples of a class are 0.100 times as far apart")
    assert ctx.facts["alarms"] == [{"step": 54, "sign": "diversity"}, {"step": LEAST - 1, "sign": "d=2"}]
    ctx = context(tmp_path / "b")
    train(watched([1.5] * config.steps, 0.9), config, 0, ctx)
    assert "alarms" not in ctx.facts
    assert not capsys.readouterr().err
    ctx = context(tmp_path / "c")
    train(watched([2.0] * config.steps, 0.0), config.model_copy(update={"alarm": "off"}), 0, ctx)
    assert "alarms" not in ctx.facts
    assert not capsys.readouterr().err


def test_an_alarm_can_stop_and_be_overruled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    config = TrainConfig(steps=LEAST + 2, alarm="stop")
    with pytest.raises(UserError, match=r"training stopped, the last checkpoint is kept; alarm at step 99: .* stood at 0 for"):
        train(watched([0.0] * config.steps, 1.0), config, 0, context(tmp_path))
    assert checkpoints.saved(tmp_path / "work")[0].name == f"checkpoint-{LEAST - 1:08d}.pt"
    ctx = context(tmp_path)
    train(watched([0.0] * config.steps, 1.0), config.model_copy(update={"alarm": "warn"}), 0, ctx)
    assert ctx.facts["alarms"] == [{"step": LEAST - 1, "sign": "d=0"}]


class Labelled:
    """A finite set of which the classes have 3, 1 and 20 images."""

    classes = ("a", "b", "c")
    every = np.array([2, 0, 2, 1, 0, 0, *[2] * 18])

    def size(self, split: str) -> int:
        return len(self.every)

    def labels(self, indices: np.ndarray, split: str) -> np.ndarray:
        return self.every[indices]


def test_diversity_takes_classes_that_have_two_images() -> None:
    indices, labels = chosen(Labelled())  # type: ignore[arg-type]
    assert labels.tolist() == [0, 0, 0, *[2] * 8]
    assert indices.tolist() == [1, 4, 5, 0, 2, 6, 7, 8, 9, 10, 11]
    few = Labelled()
    few.every = np.array([0, 1, 2])
    assert not len(chosen(few)[0])  # type: ignore[arg-type]
    endless, labels = chosen(open_dataset(DATA))
    assert sorted(np.bincount(labels).tolist()) == [8] * 8
    np.testing.assert_array_equal(open_dataset(DATA).labels(endless, "train"), labels)


class Plain:
    """A look whose one map is the image."""

    def maps(self, image: torch.Tensor, draws: None) -> list[torch.Tensor]:
        return [image]


@pytest.mark.parametrize("scale", [0.0, 0.5])
def test_diversity_is_that_of_the_samples_beside_the_images(scale: float) -> None:
    """Samples are the real images, nearer to the mean of their class: in a map that is linear by as much."""
    data = open_dataset(DATA)
    indices, labels = chosen(data)
    real = data.images(indices, 8, "train").astype(np.float64)
    centre = np.stack([real[labels == label].mean(0) for label in labels])

    def draw(numbers: np.ndarray, its: np.ndarray) -> np.ndarray:
        np.testing.assert_array_equal(its, labels)
        return (centre + scale * (real - centre)).round().astype(np.uint8)

    found = Diversity(draw, Plain(), data, torch.nn.Linear(1, 1), 8)()  # type: ignore[arg-type]
    assert found == pytest.approx(scale, abs=0.01)
