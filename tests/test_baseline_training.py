"""What the trainings of all baselines share: one update, and settings that none of them has."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from baselines.training import _check, descend
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.stages import TrainConfig
from pagoda_bench.training import parallel
from pagoda_bench.training.loop import Task
from pagoda_bench.training.updates import optimizer


@pytest.mark.parametrize("kind", ["adam", "adamw", "radam"])
def test_an_update_is_that_of_the_optimiser_that_the_recipe_names(kind: Any) -> None:
    config = TrainConfig(steps=1, lr=0.1, optimizer=kind, clip=0.5)
    ours, theirs = nn.Linear(2, 1), nn.Linear(2, 1)
    theirs.load_state_dict(ours.state_dict())
    other = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "radam": torch.optim.RAdam}[kind](
        theirs.parameters(), lr=0.1, betas=config.betas, weight_decay=0.0
    )
    adam, x = optimizer(list(ours.parameters()), config), torch.tensor([[3.0, -4.0]])
    for _ in range(3):
        found = descend(adam, ours(x).square().sum(), config)
        loss = theirs(x).square().sum()
        other.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)
        other.step()
        assert found == {"loss": pytest.approx(float(loss.detach()))}
    torch.testing.assert_close(ours.weight, theirs.weight)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_update_that_is_not_finite_changes_nothing_and_says_so(bad: float) -> None:
    net, config = nn.Linear(2, 1), TrainConfig(steps=1)
    adam, before = optimizer(list(net.parameters()), config), net.weight.detach().clone()
    found = descend(adam, net(torch.tensor([[1.0, bad]])).sum(), config)
    assert not all(map(math.isfinite, found.values()))
    assert torch.equal(net.weight, before)


@pytest.mark.parametrize(
    "change", [{"accumulate": 2}, {"emas": [0.9]}, {"shard": True}, {"precision": "fp16"}, {"evaluate": 3}, {"grids": 2}]
)
def test_a_setting_that_no_baseline_has_is_refused(change: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "world", lambda: 2)  # alone, a process may be asked to share
    task = Task(lambda index, rng: {}, {"net": nn.Linear(2, 1)}, {})
    _check(TrainConfig(steps=1, precision="bf16", clip=1.0), "t", task)
    with pytest.raises(UserError, match=rf"^t: train\.{next(iter(change))} ") as refused:
        _check(TrainConfig(steps=1, **change), "t", task)
    assert "\n" not in str(refused.value)


def test_pictures_are_for_a_training_that_makes_samples() -> None:
    task = Task(lambda index, rng: {}, {"net": nn.Linear(2, 1)}, {}, samples=lambda: np.zeros((1, 2, 2, 3), np.uint8))
    _check(TrainConfig(steps=1, grids=2), "t", task)
