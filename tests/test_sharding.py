"""Sharded weights: two processes, each with its part, do what one does with all, and any number goes on from a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.nets.features import load_half
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda import distill, grow, pairs, teacher
from pagoda_bench.training import checkpoints, loop, sharding
from tests import shard_train
from tests.shard_train import BASE, FIRST, GROWN, LAST_BEFORE, stage
from tests.test_steps import NET, PAIRS, TEACHER
from tests.test_steps import inputs as networks
from tests.together import free_ports, together

NAMES = ("distill", "grow", "teacher")


def near(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    for key, value in a.items():
        torch.testing.assert_close(b[key], value, rtol=0.02, atol=2e-3, msg=lambda said, key=key: f"{key}: {said}")


def same_course(a: list[dict[str, float]], b: list[dict[str, float]]) -> None:
    for one, other in zip(a, b, strict=True):
        assert other == pytest.approx(one, rel=2e-3, abs=5e-4)


@pytest.mark.slow
def test_two_processes_with_half_of_the_weights_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = networks(tmp_path)
    pairs.run(PAIRS, StageContext.for_test(tmp_path / "pairs", tmp_path / "work-pairs", found))
    everything = {**found, PAIRS.key: tmp_path / "pairs", BASE.key: found[TEACHER.key]}
    (tmp_path / "inputs.json").write_text(json.dumps({k: str(v) for k, v in everything.items()}))
    together("tests.shard_train", [str(tmp_path), *map(str, free_ports(4))], tmp_path / "logs", 2)
    facts: list[dict[str, Any]] = [json.loads((tmp_path / f"rank{rank}" / "facts.json").read_text()) for rank in (0, 1)]

    # Each held a part, about half.
    for held, total in zip(*(f["held"] for f in facts), strict=True):
        assert held[1] == total[1]
        assert held[0] + total[0] == held[1]
        assert 0.3 < held[0] / held[1] < 0.7

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", -1.0)
    alone = {
        name: stage(runner, recipe, tmp_path, tmp_path / f"alone-{name}", tmp_path / f"alone-work-{name}")
        for name, runner, recipe in zip(NAMES, (distill, grow, teacher), (BASE, GROWN, FIRST), strict=True)
    }
    for name, ctx in alone.items():
        first, second = (f[name] for f in facts)
        assert first["curve"] == second["curve"]
        assert (first["sharded"], first["processes"]) == (True, 2)
        assert first["parameters"] == ctx.facts["parameters"]
        same_course(ctx.facts["curve"], first["curve"])
        assert first["training_flops"] == pytest.approx(ctx.facts["training_flops"], rel=0.02)
        for file in ("model", "model-0.5"):
            mine, others = (load_half(tmp_path / f"rank{rank}" / name / f"{file}.safetensors") for rank in (0, 1))
            near(load_half(ctx.out / f"{file}.safetensors"), mine)
            assert not others, "what only the first publishes is put together there alone"

    # Evaluation and the best weights, which come from a checkpoint where they are not the last.
    measured = [f["distill"]["evaluations"] for f in (facts[0], facts[1], {"distill": alone["distill"].facts})]
    assert measured[0] == measured[1]
    assert [e["step"] for e in measured[0]] == [2, 4]
    assert measured[0] == [pytest.approx(e, rel=0.05) for e in measured[2]]
    assert (tmp_path / "rank0" / "distill" / "model-best.safetensors").is_file()

    # Each wrote its part; one process goes on from what two left.
    for rank in (0, 1):
        held = torch.load(checkpoints.part_of(tmp_path / "interrupted", LAST_BEFORE, rank, 2), weights_only=True)
        assert {"/nets/generator/out.2.weight", "/emas/generator/out.2.weight"} < held.keys()
    state = checkpoints.newest(tmp_path / "interrupted")
    assert state is not None
    assert state["step"] == LAST_BEFORE
    assert {k: v.shape for k, v in state["nets"]["generator"].items()} == {
        k: v.shape for k, v in UNet(NET).state_dict().items()
    }
    shutil.copytree(tmp_path / "interrupted", tmp_path / "mixed-work")
    mixed = stage(distill, BASE, tmp_path, tmp_path / "mixed", tmp_path / "mixed-work")
    same_course(alone["distill"].facts["curve"], mixed.facts["curve"])
    near(load_half(alone["distill"].out / "model.safetensors"), load_half(mixed.out / "model.safetensors"))


def test_alone_nothing_is_sharded(monkeypatch: pytest.MonkeyPatch) -> None:
    net = UNet(NET)
    monkeypatch.setenv("PAGODA_BENCH_DEVICE", "meta")
    sharding.shard(net, True)
    assert {p.device.type for p in net.parameters()} == {"meta"}
    assert not sharding.any_sharded(net.parameters())
    value = torch.ones(2)
    assert sharding.part(value, torch.zeros(2)) is value
    assert sharding.whole(value) is value
    assert sharding.divided({"a": [value, 3]}) == ({"a": [value, 3]}, {})
    assert shard_train.TRAIN.shard


PARTS = st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(any)


@given(rows=PARTS, columns=st.lists(st.integers(1, 3), max_size=2))
def test_tensors_in_parts_come_back_whole(rows: list[int], columns: list[int]) -> None:
    """Of any division along the first dimension, also with processes that hold nothing of it."""
    whole = torch.randn(sum(rows), *columns)
    state = {"nets": [{"w": {sharding.MARK: "/w", "shape": list(whole.shape)}}, 7]}
    found = sharding.united(state, [{"/w": piece} for piece in whole.split(rows)])
    assert found["nets"][1] == 7
    w = found["nets"][0]["w"]
    assert w.shape == whole.shape
    assert torch.equal(sharding.part(w, torch.zeros(())), whole)
    assert torch.equal(sharding.whole(w), whole)


@pytest.mark.parametrize("fault", ["missing", "damaged", "of another"])
def test_a_checkpoint_is_whole_with_all_its_parts(fault: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = torch.arange(6.0).view(3, 2)
    for step in (1, 2):
        for rank, piece in enumerate(whole.split([2, 1])):
            checkpoints._write(checkpoints.part_of(tmp_path, step, rank, 2), {"/nets/g/w": piece * step})
        mark = {sharding.MARK: "/nets/g/w", "shape": [3, 2]}
        checkpoints._write(checkpoints.path_of(tmp_path, step), {"step": step, "nets": {"g": {"w": mark}}, "parts": 2})
    state = checkpoints.newest(tmp_path)
    assert state is not None
    assert torch.equal(state["nets"]["g"]["w"].joined(), 2 * whole)

    part = checkpoints.part_of(tmp_path, 2, 1, 2)
    if fault == "missing":
        part.unlink()
    elif fault == "damaged":
        part.write_bytes(part.read_bytes()[:-7])
    else:
        checkpoints._write(part, {"/nets/g/v": whole})
    state = checkpoints.newest(tmp_path)
    assert state is not None
    assert torch.equal(state["nets"]["g"]["w"].joined(), whole)
    assert "checkpoint-00000002.pt is damaged" in capsys.readouterr().err

    # A later checkpoint removes the older ones, parts and all.
    checkpoints.save(tmp_path, {"step": 3}, keep=1, best=1)
    assert {p.name for p in tmp_path.glob("*.pt")} == {
        "checkpoint-00000003.pt",
        "checkpoint-00000001.pt",
        "part-00000001-0-of-2.pt",
        "part-00000001-1-of-2.pt",
    }
