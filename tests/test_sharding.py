"""Sharded weights: two processes, each with its part, do what one does with all, and any number goes on from a checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

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
            assert all(torch.equal(mine[k], others[k]) for k in others)

    # Evaluation and the best weights, which come from a checkpoint where they are not the last.
    measured = [f["distill"]["evaluations"] for f in (facts[0], facts[1], {"distill": alone["distill"].facts})]
    assert measured[0] == measured[1]
    assert [e["step"] for e in measured[0]] == [2, 4]
    assert measured[0] == [pytest.approx(e, rel=0.05) for e in measured[2]]
    assert (tmp_path / "rank0" / "distill" / "model-best.safetensors").is_file()

    # One process goes on from what two left.
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
    sharding.shard(net, True)
    assert not sharding.any_sharded(net.parameters())
    value = torch.ones(2)
    assert sharding.part(value, torch.zeros(2)) is value
    assert sharding.whole(value) is value
    assert sharding.collected({"a": [value, 3]}) == {"a": [value, 3]}
    assert shard_train.TRAIN.shard
