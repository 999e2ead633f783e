"""From losses to updates: loss scaling, clipping, skipped steps, checkpoints that are damaged, logs and grids."""

from __future__ import annotations

import io
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pagoda_bench.errors import UserError
from pagoda_bench.recipes.stages import TrainConfig
from pagoda_bench.training import checkpoints, loop
from pagoda_bench.training.logs import milestones, read, save_picture, sheet
from pagoda_bench.training.loop import Task, train
from pagoda_bench.training.updates import LossScale, apply, optimizer
from tests.test_training import Stop, context, task, weights


def test_the_loss_scale_is_pytorchs() -> None:
    """The same scale and the same weights as torch.amp.GradScaler over steps of which some overflow."""
    theirs = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3)
    mine = LossScale("fp16", start=64.0, interval=3)
    nets = [nn.Linear(3, 1), nn.Linear(3, 1)]
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers = [torch.optim.SGD(net.parameters(), lr=0.1) for net in nets]
    for step in range(12):
        x = torch.full((2, 3), float("inf") if step in (2, 7, 8) else 0.1 * step)
        for each in optimizers:
            each.zero_grad()
        theirs.scale(nets[0](x).square().mean()).backward()
        theirs.step(optimizers[0])
        theirs.update()
        loss = nets[1](x).square().mean()
        (mine.value * loss).backward()
        norm = apply(optimizers[1], [], scale=mine)
        assert math.isfinite(norm) == (step not in (2, 7, 8))
        assert mine.value == theirs.get_scale()
        torch.testing.assert_close(nets[1].weight, nets[0].weight)
    again = LossScale("fp16")
    again.load_state_dict(mine.state_dict())
    assert (again.value, again.good) == (mine.value, mine.good)


def test_a_scale_that_falls_without_end_stops_the_training() -> None:
    scale = LossScale("fp16", start=2.0**-13)
    scale.update(finite=False)
    with pytest.raises(UserError, match="overflow float16 even at a loss scale"):
        scale.update(finite=False)


def test_clipping_is_pytorchs() -> None:
    torch.manual_seed(0)
    nets = [nn.Linear(4, 4), nn.Linear(4, 4)]
    nets[1].load_state_dict(nets[0].state_dict())
    x = torch.randn(8, 4)
    for net in nets:
        (100 * net(x).square().sum()).backward()
    expected = torch.nn.utils.clip_grad_norm_(nets[0].parameters(), 0.5)
    torch.optim.SGD(nets[0].parameters(), lr=0.1).step()
    norm = apply(torch.optim.SGD(nets[1].parameters(), lr=0.1), [1.0], clip=0.5)
    assert norm == pytest.approx(float(expected))
    torch.testing.assert_close(nets[1].weight, nets[0].weight)


@pytest.mark.parametrize("name", ["adam", "adamw", "radam"])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_a_step_is_pytorchs_plain_one_whatever_the_layout_of_a_gradient(name: str, layout: torch.memory_format) -> None:
    plain = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "radam": torch.optim.RAdam}[name]
    start, config = torch.randn(8, 4, 3, 3), TrainConfig(steps=1, optimizer=name, lr=0.1)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    mine = optimizer([ours], config)
    other = plain([theirs], lr=0.1, betas=config.betas, weight_decay=0.0)
    for _ in range(8):
        gradient = torch.randn(8, 4, 3, 3)
        ours.grad, theirs.grad = gradient.contiguous(memory_format=layout), gradient
        apply(mine, [0.0])
        other.step()
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", ["loss", "gradient"])
def test_an_update_that_is_not_finite_changes_nothing(bad: str) -> None:
    net = nn.Linear(2, 1)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    net(torch.ones(1, 2)).sum().backward()
    apply(optimizer, [1.0])
    before = {k: v.clone() for k, v in net.state_dict().items()}
    moment = optimizer.state[net.weight]["exp_avg"].clone()
    net.weight.grad = torch.full_like(net.weight, math.inf if bad == "gradient" else 1.0)
    assert math.isnan(apply(optimizer, [math.nan if bad == "loss" else 1.0]))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(optimizer.state[net.weight]["exp_avg"], moment)


def failing(at: set[int]) -> Task:
    """A task whose steps in `at` are not finite and change nothing."""
    t = task()
    inner = t.step
    t.step = lambda index, rng: {"loss": math.nan} if index in at else inner(index, rng)
    return t


