"""Beside the steps of a training: evaluation, and the best weights."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.artifacts.digests import sha256
from pagoda_bench.data import open_dataset
from pagoda_bench.errors import UserError
from pagoda_bench.metrics.frechet import frechet_from_features
from pagoda_bench.nets.features import load_features, load_half
from pagoda_bench.pagoda import distill, teacher
from pagoda_bench.pagoda.generate import one_step as load_one_step
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.recipes.stages import Distill, OneStep, TrainConfig
from pagoda_bench.sampling.generators import FAR
from pagoda_bench.training import checkpoints, loop
from pagoda_bench.training.averages import save_averages
from pagoda_bench.training.evaluation import FIRST, Evaluation, Validation
from pagoda_bench.training.logs import read
from pagoda_bench.training.loop import Task, train
from tests.test_steps import DATA, FEATURES, PAIRS, SHORT, TEACHER, inputs_with_pairs
from tests.test_training import Stop, context, task

# The best of a training


class Told:
    """An evaluation whose values are known beforehand, in turn."""

    def __init__(self, values: list[float], lower: bool = True) -> None:
        self.values, self.lower, self.calls = values, lower, 0

    def __call__(self) -> dict[str, float]:
        self.calls += 1
        return {"fd": self.values[self.calls - 1], "is": 0.5}


def measured(values: list[float], lower: bool = True, fail_at: int = -1, before: int = 0) -> Task:
    t = task(fail_at)
    t.evaluation = Told(values, lower)
    t.evaluation.calls = before
    return t


CONFIG = TrainConfig(steps=12, warmup=3, evaluate=4, schedule="constant")  # after 3, 6, 9, 12 steps


@pytest.mark.parametrize(
    ("values", "lower", "best"),
    [([4, 2, 3, 5], True, 6), ([4, 2, 3, 5], False, 12), ([1, 2, 3, 4], True, 3), ([2, 2, 2, 2], True, 3)],
)
def test_the_weights_of_the_best_milestone_are_published(values: list[float], lower: bool, best: int, tmp_path: Path) -> None:
    t, ctx = measured(values, lower), context(tmp_path)
    at: dict[int, dict[str, torch.Tensor]] = {}
    inner, told = t.step, t.evaluation
    assert told is not None

    def seen() -> dict[str, float]:
        at[3 * (len(at) + 1)] = {k: v.clone() for k, v in t.emas["net"].state(t.nets["net"]).items()}
        return told()

    seen.lower = lower  # type: ignore[attr-defined]
    t.evaluation = seen  # type: ignore[assignment]
    train(t, CONFIG, 7, ctx)
    save_averages(t.nets["net"], t.emas, ctx)
    assert inner is t.step
    assert [e["step"] for e in ctx.facts["evaluations"]] == [3, 6, 9, 12]
    assert [e["fd"] for e in ctx.facts["evaluations"]] == values
    path = ctx.out / "model-best.safetensors"
    assert ctx.facts["best"] == {"step": best, "fd": values[best // 3 - 1], "is": 0.5, "sha256": sha256(path)}
    found = load_half(path)
    for key, value in at[best].items():
        assert torch.equal(found[key], value.half().float() if value.is_floating_point() else value), key
    rows = [row for row in read(ctx.out / "log.csv") if "fd" in row]
    assert [(int(row["step"]), float(row["fd"])) for row in rows] == [(3 * i + 2, v) for i, v in enumerate(values)]


def test_the_best_checkpoint_is_kept_beside_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(Stop):
        train(measured([3, 1, 2], fail_at=11), CONFIG, 7, context(tmp_path))
    kept = [int(path.stem[-8:]) for path in checkpoints.saved(tmp_path / "work")]
    assert kept == [11, 10, 6]
    assert (tmp_path / "work" / "checkpoint-00000006.json").is_file()


def test_a_resume_knows_what_was_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when nothing but the best itself was saved: it is saved at once."""
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", math.inf)
    with pytest.raises(Stop):
        train(measured([3, 1, 2], fail_at=8), CONFIG, 7, context(tmp_path / "parts"))
    assert [int(path.stem[-8:]) for path in checkpoints.saved(tmp_path / "parts" / "work")] == [6, 3]
    logs, facts = [], []
    for folder, before in (("parts", 2), ("whole", 0)):
        ctx = context(tmp_path / folder)
        train(measured([3, 1, 2, 4], before=before), CONFIG, 7, ctx)
        logs.append((ctx.out / "log.csv").read_text())
        facts.append({k: ctx.facts[k] for k in ("evaluations", "best", "curve")})
    assert logs[0] == logs[1]
    assert facts[0] == facts[1]


def test_a_damaged_best_checkpoint_costs_only_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    t, ctx = measured([1, 2, 3, 4]), context(tmp_path)
    train(t, CONFIG, 7, ctx)
    checkpoints.path_of(ctx.work, 3).write_bytes(b"half")
    save_averages(t.nets["net"], t.emas, ctx)
    assert (ctx.out / "model.safetensors").is_file()
    assert not (ctx.out / "model-best.safetensors").exists()
    assert "sha256" not in ctx.facts["best"]
    assert "checkpoint-00000003.pt is damaged" in capsys.readouterr().err


# Evaluation


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return inputs_with_pairs(tmp_path_factory.mktemp("milestones"))


