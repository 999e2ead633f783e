"""Stages that several processes make together: shards of the work, and ranks of one computation."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_chain import PAIRS
from together import free_ports, together
from toy_parallel import ToyMean, ToyShards
from toy_site import toy_environment
from toy_stages import Toy, interrupt, make

from pagoda_bench.artifacts.gc import garbage
from pagoda_bench.artifacts.provenance import ATTEMPTS
from pagoda_bench.artifacts.ranks import Place, first_host, place
from pagoda_bench.artifacts.store import Store
from pagoda_bench.errors import UserError
from pagoda_bench.plan.dag import Plan
from pagoda_bench.plan.inline import run_plan
from pagoda_bench.plan.parallel import read_shard, run_rank, run_shard
from pagoda_bench.recipes.base import Recipe

# Ranks


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("a,b", "a"),
        ("gpu[03-05,9],x", "gpu03"),
        ("r[1-2]n[07,08]", "r1n07"),
        ("lone", "lone"),
        ("a[1,2]b,c", "a1b"),
        ("", "127.0.0.1"),
    ],
)
def test_the_first_of_slurms_hosts(nodes: str, host: str) -> None:
    assert first_host(nodes) == host


def test_where_a_process_learns_its_rank() -> None:
    slurm = {
        "SLURM_PROCID": "3",
        "SLURM_NTASKS": "4",
        "SLURM_LOCALID": "1",
        "SLURM_STEP_ID": "0",
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_ID": "20007",
    }
    assert place(slurm) == Place(3, 4, 1, "n1", 20_007)
    assert place({**slurm, "MASTER_ADDR": "x", "MASTER_PORT": "5"}) == Place(3, 4, 1, "x", 5)
    assert place({key: value for key, value in slurm.items() if key != "SLURM_STEP_ID"}) == Place()  # a batch script
    assert place({**slurm, "SLURM_NTASKS": "1"}) == Place()
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "h", "MASTER_PORT": "9"}
    assert place({**slurm, **torchrun}) == Place(1, 2, 1, "h", 9)
    assert place({}).first


@pytest.mark.parametrize("said", [{"RANK": "x", "WORLD_SIZE": "2"}, {"RANK": "2", "WORLD_SIZE": "2"}])
def test_ranks_that_cannot_be(said: dict[str, str]) -> None:
    with pytest.raises(UserError, match="let the launcher set them"):
        place(said)


@given(rows=st.integers(0, 50), size=st.integers(1, 9))
def test_shares_of_a_batch_cover_it_evenly(rows: int, size: int) -> None:
    from pagoda_bench.training.distributed import share

    shares = [range(rows)[share(rows, Place(rank, size))] for rank in range(size)]
    assert [row for part in shares for row in part] == list(range(rows))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


def test_two_processes_make_one_artifact(tmp_path: Path) -> None:
    """Two ranks that torchrun's variables describe; gloo, and one payload."""
    path = written(ToyMean(), tmp_path)
    store = tmp_path / "store"
    variables = {**toy_environment(tmp_path), "MASTER_PORT": str(free_ports(1)[0])}
    together(
        "pagoda_bench.cli.main", ["run-stage", str(path), "--store", str(store)], tmp_path / "logs", 2, variables, seconds=300
    )
    artifact = Store(store).find(ToyMean())
    assert artifact is not None
    assert (artifact.path / "mean.txt").read_text() == "2 [0.5, 1.0]"
    assert artifact.provenance["size"] == 2
    assert list((store / "toy-mean").iterdir()) == [artifact.path]


# Shards


def written(recipe: Recipe, folder: Path, name: str = "recipe") -> Path:
    path = folder / f"{name}.json"
    path.write_text(json.dumps({**recipe.to_dict(), "key": recipe.key}))
    return path


@pytest.mark.parametrize(("text", "shard"), [("0/1", (0, 1)), ("3/8", (3, 8)), ("8/8", None), ("1", None), ("-1/2", None)])
def test_shards_as_they_are_written(text: str, shard: tuple[int, int] | None) -> None:
    if shard is not None:
        assert read_shard(text) == shard
        return
    with pytest.raises(UserError, match="write I/N"):
        read_shard(text)


