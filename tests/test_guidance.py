"""Guidance: images without labels, the guided teacher, and the one-step student that is told the weight."""

from __future__ import annotations

import csv
import json
import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pagoda_bench import resources
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.artifacts.store import Store
from pagoda_bench.diffusion import edm, solvers
from pagoda_bench.errors import UserError
from pagoda_bench.metrics.generated import Generated
from pagoda_bench.nets.features import load_half
from pagoda_bench.nets.unet import NO_LABEL, UNet
from pagoda_bench.pagoda.generate import denoiser, heun, load, one_step
from pagoda_bench.pagoda.grow import Frozen
from pagoda_bench.pagoda.teacher_pairs import TeacherImages, latents, weights
from pagoda_bench.plan.dag import Plan
from pagoda_bench.plan.inline import run_plan
from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.losses import LossConfig
from pagoda_bench.recipes.scores import Reference, Score
from pagoda_bench.recipes.stages import Distill, Grow, Heun, OneStep, TeacherPairs, UNetConfig
from pagoda_bench.tables import spec
from tests.tiny_chain import BASE, DATA, FEATURES, NET, PAIRS, SHORT, TEACHER

KNOWING = TEACHER.model_copy(update={"drop": 0.2})
GUIDED = TeacherPairs(teacher=KNOWING, count=40, points=3, guidance=(0.0, 2.0), batch=16, shard=16)
STUDENT = Distill(
    pairs=PAIRS.model_copy(update={"teacher": KNOWING}),
    features=FEATURES,
    train=SHORT,
    guided=GUIDED,
    loss=LossConfig(pairs_share=0.5),
)
TALLER = Grow(base=STUDENT, width=1, train=SHORT, loss=LossConfig(pairs_share=0.5))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    store = Store(tmp_path_factory.mktemp("guidance"))
    run_plan(Plan([TALLER], store))
    return store


def context(store: Store, recipes: list[Recipe], work: Path) -> StageContext:
    found = {r.key: a.path for r in recipes if (a := store.find(r)) is not None}
    return StageContext.for_test(work / "out", work / "work", found)


# Images without labels


def test_an_image_without_a_label_has_the_embedding_of_its_noise_level_alone() -> None:
    net = UNet(NET)
    sigma, labels = torch.tensor([0.5, 3.0]), torch.tensor([4, NO_LABEL])
    found = net.embed(sigma, labels)
    time = net.time_embed(net.time_waves(sigma, 2))
    torch.testing.assert_close(found[1], time[1], rtol=0, atol=0)
    torch.testing.assert_close(found[0], time[0] + net.label_emb.weight[4])
    found[1].sum().backward()
    assert net.label_emb.weight.grad is None or not net.label_emb.weight.grad.any()


def test_a_training_without_any_label_leaves_the_embeddings_of_classes_as_they_were(tmp_path: Path) -> None:
    def trained(drop: float) -> Tensor:
        train = SHORT.model_copy(update={"steps": 12, "lr": 1e-2, "ema": 0.0})
        recipe = TEACHER.model_copy(update={"drop": drop, "train": train})
        store = Store(tmp_path / f"{drop}")
        run_plan(Plan([recipe], store))
        return load(recipe, context(store, [recipe], tmp_path)).label_emb.weight

    torch.manual_seed(TEACHER.seed)
    start = UNet(NET).label_emb.weight.detach().half().float()
    assert (trained(0.999) - start).abs().max() < 2e-3  # of rounding to 16 bits
    assert (trained(0.0) - start).abs().max() > 2e-2
    assert (trained(0.2) - start).abs().max() > 2e-2


# Guided sampling, against the exact flow of Gaussians

MEAN = torch.tensor([[0.6], [-0.4], [0.1]], dtype=torch.float64)  # of two classes, and of images without a label
DEVIATION = 0.3


