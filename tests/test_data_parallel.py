"""Two processes with half of every batch do what one does with the whole: losses, weights and batch norms, to rounding."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.artifacts.store import Store
from pagoda_bench.errors import UserError
from pagoda_bench.nets.features import load_half
from pagoda_bench.pagoda import pairs
from pagoda_bench.training import parallel
from tests.parallel_methods import all_models, runs
from tests.test_steps import PAIRS, inputs
from tests.together import free_ports, together
from tests.toy_scale import make


@pytest.mark.slow
def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    found = inputs(tmp_path)
    ctx = StageContext.for_test(tmp_path / "pairs", tmp_path / "work", found)
    pairs.run(PAIRS, ctx)
    everything = {**found, PAIRS.key: tmp_path / "pairs"}
    (tmp_path / "inputs.json").write_text(json.dumps({k: str(v) for k, v in everything.items()}))
    facts: dict[str, list[dict[str, Any]]] = {}
    for name, world in (("one", 1), ("two", 2)):
        ports = free_ports(3) if world > 1 else [0, 0, 0]
        together(
            "tests.parallel_train", [str(tmp_path), str(tmp_path / name), *map(str, ports)], tmp_path / f"{name}-logs", world
        )
        facts[name] = [json.loads((tmp_path / f"{name}{rank}" / "facts.json").read_text()) for rank in range(world)]
    (one,), (first, second) = facts["one"], facts["two"]
    for stage in ("distill", "teacher"):
        assert first[stage]["curve"] == second[stage]["curve"]  # averaged over both
        for a, b in zip(one[stage]["curve"], first[stage]["curve"], strict=True):
            assert a == pytest.approx(b, rel=2e-3, abs=2e-4)
        assert first[stage]["training_flops"] == pytest.approx(one[stage]["training_flops"], rel=0.02)
        weights = [load_half(tmp_path / name / stage / "model.safetensors") for name in ("one0", "two0", "two1")]
        for key, value in weights[0].items():
            torch.testing.assert_close(weights[1][key], value, rtol=0.02, atol=2e-3)
            assert torch.equal(weights[1][key], weights[2][key]), key
    assert first["norm"] == pytest.approx(one["norm"], rel=1e-4, abs=1e-5)


@pytest.mark.slow
def test_two_processes_train_every_baseline_as_one_does(tmp_path: Path) -> None:
    store, found = Store(tmp_path / "store"), runs()
    make(store, all_models())
    ports = map(str, free_ports(len(found)))
    together("tests.parallel_methods", [str(store.root), str(tmp_path / "rank"), *ports], tmp_path / "logs", 2)
    assert len({recipe.kind for recipe, _ in found}) >= 8
    for recipe, name in found:
        alone = store.find(recipe)
        assert alone is not None
        one = load_half(alone.path / "model.safetensors")
        first, second = (load_half(tmp_path / f"rank{rank}" / name / "out" / "model.safetensors") for rank in (0, 1))
        facts = json.loads((tmp_path / "rank0" / name / "facts.json").read_text())
        assert (facts["processes"], facts["sharded"]) == (2, name.endswith("-sharded"))
        assert facts["training_flops"] == pytest.approx(alone.provenance["training_flops"], rel=0.02)
        for key, value in one.items():
            where = f"{name} {recipe.title}: {key}"
            torch.testing.assert_close(
                first[key], value, rtol=0.02, atol=4e-3, msg=lambda said, where=where: f"{where}: {said}"
            )
            assert torch.equal(first[key], second[key]), where


def test_batch_norms_of_two_processes_are_those_of_one_in_any_precision(tmp_path: Path) -> None:
    together("tests.parallel_norms", [], tmp_path, 2, {"MASTER_PORT": str(free_ports(1)[0])})


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (1, 4), (2, 2), (4, 1)])
def test_parts_cover_a_batch_once(world: int, accumulate: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "world", lambda: world)
    rows: list[int] = []
    for rank in range(world):
        monkeypatch.setattr(parallel, "rank", lambda rank=rank: rank)
        found = list(parallel.parts(16, accumulate))
        assert len(found) == accumulate
        rows += [i for part in found for i in range(16)[part]]
    assert rows == list(range(16))


def test_a_batch_that_does_not_divide_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "world", lambda: 3)
    with pytest.raises(UserError, match="a batch of 16 does not divide into 3 processes times 2 passes"):
        list(parallel.parts(16, 2))


def test_a_device_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAGODA_BENCH_DEVICE", "abacus")
    with pytest.raises(UserError, match="PAGODA_BENCH_DEVICE=abacus is no device"):
        parallel.compute_device()
    monkeypatch.delenv("PAGODA_BENCH_DEVICE")
    assert parallel.compute_device() == torch.device("cpu")


def test_a_rank_that_fails_ends_the_others(tmp_path: Path) -> None:
    """Otherwise a test would wait for minutes, and leave processes behind."""
    begun = time.monotonic()
    with pytest.raises(AssertionError, match=r"(?s)rank 0 \(3\).*rank 1 \(None\)"):
        together("tests.together_toy", [], tmp_path, 2)
    assert time.monotonic() - begun < 60