def test_whoever_finds_nothing_missing_publishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log = tmp_path / "steps"
    monkeypatch.setattr("toy_stages.STEPS_LOG", [log])
    store, recipe = Store(tmp_path / "store"), ToyShards()
    path = written(recipe, tmp_path)
    assert [run_shard(path, store, (i, 3)) for i in (2, 0)] == [None, None]
    made = run_shard(path, store, (1, 3))
    assert made is not None
    assert run_shard(path, store, (0, 3)) == made  # a late one finds it made
    assert log.stat().st_size == recipe.n  # each once
    expected = run_plan(Plan([recipe], Store(tmp_path / "inline"))).artifacts[recipe.key]
    assert made.digest == expected.digest
    assert made.provenance["attempts"] == 4  # three shards and the publication
    assert not (store.root / ".work" / f"toy-shards-{recipe.key}").exists()


def test_a_shard_that_was_lost_is_made_by_the_stage_itself(tmp_path: Path) -> None:
    store, recipe = Store(tmp_path / "store"), ToyShards()
    assert run_shard(written(recipe, tmp_path), store, (0, 2)) is None
    made = run_plan(Plan([recipe], store)).artifacts[recipe.key]
    assert (made.path / "state.txt").stat().st_size == 64 * recipe.n


def test_gc_sees_that_a_shard_is_being_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, recipe = Store(tmp_path / "store"), ToyShards()
    seen = []
    monkeypatch.setattr("toy_parallel.count_step", lambda: seen.append(garbage(Store(store.root), 0)))
    assert run_shard(written(recipe, tmp_path), store, (0, 2)) is None
    assert seen == [[]] * 6
    assert [item.why for item in garbage(Store(store.root), 0)] == ["interrupted work"]


def test_shards_of_a_retraining_use_nothing_older(tmp_path: Path) -> None:
    store, recipe = Store(tmp_path / "store"), ToyShards()
    path = written(recipe, tmp_path)
    work = store.root / ".work" / f"toy-shards-{recipe.key}"
    interrupt(recipe, store, "0.txt", "old")
    assert run_shard(path, store, (1, 2), session="again") is None
    assert not (work / "0.txt").exists()
    assert json.loads((work / ATTEMPTS).read_text())["session"] == "again"
    made = run_shard(path, store, (0, 2), session="again")
    assert made is not None
    assert "old" not in (made.path / "state.txt").read_text()
    assert made.provenance["session"] == "again"


def test_a_process_of_a_retraining_takes_no_older_input(tmp_path: Path) -> None:
    store, part = Store(tmp_path / "store"), Toy()
    make(part, store)
    shared, ranked = written(ToyShards(parts=(part,)), tmp_path, "shared"), written(ToyMean(parts=(part,)), tmp_path, "ranked")
    with pytest.raises(UserError, match="which is not made yet by this retraining"):
        run_shard(shared, store, (0, 2), session="again")
    with pytest.raises(UserError, match="which is not made yet by this retraining"):
        run_rank(ranked, store, session="again")
    make(part, store, session="again")
    assert [run_shard(shared, store, (i, 2), session="again") is None for i in (0, 1)] == [True, False]


def test_what_cannot_be_shared_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="kind 'toy' is not made in shards"):
        run_shard(written(Toy(), tmp_path), Store(tmp_path / "store"), (0, 2))


def test_pairs_in_shards_are_the_same_bytes(tmp_path: Path) -> None:
    whole, shared = Store(tmp_path / "whole"), Store(tmp_path / "shared")
    expected = run_plan(Plan([PAIRS], whole)).artifacts[PAIRS.key]
    teacher = whole.find(PAIRS.teacher)
    assert teacher is not None
    whole.export(teacher, shared.root)
    path = written(PAIRS, tmp_path)
    _, made = (run_shard(path, shared, (index, 2)) for index in (1, 0))
    assert made is not None
    assert made.digest == expected.digest