def test_what_is_measured_is_the_frechet_distance_and_changes_nothing(upstream: dict[str, Path], tmp_path: Path) -> None:
    """Sampled again from the artifact, with features and distance computed without the evaluation: the same number up to the
    float16 of published weights. And the artifact is that of a training without milestones."""
    recipe = Distill(
        pairs=PAIRS, features=FEATURES, train=SHORT.model_copy(update={"evaluate": 1, "evaluate_n": 40, "grids": 1})
    )
    plain = Distill(pairs=PAIRS, features=FEATURES, train=SHORT)
    assert recipe.key == plain.key
    made = {}
    for name, each in (("with", recipe), ("without", plain)):
        made[name] = StageContext.for_test(tmp_path / name, tmp_path / f"{name}-work", upstream)
        distill.run(each, made[name])
    assert sha256(tmp_path / "with" / "model.safetensors") == sha256(tmp_path / "without" / "model.safetensors")
    assert made["with"].facts["curve"] == made["without"].facts["curve"]
    (entry,) = made["with"].facts["evaluations"]

    here = StageContext.for_test(tmp_path / "o", tmp_path / "w", {**upstream, recipe.key: tmp_path / "with"})
    best = made["with"].facts["best"]["sha256"]
    sampler, model, data = load_one_step(OneStep(of=recipe, best=best), here), load_features(FEATURES, here), open_dataset(DATA)
    indices = np.arange(40)
    images, _ = sampler.sample(FIRST + indices, indices % 10)
    real = data.images(FAR // 10 * 10 + indices, 8, "val")
    expected = frechet_from_features(model.features(real)[0], model.features(images)[0])
    assert entry["fd"] == pytest.approx(expected, rel=0.02)
    assert entry["step"] == 3
    row = read(tmp_path / "with" / "log.csv")[-1]
    assert float(row["fd"]) == pytest.approx(entry["fd"], rel=1e-4)
    assert float(row["diversity"]) > 0

    with pytest.raises(UserError, match="keeps other best weights, not those of SHA-256 0000"):
        load_one_step(OneStep(of=recipe, best="0" * 64), here)
    nowhere = StageContext.for_test(tmp_path / "o", tmp_path / "w", {recipe.key: tmp_path / "without"})
    with pytest.raises(UserError, match=r"keeps no best weights \(train.evaluate was 0\)"):
        load_one_step(OneStep(of=recipe, best=best), nowhere)


def test_a_teacher_is_measured_and_shown_too(tmp_path: Path) -> None:
    config = SHORT.model_copy(update={"evaluate": 1, "evaluate_n": 20, "grids": 1, "steps": 2})
    ctx = StageContext.for_test(tmp_path / "out", tmp_path / "work")
    teacher.run(TEACHER.model_copy(update={"train": config}), ctx)
    assert ctx.facts["best"]["step"] == 2
    assert math.isfinite(ctx.facts["best"]["fd"])
    assert (ctx.out / "grids" / "00000002.png").is_file()
    assert sha256(ctx.out / "model.safetensors") == ctx.facts["best"]["sha256"]


def evaluation(work: Path, **values: Any) -> Evaluation:
    config = TrainConfig(steps=1, **values)
    return Evaluation(config, DATA, open_dataset(DATA), 8, lambda i, y: np.zeros((len(i), 8, 8, 3), np.uint8), work)


def test_what_cannot_be_measured_is_said_before_the_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown metric 'fdd'"):
        evaluation(tmp_path, evaluate_metrics=("fdd",))
    with pytest.raises(UserError, match="unknown protocol 'mine'"):
        evaluation(tmp_path, evaluate_protocol="mine")
    with pytest.raises(UserError, match=r"train\.evaluate_n: 1 images are too few for fd"):
        evaluation(tmp_path, evaluate_n=1)


def test_the_direction_is_the_metrics(tmp_path: Path) -> None:
    assert evaluation(tmp_path, evaluate_metrics=("fd", "recall")).lower
    assert not evaluation(tmp_path, evaluate_metrics=("recall", "fd")).lower


@pytest.mark.parametrize("n", [3, 64, 100])
def test_samples_of_an_evaluation_do_not_depend_on_the_processes(
    n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pagoda_bench.training import evaluation as module

    def draw(indices: np.ndarray, labels: np.ndarray) -> np.ndarray:
        assert len(indices) == module.BATCH
        return np.broadcast_to(
            ((indices - FIRST) * 7 + labels).astype(np.uint8)[:, None, None, None], (len(indices), 2, 2, 3)
        ).copy()

    found = evaluation(tmp_path, evaluate_n=n)
    found.draw = draw
    alone = found.images()
    assert alone.shape == (n, 2, 2, 3)
    numbers = np.arange(n)
    np.testing.assert_array_equal(alone[:, 0, 0, 0], (numbers * 7 + numbers % 10).astype(np.uint8))
    # Two processes, simulated: the other's part is what this one's draw gives a batch further.
    monkeypatch.setattr(module.parallel, "world", lambda: 2)
    starts = iter(range(0, 10_000, 2 * module.BATCH))

    def gathered(mine: torch.Tensor) -> list[torch.Tensor]:
        other = next(starts) + module.BATCH + np.arange(module.BATCH)
        return [mine, torch.from_numpy(draw(FIRST + other, other % 10))]

    monkeypatch.setattr(module.parallel, "gathered", gathered)
    np.testing.assert_array_equal(found.images(), alone)


def test_validation_images_are_not_those_of_scores() -> None:
    """From the far end, classes in turn; the reference of a table is taken from the near end."""
    data = open_dataset(EmbeddedData(master=16))
    stream = Validation(DATA, data, 8, 25)
    assert stream.indices.min() >= FAR - 10
    (a, b) = stream.batches(20)
    assert [len(a.images), len(b.images)] == [20, 5]
    assert b.labels is not None
    assert b.labels.tolist() == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(b.images, data.images(stream.indices[20:], 8, "val"))