class Gaussians(torch.nn.Module):
    """The exact network in EDM's variables: classes 0 and 1, and `NO_LABEL` as a Gaussian of its own."""

    def forward(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        factors = edm.preconditioning(sigma)
        c_skip, c_out, c_in = (f.view(-1, 1, 1, 1) for f in factors)
        mean = MEAN[torch.where(labels == NO_LABEL, 2, labels)].view(-1, 1, 1, 1)
        noisy = x / c_in
        s = sigma.view(-1, 1, 1, 1)
        return (mean + DEVIATION**2 / (DEVIATION**2 + s**2) * (noisy - mean) - c_skip * noisy) / c_out


def test_guided_heun_follows_the_exact_flow() -> None:
    """All Gaussians have one deviation, so guidance moves the mean alone, to c + w (c - none)."""
    torch.manual_seed(0)
    z, labels = torch.randn(4, 3, 2, 2, dtype=torch.float64) * 80, torch.tensor([0, 1, 0, 1])
    w = torch.tensor([0.0, 0.5, 1.0, 3.0], dtype=torch.float64)
    mean = (MEAN[labels] + w[:, None] * (MEAN[labels] - MEAN[2])).view(-1, 1, 1, 1)
    exact = mean + DEVIATION / math.hypot(DEVIATION, 80) * (z - mean)
    errors = []
    for points in (80, 160):
        found = solvers.heun(denoiser(Gaussians(), labels, w), z, edm.karras_grid(points), clamp=False)  # type: ignore[arg-type]
        errors.append(float((found - exact).abs().max()))
    assert errors[1] < 1e-3
    assert errors[0] / errors[1] > 3  # second order


def test_weight_zero_is_no_guidance_at_no_cost(store: Store, tmp_path: Path) -> None:
    ctx, indices, labels = context(store, [KNOWING], tmp_path), np.arange(3), np.arange(3)
    plain, once = heun(Heun(of=KNOWING, points=3), ctx).sample(indices, labels)
    guided, twice = heun(Heun(of=KNOWING, points=3, guidance=2.0), ctx).sample(indices, labels)
    assert (once, twice) == (5, 10)
    assert not np.array_equal(plain, guided)
    alone, _ = heun(Heun(of=KNOWING, points=3, guidance=2.0), ctx).sample(indices[1:2], labels[1:2])
    assert np.abs(alone[0].astype(int) - guided[1]).max() <= 1


# The teacher's guided samples


def test_weights_are_even_over_the_range_of_all_rows_of_a_stretch_and_of_a_class() -> None:
    whole = weights(GUIDED.model_copy(update={"count": 4000}), np.arange(4000))
    assert whole is not None
    for rows in (np.arange(4000), np.arange(0, 4000, 10), np.arange(300, 500)):  # all, one class, any stretch
        counts, _ = np.histogram(whole[rows].numpy(), bins=10, range=(0, 2))
        assert counts.min() > 0.8 * len(rows) / 10
    torch.testing.assert_close(weights(GUIDED, np.array([7, 31])), whole[[7, 31]])
    # Multiples of a Fibonacci number of steps hardly move: so many classes need more samples of each.
    for classes, each in ((1000, 30), (144, 400)):
        counts, _ = np.histogram(weights(GUIDED, np.arange(each) * classes).numpy(), bins=10, range=(0, 2))  # type: ignore[union-attr]
        assert counts.min() > 0


def test_guided_samples_are_the_teachers_at_their_weight(store: Store, tmp_path: Path) -> None:
    images = TeacherImages(GUIDED, context(store, [GUIDED, KNOWING], tmp_path))
    net, rows = load(KNOWING, context(store, [KNOWING], tmp_path)), np.array([5, 17])
    z, labels = latents(GUIDED, rows)
    for row, index in enumerate(rows):
        w = float(2 * math.modf(index * (math.sqrt(5) - 1) / 2)[0])

        def by_hand(x: Tensor, sigma: Tensor, label: Tensor = labels[row : row + 1], w: float = w) -> Tensor:
            told = edm.denoise(net, x, sigma, label)
            return told + w * (told - edm.denoise(net, x, sigma, torch.full_like(label, NO_LABEL)))

        expected = solvers.heun(by_hand, z[row : row + 1], edm.karras_grid(3))
        assert np.abs(images[rows[row : row + 1]] - expected.numpy()).max() < 5e-3  # kept as float16


# The student


def test_a_student_starts_as_its_teacher_whatever_the_weight() -> None:
    teacher, student = UNet(NET), UNet(NET.model_copy(update={"guidance": 64}))
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    student.start_from(teacher.state_dict())
    x, sigma, labels = torch.randn(3, 3, 8, 8), torch.tensor([80.0, 80.0, 80.0]), torch.tensor([0, 1, 2])
    for w in (None, torch.tensor([0.0, 1.0, 7.5])):
        torch.testing.assert_close(student(x, sigma, labels, w), teacher(x, sigma, labels))
    with pytest.raises(ValueError, match="takes no guidance weight"):
        teacher(x, sigma, labels, torch.zeros(3))
    with pytest.raises(RuntimeError, match="Missing key"):
        student.start_from({k: v for k, v in teacher.state_dict().items() if k != "out.2.weight"})


def test_the_weight_reaches_the_image_at_the_base_and_above(store: Store, tmp_path: Path) -> None:
    for model in (STUDENT, TALLER):
        ctx, indices, labels = context(store, [model], tmp_path), np.arange(4), np.arange(4)
        plain, nfe = one_step(OneStep(of=model), ctx).sample(indices, labels)
        guided, guided_nfe = one_step(OneStep(of=model, guidance=2.0), ctx).sample(indices, labels)
        assert plain.shape[1] == model.net.output_resolution
        assert nfe == guided_nfe == 1
        assert not np.array_equal(plain, guided)
        assert np.any(load_half(ctx.input(model) / "model.safetensors")["guidance_proj.weight"].numpy())


def test_both_stages_report_the_distillation_loss(store: Store) -> None:
    for model in (STUDENT, TALLER):
        artifact = store.find(model)
        assert artifact is not None
        with (artifact.path / "log.csv").open() as file:
            found = [float(row["dstl"]) for row in csv.DictReader(file)]
        assert found
        assert all(0 < value < 100 for value in found)


def test_distillation_alone_brings_the_student_to_the_guided_teacher(store: Store, tmp_path: Path) -> None:
    """Trained on L_dstl in squares of pixels, the student comes nearer to the teacher's samples, and told another weight
    than a sample's it is farther away."""
    loss = LossConfig(reconstruction=0.0, adversarial=0.0, adaptive=False, distance="l2", pixel=0.0)
    recipe = STUDENT.model_copy(
        update={
            "loss": loss,
            "train": SHORT.model_copy(update={"steps": 150, "batch": 8, "lr": 5e-3, "ema": 0.9}),
            "guided": GUIDED.model_copy(update={"guidance": (0.0, 8.0)}),
        }
    )
    run_plan(Plan([recipe], store))
    assert recipe.guided is not None
    rows = np.arange(recipe.guided.count)
    target = torch.from_numpy(TeacherImages(recipe.guided, context(store, [recipe.guided], tmp_path))[rows])
    z, labels = latents(recipe.guided, rows)
    w = weights(recipe.guided, rows)
    assert w is not None
    student, teacher = (load(r, context(store, [r], tmp_path)) for r in (recipe, KNOWING))

    def error(net: UNet, w: Tensor | None) -> float:
        return float((edm.one_step(partial(net, w=w), z, labels) - target).square().mean())

    before, after, swapped = error(teacher, None), error(student, w), error(student, 8 - w)
    assert after < 0.5 * before
    assert swapped > 1.02 * after


def test_kept_states_of_the_frozen_part_are_those_without_guidance() -> None:
    net = UNet(UNetConfig(resolution=8, channels=16, encoder=(1, 2), decoder=(1, 1, 2), attention=(4,), guidance=64))
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    frozen = Frozen(net, net.base_blocks)
    z, labels, w = torch.randn(3, 3, 8, 8) * 80, torch.tensor([0, 1, 2]), torch.tensor([0.0, 1.0, 2.0])
    torch.testing.assert_close(frozen(z, labels, None, w), edm.one_step(partial(net, w=w), z, labels), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(frozen(z, labels), edm.one_step(net, z, labels), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(frozen(z, labels), frozen(z, labels, None, w))


# What is refused, and what is said


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Heun.load({"of": TEACHER, "guidance": 1.0}, "x"), "set `drop` of the teacher above 0"),
        (lambda: OneStep.load({"of": BASE, "guidance": 1.0}, "x"), "`guided` samples"),
        (lambda: OneStep.load({"of": STUDENT, "guidance": 2.5}, "x"), "0 to 2"),
        (lambda: TeacherPairs.load({"teacher": TEACHER, "count": 4, "guidance": [0, 1]}, "x"), "set `drop`"),
        (lambda: TeacherPairs.load({"teacher": KNOWING, "count": 4, "guidance": [2, 1]}, "x"), "from low to high"),
        (lambda: TeacherPairs.load({"teacher": KNOWING, "count": 4, "guidance": [-1, 1]}, "x"), "greater than or equal to 0"),
        (lambda: _student(guided={**_fields(GUIDED), "guidance": None}), "give `guidance` a range"),
        (lambda: _student(pairs=PAIRS), "the same teacher"),
        (lambda: _student(pairs=GUIDED, guided=None), "give guided samples as `guided`"),
    ],
)
def test_what_cannot_be_guided_is_refused_in_one_line(make: Any, words: str) -> None:
    with pytest.raises(UserError) as raised:
        make()
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def _fields(recipe: TeacherPairs) -> dict[str, Any]:
    return {name: getattr(recipe, name) for name in type(recipe).model_fields} | {"kind": recipe.kind}


