"""The stages and rows of latent consistency distillation: what they start from, what they cost, how they are put together."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from toy_scale import toy_scale

from baselines.latent import recipes as latent
from baselines.latent import train as latent_train
from baselines.latent.net import Autoencoder
from baselines.lcm import train
from baselines.lcm.presets import PRESETS
from baselines.lcm.recipes import LatentConsistency, LatentConsistencySampler, build
from baselines.lcm.sample import load
from baselines.sections import merged
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.errors import UserError
from pagoda_bench.nets.features import save_half
from pagoda_bench.nets.unet import UNet
from pagoda_bench.recipes.base import canonical
from pagoda_bench.recipes.stages import TrainConfig

TOY: dict[str, Any] = dict(build.facts.toy)  # type: ignore[attr-defined]


def row(**methods: Any) -> LatentConsistencySampler:
    found = build(toy_scale(**methods), 16)
    assert isinstance(found, LatentConsistencySampler)
    return found


def made(tmp_path: Path, lr: float, **changes: Any) -> tuple[LatentConsistency, StageContext, dict[str, Path]]:
    """A student at the toy size over a teacher and an autoencoder in which no branch is at its initial zero, as trained."""
    built = row(lcm=TOY)
    student = built.of.model_copy(update={"train": TrainConfig(steps=2, batch=4, warmup=1, lr=lr), **changes})
    torch.manual_seed(5)
    folders = {}
    nets = ((student.teacher.autoencoder, Autoencoder(built.through.net)), (student.teacher, UNet(student.teacher.unet)))
    for recipe, net in nets:
        folder = folders[recipe.key] = tmp_path / recipe.kind
        folder.mkdir()
        save_half({k: v + 0.02 * torch.randn_like(v) for k, v in net.state_dict().items()}, folder / "model.safetensors")
    return student, StageContext.for_test(tmp_path / "out", tmp_path / "work", folders), folders


def provenance(folder: Path, flops: float, upstream: dict[str, float]) -> None:
    folder.mkdir(exist_ok=True)
    recorded = {"training_flops": flops, "upstream_training_flops": upstream}
    (folder / "provenance.json").write_text(json.dumps(recorded))


def test_the_student_starts_from_its_teacher_and_costs_what_it_should(tmp_path: Path) -> None:
    """A learning rate of zero leaves the teacher's weights; a step is six forward passes of work, and `match` is met by
    autoencoder, teacher and student together: the autoencoder, from which both others are made, is counted once."""
    measure = row(lcm=TOY).through.model_copy(update={"seed": 9})
    student, context, folders = made(tmp_path, 0.0, match=measure)
    below, teacher = student.teacher.autoencoder, student.teacher
    with FlopCounterMode(display=False) as counter:
        UNet(teacher.unet)(torch.zeros(4, 3, 8, 8), 1.0, torch.zeros(4, dtype=torch.int64))
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False) as counter:
        Autoencoder(below.net).encode(torch.zeros(4, 3, 16, 16))
    encode = counter.get_total_flops()
    folders[measure.key] = tmp_path / "measure"
    provenance(folders[below.key], 1e9, {})
    provenance(folders[teacher.key], 2e9, {f"autoencoder/{below.key}": 1e9})
    provenance(folders[measure.key], 3e9 + 14 * forward, {})
    training = StageContext.for_test(context.out, context.work, folders)
    train.run(student, training)
    facts = training.facts
    step = facts["training_flops"] / facts["steps"]
    assert facts["matched_flops"] == pytest.approx(14 * forward)
    assert abs(facts["training_flops"] - 14 * forward) <= step / 2
    # Teacher 2 (with and without labels), target 1, student 1 and twice that backward, less what nobody asks a gradient for.
    assert (step - encode) / forward == pytest.approx(6, rel=0.05)
    run = StageContext.for_test(tmp_path / "b", tmp_path / "c", {**folders, student.key: context.out})
    given, found = (load_file(folder / "model.safetensors") for folder in (folders[teacher.key], context.out))
    assert not found.pop("guidance_proj.weight").any()
    assert found.keys() == given.keys()
    assert all(torch.equal(found[name], given[name]) for name in given)

    # Evaluations: one a step, guided or not. A student that is its teacher does not hear w.
    indices = np.arange(3)
    for steps in (1, 2, 4, 8):
        rows = [LatentConsistencySampler(of=student, through=below, steps=steps, w=w) for w in (0.0, 2.0)]
        images = [load(config, run).sample(indices, indices) for config in rows]
        assert [nfe for _, nfe in images] == [steps, steps]
        assert images[0][0].shape == (3, 16, 16, 3)
        assert np.array_equal(images[0][0], images[1][0])


def test_a_trained_student_hears_w(tmp_path: Path) -> None:
    """Two steps move the layer of w off its zeros, and images then differ with w."""
    student, context, folders = made(tmp_path, 1e-2)
    train.run(student, context)
    assert load_file(context.out / "model.safetensors")["guidance_proj.weight"].any()
    at = StageContext.for_test(tmp_path / "b", tmp_path / "c", {**folders, student.key: context.out})
    rows = [LatentConsistencySampler(of=student, through=student.teacher.autoencoder, steps=2, w=w) for w in (0.0, 2.0)]
    one, other = (load(config, at).sample(np.arange(3), np.arange(3))[0] for config in rows)
    assert not np.array_equal(one, other)


def test_dropped_labels_teach_the_class_none(tmp_path: Path) -> None:
    """With half of the labels dropped, the class beyond the last learns; without, there is no such class."""
    student, context, _ = made(tmp_path, 0.0)
    teacher = student.teacher.model_copy(update={"drop": 0.5, "train": student.train.model_copy(update={"lr": 1e-2})})
    latent_train.diffusion(teacher, context)
    torch.manual_seed(teacher.seed)
    start = UNet(teacher.unet).label_emb.weight.detach()
    found = load_file(context.out / "model.safetensors")["label_emb.weight"].float()
    assert found.shape[0] == teacher.net.classes + 1 == 11
    assert (found[10] - start[10]).abs().max() > 1e-3
    plain = teacher.model_copy(update={"drop": 0.0})
    assert plain.unet == plain.net
    assert '"drop"' not in canonical(plain)  # so that models made before there was such an option are still found


def test_rows_share_one_student_and_the_autoencoder_of_latent_diffusion() -> None:
    scale = {**TOY, "match": "chain"}
    rows = [row(lcm={**scale, "steps": steps}) for steps in (1, 2, 4, 8)]
    first = rows[0]
    assert [config.steps for config in rows] == [1, 2, 4, 8]
    assert {config.of.key for config in rows} == {first.of.key}
    assert [stage.share for stage in (first.through, first.of.teacher, first.of)] == [0.5, 0.8, 1.0]
    work = toy_scale().work_of(16)
    assert first.through.match == first.of.teacher.match == first.of.match == work
    below = {"autoencoder": TOY["autoencoder"], "diffusion": TOY["diffusion"]}
    plain = latent.build(toy_scale(latent=below), 16)
    assert isinstance(plain, latent.Latent)
    assert plain.through == first.through
    assert plain.of.drop == 0


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"distilation": {}}, "unknown key 'distilation'"),
        ({"diffusion": {"drop": 0}}, "set its `drop` above 0"),
        ({"distillation": {"objective": {"points": 30}}}, "must divide 1000"),
        ({"distillation": {"objective": {"w": [2, 1]}}}, "range from 0 upwards"),
        ({"distillation": {"objective": {"beta_min": 0.5}}}, "noise must grow"),
        ({"w": 3.0}, "outside what the student was trained for, 0 to 2"),
        ({"steps": 11}, "more than the 10 times"),
        ({"steps": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_values_are_refused_in_one_line(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        build(toy_scale(lcm=merged(TOY, values)), 16)
    assert "\n" not in str(refused.value)


def test_every_preset_makes_a_row() -> None:
    assert set(PRESETS) == {"smoke", "embedded", "cifar10"}
    for preset in PRESETS:
        found = row(lcm={"preset": preset, "autoencoder": {"net": {"widths": [16, 16], "groups": 4}}})
        assert found.of.teacher.drop > 0
        assert found.through.share < found.of.teacher.share < found.of.share