def test_steps_that_are_not_finite_are_skipped_counted_and_borne_only_so_long(tmp_path: Path) -> None:
    config = TrainConfig(steps=10, skips=2)
    ctx = context(tmp_path / "a")
    train(failing({2, 3, 6}), config, 0, ctx)
    assert ctx.facts["skipped"] == 3
    with pytest.raises(UserError, match=r"stopped at step 5 \(skipped 2 before it\): loss=nan is not finite"):
        train(failing({3, 4, 5}), config, 0, context(tmp_path / "b"))


def test_a_skipped_step_leaves_weights_and_averages(tmp_path: Path) -> None:
    bad = failing({9})
    train(bad, TrainConfig(steps=10, skips=1, schedule="constant"), 0, context(tmp_path / "a"))
    good = task()
    train(good, TrainConfig(steps=9, schedule="constant"), 0, context(tmp_path / "b"))
    assert all(torch.equal(v, weights(good)[k]) for k, v in weights(bad).items())


@pytest.mark.parametrize("kind", ["adam", "radam"])
def test_a_rate_of_zero_is_not_the_recipes(kind: str) -> None:
    """As of a discriminator that is to stand still (loss.lr_discriminator 0)."""
    config = TrainConfig.model_validate({"steps": 1, "lr": 0.5, "optimizer": kind})
    parameter = nn.Parameter(torch.ones(1))
    assert optimizer([parameter], config, 0.0).param_groups[0]["lr"] == 0
    assert optimizer([parameter], config).param_groups[0]["lr"] == 0.5


def interrupted(folder: Path, at: int, keep: int = 2) -> None:
    with pytest.raises(Stop):
        train(task(fail_at=at), TrainConfig(steps=12, warmup=3, keep=keep), 7, context(folder))