def _student(**changed: Any) -> Distill:
    fields = {name: getattr(STUDENT, name) for name in Distill.model_fields}
    return Distill.load({**fields, **changed}, "x")


def test_the_protocol_of_a_score_names_the_guidance(store: Store) -> None:
    reference = Reference(data=DATA, features=FEATURES, resolution=8, n=100)
    scores = [Score(generator=OneStep(of=STUDENT, guidance=g), reference=reference, n=40) for g in (0.0, 1.5)]
    run_plan(Plan(scores, store))
    said = []
    for score in scores:
        artifact = store.find(score)
        assert artifact is not None
        said.append(json.loads((artifact.path / "score.json").read_text())["protocol"]["guidance"])
    assert said == ["none", "classifier-free, w=1.5"]
    streams = [Generated("x", score.generator, SimpleNamespace(classes=10), 4) for score in scores]  # type: ignore[arg-type]
    assert [stream.guidance for stream in streams] == said


def test_a_released_generator_is_not_taught(tmp_path: Path) -> None:
    grid = spec.read(resources.folder("experiments") / "guidance.yaml")
    scale = spec.load_scale(grid, "embedded", ["distill.released=recipe.json"])
    with pytest.raises(UserError, match="learns no guidance here"):
        scale.distilled()


def test_rows_of_the_experiment_share_their_models() -> None:
    grid = spec.read(resources.folder("experiments") / "guidance.yaml")
    rows = {row.id: row for row in spec.build(grid, spec.load_scale(grid, "embedded")).rows}
    teachers = [rows[f"teacher{w}-8"].generator for w in ("", "-05", "-1", "-2")]
    students = [rows[f"student{w}-8"].generator for w in ("", "-05", "-1", "-2")]
    assert len({t.of.key for t in teachers if isinstance(t, Heun)}) == 1
    assert [t.guidance for t in teachers if isinstance(t, Heun)] == [0, 0.5, 1, 2]
    assert len({s.of.key for s in students if isinstance(s, OneStep)}) == 1
    assert [s.guidance for s in students if isinstance(s, OneStep)] == [0, 0.5, 1, 2]
    assert {t.guided_by for t in teachers if t} == {"none", *(f"classifier-free, w={w}" for w in ("0.5", "1", "2"))}
