"""What is in the queue already: of whom, and what if SLURM does not say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fake_slurm import options, scripts
from toy_stages import Toy, ToySum, make

from pagoda_bench.artifacts.store import Store
from pagoda_bench.cli.main import main
from pagoda_bench.errors import UserError
from pagoda_bench.plan.dag import Plan
from pagoda_bench.plan.requests import Profile
from pagoda_bench.plan.slurm import resume, submit_plan
from pagoda_bench.plan.sweeps import Sweep, find_sweep, sweeps
from pagoda_bench.plan.watch import overview

pytest.importorskip("submitit", reason="pip install 'pagoda-bench[slurm]'")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_nothing_is_submitted_while_the_queue_is_not_known(fake: Path, store: Store) -> None:
    submit_plan(Plan([Toy()], store), Profile(), name="first")
    (fake / "bin" / "squeue").write_text("#!/bin/sh\nexit 1\n")
    with pytest.raises(UserError, match=r"SLURM does not answer \('squeue' fails\)"):
        submit_plan(Plan([Toy()], store), Profile(), name="second")
    assert len(scripts(fake)) == len(sweeps(store)) == 1
    (fake / "bin" / "squeue").write_text('#!/bin/sh\ncase "$*" in *gone*) exit 1;; esac\n')  # a user of the past
    (sweep,) = sweeps(store)
    (sweep.folder / "sweep.json").write_text(json.dumps({**sweep.about, "user": "gone"}))
    (sweep.folder / "submissions" / "0001.json").unlink()
    submit_plan(Plan([Toy()], store), Profile(), name="second")
    assert len(scripts(fake)) == 2


def test_resuming_a_stage_submits_what_it_needs(fake: Path, store: Store) -> None:
    parts = (Toy(seed=1), Toy(seed=2))
    above, other = ToySum(parts=parts), Toy(seed=3)
    submit_plan(Plan([above, other], store), Profile(), name="test")
    make(parts[0], store)
    (fake / "queue").write_text("101_1|FAILED|0:05|n|x\n101_2|FAILED|0:05|n|x\n102|FAILED|0:05|n|x\n")
    assert main(["resume", "test", above.key, "--store", str(store.root)]) == 0
    (sweep,) = sweeps(store)
    assert [job.keys for job in sweep.jobs[2:]] == [(parts[1].key,), (above.key,)]
    assert options(scripts(fake)[-1])["dependency"] == "afterany:103"


def test_jobs_of_who_resumed_a_sweep_are_seen(fake: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (fake / "bin" / "squeue").write_text('#!/bin/sh\ncase "$*" in *user=*bob*) echo "102|RUNNING|0:05|n1|None";; esac\n')
    monkeypatch.setattr("getpass.getuser", lambda: "ann")
    sweep = submit_plan(Plan([Toy()], store), Profile(), name="first")
    monkeypatch.setattr("getpass.getuser", lambda: "bob")
    assert resume(sweep, [Toy().key], Profile(), store) == 1
    (task,) = overview(Sweep(sweep.folder), store).tasks
    assert (task.state, task.job) == ("running", "102")
    assert submit_plan(Plan([Toy()], store), Profile(), name="second").borrowed == {Toy().key: (("102",), "bob")}


@pytest.mark.parametrize("cause", ["preempted", "time limit"])
def test_a_job_that_went_back_into_the_queue_is_what_slurm_says_of_it(fake: Path, store: Store, cause: str) -> None:
    sweep = submit_plan(Plan([Toy()], store), Profile(), name="test")
    sweep.event(Toy().key, "start", job="101", gpus=0, host="n")
    sweep.event(Toy().key, "end", job="101", cause=cause, code=130, seconds=1.0, line="")

    def state() -> tuple[str, str, str]:
        (task,) = overview(sweep, store).tasks
        return task.state, task.cause, task.line

    (fake / "queue").write_text("101|CANCELLED|0:00||None\n")
    assert state()[:2] == ("failed", "cancelled")
    (fake / "queue").write_text("")
    (fake / "sacct").write_text("101|CANCELLED by 0|1|n|None\n")
    assert state()[:2] == ("failed", "cancelled")
    (fake / "sacct").unlink()
    assert state()[:2] == ("failed", cause)  # there is no accounting: nobody knows more
    (fake / "bin" / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert state() == ("pending", "", "SLURM does not answer")
    sweep.event(Toy().key, "note", job="101", line="the job could not be requeued")
    assert state()[:2] == ("failed", cause)


def test_gc_spares_the_work_of_a_stage_that_waits_in_the_queue(
    fake: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pagoda_bench.resources.released_roots", list)
    waits, ended = Toy(seed=1), Toy(seed=2)
    submit_plan(Plan([waits, ended], store), Profile(), name="test")
    work = {recipe.key: store.root / ".work" / f"toy-{recipe.key}" for recipe in (waits, ended)}
    for folder in work.values():
        folder.mkdir(parents=True)
    (fake / "queue").write_text("101_0|PENDING|0:00||Priority\n101_1|FAILED|0:05|n|NonZeroExitCode\n")
    assert main(["artifacts", "gc", "--older-than", "0", "--delete", "--store", str(store.root)]) == 0
    assert [folder.is_dir() for folder in work.values()] == [True, False]
    (fake / "queue").write_text("")
    assert main(["artifacts", "gc", "--older-than", "0", "--delete", "--store", str(store.root)]) == 0
    assert not work[waits.key].exists()


def test_a_resumed_sweep_waits_for_the_job_of_another(fake: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    def status(name: str) -> list[tuple[str, str]]:
        return [(task.state, task.job) for task in overview(find_sweep(store, name), store).tasks]

    submit_plan(Plan([Toy()], store), Profile(), name="first")
    (fake / "queue").write_text("101|FAILED|0:05|n|x\n")
    submit_plan(Plan([Toy()], store), Profile(), name="second")
    (fake / "queue").write_text("101|FAILED|0:05|n|x\n102|RUNNING|0:05|n|None\n")
    resumed = ["resume", "first", "--store", str(store.root)]
    assert main(resumed) == 0
    assert status("first") == [("running", "102")]
    assert main(resumed) == 0
    assert "nothing to resume" in capsys.readouterr().out
    assert main(["cancel", "first", "--store", str(store.root)]) == 0
    assert not (fake / "cancelled").exists()  # what is not its own
    (fake / "queue").write_text("102|FAILED|0:05|n|x\n")
    assert main(resumed) == 0
    (fake / "queue").write_text("102|FAILED|0:05|n|x\n103|PENDING|0:00||Priority\n")
    assert status("first") == [("pending", "103")]


def test_a_job_that_never_began_does_not_say_why_the_one_before_it_failed(fake: Path, store: Store) -> None:
    sweep = submit_plan(Plan([Toy()], store), Profile(), name="test")
    sweep.event(Toy().key, "start", job="101", gpus=0, host="n")
    sweep.event(Toy().key, "end", job="101", cause="out of memory", code=1, seconds=5.0, line="CUDA out of memory")
    (fake / "queue").write_text("101|FAILED|0:05|n|x\n")
    (task,) = overview(sweep, store).tasks
    assert (task.cause, task.line) == ("out of memory", "CUDA out of memory")
    assert resume(sweep, [Toy().key], Profile(), store) == 1
    (fake / "queue").write_text("101|FAILED|0:05|n|x\n102|FAILED|0:00|n|RaisedSignal\n")
    (task,) = overview(sweep, store).tasks
    assert (task.job, task.cause, task.line, task.attempts) == ("102", "ended before it could say why", "RaisedSignal", 1)
