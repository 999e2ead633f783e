"""Stages in shards and in several processes, as SLURM is asked for them and as they are watched; a scratch folder; a full
disk; against programs that only pretend to be SLURM."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import pytest
from fake_slurm import options, scripts
from toy_parallel import ToyMean, ToyShards
from toy_stages import Toy, ToySum

from pagoda_bench.artifacts.store import Store
from pagoda_bench.errors import UserError
from pagoda_bench.plan import attempts
from pagoda_bench.plan.attempts import Ended, blamed
from pagoda_bench.plan.dag import Plan
from pagoda_bench.plan.requests import Profile
from pagoda_bench.plan.slurm import describe_submission, submit_plan
from pagoda_bench.plan.slurm_task import Asked, Runner
from pagoda_bench.plan.sweeps import RESERVE, Sweep
from pagoda_bench.plan.watch import Standing, overview

pytest.importorskip("submitit", reason="pip install 'pagoda-bench[slurm]'")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


SHARED = Profile(stages={"toy-shards": {"shards": 3}})


def test_shards_are_elements_of_one_array_that_the_next_level_waits_for(fake: Path, store: Store) -> None:
    shared = [ToyShards(n=n) for n in (5, 6)]
    above = ToySum(parts=tuple(shared))
    plan = Plan([above], store)
    assert describe_submission(plan, SHARED) == "7 jobs in 3 calls of sbatch on 2 levels (arrays of at most 4)"
    sweep = submit_plan(plan, SHARED, name="test")
    first, second, last = (options(script) for script in scripts(fake))
    assert (first["array"], second["array"]) == ("0-2%3", "0-2%3")  # the shards of one stage stay together
    assert last["dependency"] == "afterany:101:102"
    assert sweep.elements() == {
        shared[0].key: ("101_0", "101_1", "101_2"),
        shared[1].key: ("102_0", "102_1", "102_2"),
        above.key: ("103",),
    }
    with pytest.raises(UserError, match="shards = 5 is more than an array"):
        submit_plan(Plan([ToyShards(n=7)], store), Profile(stages={"toy-shards": {"shards": 5}}), name="test")


def test_several_processes_are_tasks_of_one_job(fake: Path, store: Store) -> None:
    profile = Profile(stages={"toy-mean": {"nodes": 2, "tasks": 4, "gpus": 4}})
    submit_plan(Plan([ToyMean()], store), profile, name="test")
    (script,) = scripts(fake)
    said = options(script)
    assert (said["nodes"], said["ntasks-per-node"], said["gpus-per-node"]) == ("2", "4", "4")
    assert "--kill-on-bad-exit=1" in script


@pytest.mark.parametrize(
    ("recipe", "asked", "message"),
    [
        (Toy(), {"shards": 2}, "stages.toy: shards = 2: the work of this kind of stage cannot be shared"),
        (Toy(), {"tasks": 2}, "stages.toy: nodes = 1, tasks = 2: this kind of stage computes in one process"),
        (ToyMean(), {"shards": 0}, "stages.toy-mean: shards: Input should be greater than or equal to 1"),
    ],
)
def test_what_a_kind_of_stage_cannot_do(recipe: Any, asked: dict[str, int], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Profile(stages={recipe.kind: asked}).request(recipe)
    assert message in str(caught.value)


def standing(sweep: Sweep, store: Store, key: str) -> Standing:
    return next(task for task in overview(Sweep(sweep.folder), store).tasks if task.key == key)


def test_a_stage_in_shards_is_watched_as_one(fake: Path, store: Store) -> None:
    shared = ToyShards()
    sweep = submit_plan(Plan([shared], store), SHARED, name="test")
    (fake / "queue").write_text("101_0|RUNNING|0:10|n1|None\n101_1|PENDING|0:00||Priority\n101_2|PENDING|0:00||Priority\n")
    sweep.event(shared.key, "start", job="101_0", gpus=1, host="n1")
    sweep.log(shared.key, "shard-0").write_text("at work\n")
    assert standing(sweep, store, shared.key).state == "running"
    assert standing(sweep, store, shared.key).line == "0 of 3 shards; at work"
    sweep.event(shared.key, "end", job="101_0", cause="done", code=0, seconds=7200.0, line="")
    (fake / "queue").write_text("101_1|PENDING|0:00||Priority\n101_2|PENDING|0:00||Priority\n")
    assert standing(sweep, store, shared.key).line == "1 of 3 shards; Priority"
    # One fails, the other ends well, and so nobody has published.
    for job, cause in (("101_1", "CUDA error"), ("101_2", "done")):
        sweep.event(shared.key, "start", job=job, gpus=1, host="n2")
        sweep.event(shared.key, "end", job=job, cause=cause, code=1, seconds=3600.0, line=f"said by {job}")
    (fake / "queue").write_text("")
    found = standing(sweep, store, shared.key)
    assert (found.state, found.cause, found.line, found.job) == ("failed", "CUDA error", "said by 101_1", "101_1")
    assert found.gpu_seconds == 4 * 3600
    make_shards(shared, store)
    assert standing(sweep, store, shared.key).state == "done"


def make_shards(recipe: ToyShards, store: Store) -> None:
    with store.making(recipe) as context:
        assert context is not None
        (context.out / "state.txt").write_text("made")


def test_a_stage_that_ends_while_one_looks_has_not_failed(fake: Path, store: Store) -> None:
    recipe = Toy(seed=7)  # that which toy_stages makes as a program
    sweep = submit_plan(Plan([recipe], store), Profile(), name="test")
    (fake / "queue").write_text("101|COMPLETED|0:10|n1|None\n")
    sweep.event(recipe.key, "start", job="101", gpus=0, host="n1")
    sweep.event(recipe.key, "end", job="101", cause="done", code=0, seconds=1.0, line="")
    assert standing(sweep, store, recipe.key).cause == "artifact gone"
    # It appears after the store was looked at, before SLURM was asked.
    program = "#!/bin/sh\n{python} {toys} make {root} 0 >&2\ncat {fake}/queue\n"
    toys = Path(__file__).with_name("toy_stages.py")
    (fake / "bin" / "squeue").write_text(program.format(python=sys.executable, toys=toys, root=store.root, fake=fake))
    assert standing(sweep, store, recipe.key).state == "done"


def test_a_scratch_folder_is_made_and_one_that_cannot_be_is_named(
    fake: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    (tmp_path / "file").touch()
    for name, cause in (("there", "refused"), ("file", "scratch not writable")):
        sweep = submit_plan(Plan([Toy(seed=3)], store), Profile(scratch=f"{tmp_path}/{name}/$SLURM_JOB_ID"), name=name)
        assert Runner(sweep, Toy(seed=3).key, 10_000, Asked()).run() == 2
        (end,) = [event for event in sweep.events(Toy(seed=3).key) if event["event"] == "end"]
        assert end["cause"] == cause  # the stage itself is unknown to a bare process
    assert (tmp_path / "there" / "7").is_dir()


def test_a_scratch_that_cannot_be_is_refused_before(fake: Path, store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is no folder that can be written to"):
        submit_plan(Plan([Toy()], store), Profile(scratch=str(tmp_path / "file")), name="test")
    assert scripts(fake) == []


def test_events_are_written_on_a_full_disk_too(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = Sweep.create(Plan([Toy()], store), "full", executor="slurm", data={})
    reserve = sweep.folder / "events" / RESERVE
    assert reserve.stat().st_size > 4096
    original = Path.open

    def full(self: Path, *arguments: Any, **named: Any) -> Any:
        if self.suffix == ".jsonl" and reserve.exists():
            raise OSError(errno.ENOSPC, "No space left on device", str(self))
        return original(self, *arguments, **named)

    monkeypatch.setattr(Path, "open", full)
    sweep.event(Toy().key, "end", cause="disk full")
    assert not reserve.exists()
    assert [event["cause"] for event in sweep.events(Toy().key)] == ["disk full"]


def test_who_fails_on_a_full_disk_fails_because_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    end = Ended("failed", 1, 2.0, "exit code 1")
    assert blamed(end, tmp_path) == end
    monkeypatch.setattr(attempts, "nearly_full", lambda folder: True)
    assert blamed(end, tmp_path).cause == "disk full"
    assert blamed(Ended("done", 0, 2.0), tmp_path).cause == "done"
