"""The training loop: what it counts, averages and restores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.errors import UserError
from pagoda_bench.nets import device
from pagoda_bench.recipes.stages import TrainConfig
from pagoda_bench.training import loop
from pagoda_bench.training.loop import EMA, Task, batch_indices, step_rng, train


class Stop(Exception):
    """Stands for whatever ends a process."""


def task(fail_at: int = -1) -> Task:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)

    def step(index: int, rng: np.random.Generator) -> dict[str, float]:
        if index == fail_at:
            raise Stop
        x = torch.from_numpy(rng.normal(size=(16, 4)).astype(np.float32)) + 0.1 * torch.randn(16, 4)
        loss = (net(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return {"loss": float(loss.detach())}

    return Task(step, {"net": net}, {"adam": optimizer}, {"net": EMA(net, 0.9)})


def context(folder: Path) -> StageContext:
    return StageContext.for_test(folder / "out", folder / "work")


def weights(t: Task) -> dict[str, torch.Tensor]:
    return {**t.nets["net"].state_dict(), **{f"ema.{k}": v for k, v in t.emas["net"].average.items()}}


@pytest.mark.parametrize("stops", [(3,), (1, 2, 9), (11,)])
def test_resuming_ends_in_the_same_bytes(stops: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)  # after every step
    config = TrainConfig(steps=12, warmup=3)
    whole = task()
    train(whole, config, 7, context(tmp_path / "whole"))
    for at in stops:
        with pytest.raises(Stop):
            train(task(fail_at=at), config, 7, context(tmp_path / "parts"))
    last = task()
    ctx = context(tmp_path / "parts")
    train(last, config, 7, ctx)
    for key, value in weights(whole).items():
        assert torch.equal(value, weights(last)[key]), key
    assert ctx.facts["steps"] == 12


def test_bf16_trains_fp32_weights_and_differs_by_rounding_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "fast_bfloat16", lambda: True)  # slow or not, this processor can
    full, half = task(), task()
    train(full, TrainConfig(steps=12), 7, context(tmp_path / "full"))
    train(half, TrainConfig(steps=12, precision="bf16"), 7, context(tmp_path / "half"))
    for key, value in weights(full).items():
        other = weights(half)[key]
        assert other.dtype == value.dtype, key
        torch.testing.assert_close(other, value, rtol=0.05, atol=0.05)
    assert any(not torch.equal(v, weights(half)[k]) for k, v in weights(full).items()), "nothing ran in bf16"


def test_a_processor_without_bfloat16_computes_in_float32_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "fast_bfloat16", lambda: False)
    full, half, ctx = task(), task(), context(tmp_path / "half")
    train(full, TrainConfig(steps=12), 7, context(tmp_path / "full"))
    train(half, TrainConfig(steps=12, precision="bf16"), 7, ctx)
    assert all(torch.equal(v, weights(half)[k]) for k, v in weights(full).items())
    assert ctx.facts["precision"] == "fp32"
    assert device.computed_precision("bf16", "cuda") == "bf16"


def test_a_checkpoint_saves_the_work_done_before_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    with pytest.raises(Stop):
        train(task(fail_at=8), TrainConfig(steps=12), 0, context(tmp_path))
    seen: list[int] = []
    again = task()
    inner = again.step
    again.step = lambda index, rng: (seen.append(index), inner(index, rng))[1]
    train(again, TrainConfig(steps=12), 0, context(tmp_path))
    assert seen == [8, 9, 10, 11]


def test_work_is_counted_exactly(tmp_path: Path) -> None:
    """Two linear layers on 16 rows: 2 operations a multiply-add, forward, and twice that backward, less the gradient with
    respect to the input, which nobody asks for."""
    ctx = context(tmp_path)
    train(task(), TrainConfig(steps=5), 0, ctx)
    forward = 2 * 16 * (4 * 8 + 8 * 1)
    backward = 2 * forward - 2 * 16 * 4 * 8
    assert ctx.facts["training_flops"] == 5 * (forward + backward)


def test_counting_leaves_no_trace(tmp_path: Path) -> None:
    counted, free = task(), task()
    loop._count(counted, 0)
    assert all(torch.equal(a, b) for a, b in zip(weights(counted).values(), weights(free).values(), strict=True))
    first, second = (t.step(0, step_rng(0, 0)) for t in (counted, free))
    assert first == second


def test_steps_can_follow_from_the_counted_work(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    budget = 1e6
    train(task(), TrainConfig(steps=1), 0, ctx, total=lambda flops: round(budget / flops))
    assert ctx.facts["training_flops"] == pytest.approx(budget, rel=0.01)


def test_a_loss_that_is_not_finite_stops_with_one_line(tmp_path: Path) -> None:
    bad = task()
    inner = bad.step
    bad.step = lambda index, rng: {"loss": float("nan")} if index == 3 else inner(index, rng)
    with pytest.raises(UserError, match="step 3: loss=nan is not finite"):
        train(bad, TrainConfig(steps=5), 0, context(tmp_path))


def test_ema_is_the_weighted_sum_of_the_past() -> None:
    net = nn.Linear(1, 1, bias=False)
    ema = EMA(net, 0.5)
    expected = float(net.weight.detach())
    for step in range(20):
        with torch.no_grad():
            net.weight.fill_(float(step))
        ema.update(net, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    assert float(ema.average["weight"]) == pytest.approx(expected, rel=1e-5)


def test_frozen_parameters_are_not_averaged_but_are_in_the_state() -> None:
    net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    net[0].requires_grad_(False)
    ema = EMA(net, 0.9)
    assert set(ema.average) == {"1.weight", "1.bias"}
    assert set(ema.state(net)) == set(net.state_dict())


@given(st.integers(1, 50), st.integers(1, 20), st.integers(0, 3))
def test_every_epoch_shows_every_image_once(size: int, batch: int, seed: int) -> None:
    steps = -(-3 * size // batch)
    seen = np.concatenate([batch_indices(size, batch, step, seed) for step in range(steps)])
    for epoch in range(3):
        assert sorted(seen[epoch * size : (epoch + 1) * size]) == list(range(size))


@given(st.integers(0, 5), st.integers(1, 2**20))
def test_an_endless_set_never_repeats(seed: int, step: int) -> None:
    now, later = batch_indices(None, 8, step, seed), batch_indices(None, 8, step + 1, seed)
    assert len({*now.tolist(), *later.tolist()}) == 16


@pytest.mark.parametrize("at", [0, 1, 5])
def test_random_numbers_belong_to_the_step(at: int) -> None:
    def draw() -> list[Any]:
        rng = step_rng(3, at)
        return [rng.random(), float(torch.rand(()))]

    first = draw()
    step_rng(3, at + 1)
    torch.rand(5)
    assert draw() == first


def test_rate_rises_then_falls_to_zero() -> None:
    schedule: Callable[[int], float] = lambda s: loop._schedule(s, 100, 10)  # noqa: E731
    rates = [schedule(s) for s in range(100)]
    assert max(rates) == max(rates[8:12])
    assert rates[0] < 0.11
    assert rates[-1] < 0.001