@pytest.mark.parametrize("damage", ["cut", "flipped", "other"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    damage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    interrupted(tmp_path / "parts", 8)
    newest, before = checkpoints.saved(tmp_path / "parts" / "work")
    assert (newest.name, before.name) == ("checkpoint-00000008.pt", "checkpoint-00000007.pt")
    content = newest.read_bytes()
    if damage == "cut":
        newest.write_bytes(content[: len(content) // 2])
    elif damage == "flipped":
        newest.write_bytes(content[:2000] + bytes([content[2000] ^ 1]) + content[2001:])
    else:
        torch.save([1, 2], newest)
        newest.with_suffix(".json").unlink()
    seen: list[int] = []
    last = task()
    inner = last.step
    last.step = lambda index, rng: (seen.append(index), inner(index, rng))[1]
    train(last, TrainConfig(steps=12, warmup=3), 7, context(tmp_path / "parts"))
    assert seen == [7, 8, 9, 10, 11]
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert "checkpoint-00000008.pt is damaged" in said[0]
    whole = task()
    train(whole, TrainConfig(steps=12, warmup=3), 7, context(tmp_path / "whole"))
    assert all(torch.equal(v, weights(last)[k]) for k, v in weights(whole).items())


def test_what_a_killed_process_had_half_written_goes(tmp_path: Path) -> None:
    checkpoints.save(tmp_path, {"step": 1}, keep=1)
    before = sorted(tmp_path.iterdir())
    program = (
        "import os, pathlib, sys; from pagoda_bench.artifacts.checkpoint import save_atomic; "
        "save_atomic(pathlib.Path(sys.argv[1]), lambda path: (path.write_bytes(b'half'), os.kill(os.getpid(), 9)))"
    )
    for path in (checkpoints.path_of(tmp_path, 2), checkpoints.part_of(tmp_path, 2, 1, 2)):
        subprocess.run([sys.executable, "-c", program, str(path)], check=False)
    assert len(list(tmp_path.iterdir())) == len(before) + 2
    assert checkpoints.newest(tmp_path) == {"step": 1}
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_checkpoint_takes_the_place_of_no_whole_one(keep: int, tmp_path: Path) -> None:
    """Training goes on below it, so for a while the damaged one is of the latest step."""
    for step in (1, 2):
        checkpoints.save(tmp_path, {"step": step}, keep=2)
    checkpoints.path_of(tmp_path, 2).write_bytes(b"cut")
    checkpoints.path_of(tmp_path, 5).write_bytes(b"cut")
    checkpoints.save(tmp_path, {"step": 3}, keep, best=1)
    checkpoints.save(tmp_path, {"step": 4}, keep, best=1)
    expected = [4, 3, 1] if keep == 2 else [4, 1]
    assert [int(path.stem[-8:]) for path in checkpoints.saved(tmp_path)] == expected
    state = checkpoints.newest(tmp_path)
    assert state is not None
    assert state["step"] == 4


def test_only_the_last_checkpoints_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    interrupted(tmp_path, 9, keep=3)
    assert [int(p.stem[-8:]) for p in checkpoints.saved(tmp_path / "work")] == [9, 8, 7]
    assert len(list((tmp_path / "work").glob("checkpoint-*.json"))) == 3


def test_a_checkpoint_of_an_earlier_release_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    interrupted(tmp_path, 5)
    work = tmp_path / "work"
    newest = checkpoints.saved(work)[0]
    state = torch.load(newest, weights_only=True)
    old = {k: state[k] for k in ("nets", "optimizers", "emas", "step", "flops", "curve")}
    for path in work.iterdir():
        path.unlink()
    torch.save(old, work / "checkpoint.pt")
    last = task()
    train(last, TrainConfig(steps=12, warmup=3), 7, context(tmp_path))
    whole = task()
    train(whole, TrainConfig(steps=12, warmup=3), 7, context(tmp_path / "whole"))
    assert all(torch.equal(v, weights(last)[k]) for k, v in weights(whole).items())


def test_the_log_is_the_same_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    interrupted(tmp_path / "parts", 8)
    for folder in ("parts", "whole"):
        train(task(), TrainConfig(steps=12, warmup=3), 7, context(tmp_path / folder))
    logs = [(tmp_path / folder / "out" / "log.csv").read_text() for folder in ("parts", "whole")]
    assert logs[0] == logs[1]
    rows = read(tmp_path / "whole" / "out" / "log.csv")
    assert [int(row["step"]) for row in rows] == list(range(12))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"])


def test_tensorboard_has_what_the_csv_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    monkeypatch.setenv("PAGODA_BENCH_TENSORBOARD", str(tmp_path / "events"))
    train(task(), TrainConfig(steps=5), 0, context(tmp_path))
    (folder,) = (tmp_path / "events").iterdir()
    found = events.EventAccumulator(str(folder)).Reload().Scalars("loss")
    rows = read(tmp_path / "out" / "log.csv")
    np.testing.assert_allclose([e.value for e in found], [float(row["loss"]) for row in rows], rtol=1e-4)


def test_tensorboard_has_the_grids_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard")
    monkeypatch.setenv("PAGODA_BENCH_TENSORBOARD", str(tmp_path / "events"))
    t = task()
    t.samples = lambda: np.full((3, 4, 4, 3), 200, np.uint8)
    train(t, TrainConfig(steps=4, grids=2), 0, context(tmp_path))
    (folder,) = (tmp_path / "events").iterdir()
    found = events.EventAccumulator(str(folder)).Reload().Images("samples")
    assert [e.step for e in found] == [1, 3]
    assert np.asarray(Image.open(io.BytesIO(found[0].encoded_image_string))).shape == (4, 32, 3)


def test_tensorboard_that_is_asked_for_and_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    train(task(), TrainConfig(steps=1), 0, context(tmp_path / "a"))  # not asked for, not needed
    monkeypatch.setenv("PAGODA_BENCH_TENSORBOARD", str(tmp_path / "events"))
    with pytest.raises(UserError, match=r"tensorboard is not installed: pip install 'pagoda-bench\[logs\]', or unset it"):
        train(task(), TrainConfig(steps=1), 0, context(tmp_path / "b"))


def test_grids_show_samples_at_milestones(tmp_path: Path) -> None:
    t = task()
    pictures = np.random.default_rng(0).integers(0, 256, (10, 4, 4, 3), dtype=np.uint8)
    t.samples = lambda: pictures
    train(t, TrainConfig(steps=10, grids=2), 0, context(tmp_path))
    paths = sorted((tmp_path / "out" / "grids").iterdir())
    assert [p.name for p in paths] == ["00000005.png", "00000010.png"]
    sheet = np.asarray(Image.open(paths[0]))
    assert sheet.shape == (8, 32, 3)
    np.testing.assert_array_equal(sheet[4:, 4:8], pictures[9])
    assert not sheet[4:, 8:].any()
    assert milestones(7, 0) == set()


def test_a_grid_is_row_by_row(tmp_path: Path) -> None:
    pictures = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
    save_picture(sheet(pictures, columns=3), tmp_path / "g.png")
    assert np.asarray(Image.open(tmp_path / "g.png"))[::2, ::2, 0].tolist() == [[0, 1, 2], [3, 4, 5]]
