"""Noise levels and classes in the batches of every training of a diffusion model, as its loss gets them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from baselines.cascade import train as cascade
from baselines.cascade.recipes import SuperResolution
from baselines.greedy import process
from baselines.greedy import train as greedy
from baselines.greedy.recipes import CoreConfig, GreedyCore, OuterConfig, ProcessConfig
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.diffusion.edm import stratified
from pagoda_bench.pagoda import teacher
from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.recipes.stages import EDM, TrainConfig, UNetConfig

CLASSES, BATCH = 10, 4
DATA = EmbeddedData(master=8)
TRAIN = TrainConfig(steps=80, batch=BATCH, lr=0.0)
NET = UNetConfig(resolution=8, channels=8, encoder=(1,), attention=(), head_channels=8, grown_blocks=1)


def edm(strata: Any) -> Recipe:
    return EDM(data=DATA, net=NET, train=TRAIN, strata=strata)


def super_resolution(strata: Any) -> Recipe:
    return SuperResolution(data=DATA, net=NET, train=TRAIN, low=4, strata=strata)


def greedy_core(strata: Any) -> Recipe:
    core = CoreConfig(grid=4, width=8, depth=1, heads=1)
    how = ProcessConfig(strata=strata, drop=0)
    return GreedyCore(data=DATA, core=core, outer=OuterConfig(resolution=8, patch=2), train=TRAIN, process=how)


# The recipe, its trainer, the module whose `training_loss` it calls, and where in that call noise levels and labels stand.
TRAINERS = [
    pytest.param(edm, teacher.run, teacher, 4, 2, id="edm"),
    pytest.param(super_resolution, cascade.run, cascade, 4, 2, id="super-resolution"),
    pytest.param(greedy_core, greedy.core, process, 3, 4, id="greedy"),
]


@pytest.mark.parametrize("strata", ["in_order", "shuffled"])
@pytest.mark.parametrize(("recipe", "run", "module", "level", "label"), TRAINERS)
def test_every_class_meets_every_noise_level(
    recipe: Callable[[str], Recipe],
    run: Callable[[Any, StageContext], None],
    module: ModuleType,
    level: int,
    label: int,
    strata: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    met, loss = np.zeros((CLASSES, BATCH), int), module.training_loss

    def seen(*args: Any) -> torch.Tensor:
        met[args[label].numpy(), args[level].argsort().argsort().numpy()] += 1
        found: torch.Tensor = loss(*args)
        return found

    monkeypatch.setattr(module, "training_loss", seen)
    run(recipe(strata), StageContext.for_test(tmp_path / "out", tmp_path / "work"))
    # In order, with classes in turn and an even batch, a class meets every second stratum: the reason for the choice.
    assert (met > 0).sum() == CLASSES * BATCH // (1 if strata == "shuffled" else 2)


@pytest.mark.parametrize("shuffled", [False, True])
def test_a_batch_has_one_level_of_every_stratum(shuffled: bool) -> None:
    torch.manual_seed(0)
    drawn = torch.stack([stratified(16, shuffled=shuffled) for _ in range(200)])
    strata = (drawn * 16).floor().long()
    assert torch.equal(strata.sort(1).values, torch.arange(16).expand(200, 16))
    assert torch.equal(strata, strata.sort(1).values) is not shuffled
    assert 0.4 < float((drawn * 16 - strata).mean()) < 0.6
