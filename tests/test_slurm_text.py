"""What is said to SLURM and what is understood of its answers, against programs that only pretend to be SLURM."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path

import pytest
from fake_slurm import options, scripts
from toy_stages import Toy, ToyFailing, ToySum, make

from pagoda_bench.artifacts.store import Store
from pagoda_bench.cli.main import main
from pagoda_bench.errors import UserError
from pagoda_bench.plan import slurm_query, slurm_task
from pagoda_bench.plan.dag import Plan
from pagoda_bench.plan.requests import Profile, Request
from pagoda_bench.plan.slurm import _fits, describe_submission, resume, submit_plan
from pagoda_bench.plan.slurm_task import Asked, Runner, seconds_left
from pagoda_bench.plan.sweeps import Sweep, find_sweep, sweeps
from pagoda_bench.plan.watch import overview

pytest.importorskip("submitit", reason="pip install 'pagoda-bench[slurm]'")


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def two_levels(count: int = 6) -> tuple[list[Toy], ToySum]:
    toys = [Toy(seed=seed) for seed in range(count)]
    return toys, ToySum(parts=tuple(toys))


# Submitting


def test_a_plan_becomes_arrays_by_level_chunked_at_the_limit(fake: Path, store: Store) -> None:
    toys, above = two_levels()
    sweep = submit_plan(Plan([above], store), Profile(partition="low", signal_delay=60, parallel=3), name="test")
    first, second, third = (options(script) for script in scripts(fake))
    assert (first["array"], second["array"]) == ("0-3%3", "0-1%2")
    assert "array" not in third
    assert "dependency" not in first
    assert third["dependency"] == "afterany:101:102"
    assert first["signal"] == "USR2@60"
    assert first["partition"] == "low"
    assert "requeue" in first
    assert "wckey" not in first
    assert [job.keys for job in sweep.jobs] == [
        tuple(t.key for t in toys[:4]),
        tuple(t.key for t in toys[4:]),
        (above.key,),
    ]
    assert sweep.job_ids()[toys[5].key] == "102_1"
    assert sweep.job_ids()[above.key] == "103"
    assert len({job.folder for job in sweep.jobs}) == 3  # a fresh folder of submitit's each


def test_requests_by_kind_part_the_arrays_and_stay_out_of_the_key(fake: Path, store: Store) -> None:
    toys, above = two_levels(2)
    stages = {"default": {"time": "0:30:00"}, "toy-sum": {"gpus": 2, "cpus": 8, "mem_gb": 1.5, "time": "1-00:00:00"}}
    profile = Profile(gpu_type="a100", account="lab", stages=stages, setup=("module load cuda",), options={"comment": "x y"})
    submit_plan(Plan([above, toys[0]], store), profile, name="test")
    small, big = (options(script) for script in scripts(fake))
    assert (small["time"], big["time"]) == ("30", "1440")
    assert "gpus-per-node" not in small
    assert (big["gpus-per-node"], big["cpus-per-task"], big["mem"]) == ("a100:2", "8", "1536M")
    assert (big["account"], big["comment"]) == ("lab", "x y")
    assert "module load cuda" in scripts(fake)[0]
    assert "--cpus-per-task=8" in scripts(fake)[1].partition("# command")[2]


def test_gres_style(fake: Path, store: Store) -> None:
    submit_plan(Plan([Toy()], store), Profile(gpu_option="gres", stages={"toy": {"gpus": 1}}), name="test")
    assert options(scripts(fake)[0])["gres"] == "gpu:1"


def test_what_sbatch_refuses_is_one_line_and_leaves_nothing(fake: Path, store: Store) -> None:
    (fake / "refuse").write_text("2")
    with pytest.raises(UserError, match="nothing was submitted: error: invalid account") as caught:
        submit_plan(Plan([two_levels()[1]], store), Profile(), name="test")
    assert "\n" not in str(caught.value)
    assert (fake / "cancelled").read_text() == "101\n"
    assert sweeps(store) == []


def test_what_is_in_the_queue_is_not_submitted_again(fake: Path, store: Store) -> None:
    toys, above = two_levels(3)
    submit_plan(Plan(toys, store), Profile(), name="first")
    (fake / "queue").write_text("101_[1-2]|PENDING|0:00||Priority\n101_0|RUNNING|0:10|node1|None\n")
    second = submit_plan(Plan([above], store), Profile(), name="second")
    assert len(scripts(fake)) == 2
    assert options(scripts(fake)[1])["dependency"] == "afterany:101"
    assert [job.keys for job in second.jobs] == [(above.key,)]
    states = {task.key: task.state for task in overview(second, store).tasks}
    assert [states[toy.key] for toy in toys] == ["running", "pending", "pending"]


def test_a_retraining_waits_for_no_job_of_others(fake: Path, store: Store) -> None:
    toys, above = two_levels(2)
    submit_plan(Plan(toys, store), Profile(), name="plain")
    (fake / "queue").write_text("101_[0-1]|PENDING|0:00||Priority\n")
    anew = submit_plan(Plan([above], store, retrain=True), Profile(), name="anew")
    assert [job.keys for job in anew.jobs] == [tuple(toy.key for toy in toys), (above.key,)]
    assert anew.borrowed == {}
    assert options(scripts(fake)[2])["dependency"] == "afterany:102"
    # The same command again joins it; and what is no retraining takes whatever is being made.
    (fake / "queue").write_text("102_[0-1]|PENDING|0:00||Priority\n103|PENDING|0:00||Dependency\n")
    again = submit_plan(Plan([above], store, retrain=True), Profile(), name="again")
    assert again.about["session"] == anew.about["session"]
    assert set(again.borrowed) == {above.key, *(toy.key for toy in toys)}
    assert set(submit_plan(Plan([above], store), Profile(), name="plain").borrowed) == set(again.borrowed)
    assert len(scripts(fake)) == 3


def test_gc_spares_the_mark_of_a_retraining_in_the_queue(
    fake: Path, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pagoda_bench.resources.released_roots", list)
    submit_plan(Plan([Toy()], store, retrain=True), Profile(), name="anew")
    (mark,) = (store.root / ".retrain").iterdir()
    for queue, there in (("101|PENDING|0:00||Priority\n", True), ("101|FAILED|0:05|n1|NonZeroExitCode\n", False)):
        (fake / "queue").write_text(queue)
        assert main(["artifacts", "gc", "--older-than", "0", "--delete", "--store", str(store.root)]) == 0
        assert mark.exists() == there
    assert "mark of an interrupted --retrain" in capsys.readouterr().out


def test_a_sweep_that_cannot_be_read_stops_no_submission(fake: Path, store: Store) -> None:
    lost = submit_plan(Plan([Toy()], store), Profile(), name="lost")
    (lost.folder / "sweep.json").write_text("")
    assert len(submit_plan(Plan([Toy()], store), Profile(), name="next").jobs) == 1


def test_two_thousand_stages_take_few_calls_and_little_time(fake: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slurm_query, "max_array_size", lambda: 1001)
    start = time.process_time()
    sweep = submit_plan(Plan([Toy(seed=seed) for seed in range(2000)], store), Profile(), name="many")
    assert time.process_time() - start < 20
    assert len(scripts(fake)) == 2
    (fake / "queue").write_text("101_[0-1000%256]|PENDING|0:00||Priority\n102_[0-998]|PENDING|0:00||Priority\n")
    sweep = Sweep(sweep.folder)
    start = time.process_time()
    found = overview(sweep, store)
    assert time.process_time() - start < 1
    assert found.counts["pending"] == 2000
    assert (fake / "asked").read_text().count("\n") <= 2  # one query of the submission, one of this


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        (Profile(partition="lo"), "unknown partition 'lo'; did you mean 'low'?"),
        (Profile(partition="low,quik"), "unknown partition 'quik'; did you mean 'quick'?"),
        (Profile(partition="quick", stages={"toy": {"time": "31"}}), "partition 'quick' allows 30"),
        (Profile(partition="low,quick", stages={"toy": {"time": "2-0"}}), "partition 'low,quick' allows 1440"),
        (Profile(stages={"toy": {"time": "2-0"}}), "the default partition allows 1440"),
        (Profile(stages={"toy": {"cpus": 65}}), "asks for 65 CPUs on a node, the largest of the default partition has 64"),
        (Profile(stages={"toy": {"tasks": 3, "cpus": 3}}, partition="quick"), "computes in one process"),
        (
            Profile(stages={"toy": {"gpus": 7}}, partition="low"),
            "7 GPUs on a node, the largest of partition 'low' has 6",
        ),
        (Profile(stages={"toy": {"gpus": 1, "time": "9"}}, partition="quick"), "asks for 1 GPUs on a node"),
        (Profile(stages={"toy": {"mem_gb": 4, "time": "9"}}, partition="quick"), "4 GB of memory on a node, the largest of"),
    ],
)
def test_what_the_cluster_would_refuse_is_said_before(fake: Path, store: Store, profile: Profile, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        submit_plan(Plan([Toy()], store), profile, name="test")
    assert scripts(fake) == []


def test_without_slurm_or_with_too_many_jobs(fake: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="more than --max-jobs 5"):
        submit_plan(Plan(two_levels(6)[0], store), Profile(), name="test", max_jobs=5)
    monkeypatch.setenv("PATH", str(fake))
    with pytest.raises(UserError, match="no sbatch on the PATH"):
        submit_plan(Plan([Toy()], store), Profile(), name="test")


def test_a_dry_run_says_how_many_calls(fake: Path, store: Store) -> None:
    assert describe_submission(Plan([two_levels()[1]], store), Profile()) == (
        "7 jobs in 3 calls of sbatch on 2 levels (arrays of at most 4)"
    )


# Watching


def test_the_states_of_a_sweep(fake: Path, store: Store) -> None:
    toys = [Toy(seed=seed) for seed in range(8)]
    above = ToySum(parts=(toys[2],))
    sweep = submit_plan(Plan([*toys, above], store), Profile(), name="test")
    make(toys[0], store)
    (fake / "queue").write_text(
        "101_0|FAILED|0:05|n1|NonZeroExitCode\n"  # its artifact is there: done all the same
        "101_1|RUNNING|1-00:00:05|n2|None\n"
        "101_2|FAILED|0:05|n3|NonZeroExitCode\n"
        "101_3|PENDING|0:00||Resources\n"
    )
    (fake / "sacct").write_text("102_0|OUT_OF_MEMORY|60|n4|None\n102_1|CANCELLED by 0|1|n4|None\n102_0.batch|FAILED|1|n4|\n")
    sweep.event(toys[1].key, "start", job="101_1", gpus=2, host="n2")
    sweep.log(toys[1].key).write_text("[1/1] toy: 3/5 10/s, 3 min 20 s left\n")
    sweep.event(toys[2].key, "start", job="101_2", gpus=1, host="n3")
    sweep.event(toys[2].key, "end", job="101_2", cause="CUDA error", code=1, seconds=3600.0, line="CUDA error: no")
    sweep.event(toys[6].key, "start", job="102_2", gpus=0, host="n5")
    found = overview(sweep, store)
    states = [(t.state, t.cause) for t in found.tasks if t.kind == "toy"]
    assert states == [
        ("done", ""),
        ("running", ""),
        ("failed", "CUDA error"),
        ("pending", ""),
        ("failed", "out of memory"),
        ("failed", "cancelled"),
        ("failed", "lost: its process or its node ended"),
        ("failed", "lost: its process or its node ended"),
    ]
    by_key = {t.key: t for t in found.tasks}
    assert by_key[toys[1].key].line == "toy: 3/5 10/s, 3 min 20 s left"
    assert by_key[above.key].state == "blocked"
    assert found.answered == ("squeue", "sacct")
    assert not found.over
    assert found.gpu_hours["toy"] >= 1.0
    assert json.loads(json.dumps(found.to_dict()))["counts"]["failed"] == 5


def test_a_silent_scheduler_loses_nothing(fake: Path, store: Store) -> None:
    toys, above = two_levels(2)
    sweep = submit_plan(Plan([above], store), Profile(), name="test")
    (fake / "bin" / "squeue").write_text("#!/bin/sh\nexit 1\n")
    sweep.event(toys[0].key, "start", job="101_0", gpus=0, host="n")
    found = overview(sweep, store)
    assert [t.state for t in found.tasks] == ["running", "pending", "pending"]
    assert found.answered == ()


def test_resume_submits_what_is_missing_and_nothing_else(fake: Path, store: Store) -> None:
    toys, above = two_levels(3)
    sweep = submit_plan(Plan([above], store), Profile(), name="test")
    make(toys[0], store)
    (fake / "queue").write_text("101_1|RUNNING|0:10|n|None\n")
    missing = [t.key for t in overview(sweep, store).tasks if t.state in ("failed", "blocked", "not submitted")]
    assert missing == [toys[2].key, above.key]
    assert resume(sweep, missing, Profile(), store) == 2
    assert options(scripts(fake)[-1])["dependency"] == "afterany:101:103"  # the one that runs, and the one tried again
    assert find_sweep(store, "test").job_ids()[toys[2].key] == "103"


def test_what_depends_on_a_stage(fake: Path, store: Store) -> None:
    toys, middle = two_levels(2)
    top = ToySum(parts=(middle,), n=3)
    sweep = submit_plan(Plan([top, Toy(seed=9)], store), Profile(), name="test")
    assert sweep.dependants([toys[0].key]) == [toys[0].key, middle.key, top.key]
    assert sweep.pick([f"toy/{toys[0].key[:9]}"]) == [toys[0].key]
    with pytest.raises(UserError, match="'zz' means no stage"):
        sweep.pick(["zz"])


# In the job


@pytest.mark.parametrize(
    ("facts", "signals", "left", "cause"),
    [
        ("JobState=RUNNING PreemptTime=2026-01-01T00:00:00", {"SIGUSR2"}, 36_000, "preempted"),
        ("JobState=RUNNING PreemptTime=2026-01-01T00:00:00", {"SIGTERM"}, 36_000, "preempted"),
        ("JobState=CANCELLED PreemptTime=None", {"SIGTERM"}, 36_000, "cancelled"),
        ("JobState=CANCELLED PreemptTime=None", {"SIGTERM"}, 0, "cancelled"),
        ("JobState=NODE_FAIL PreemptTime=None", {"SIGTERM"}, 36_000, "node failed"),
        ("JobState=PENDING PreemptTime=None", {"SIGTERM"}, 36_000, "requeued"),
        ("JobState=COMPLETING PreemptTime=None", {"SIGTERM"}, 300, "cancelled"),
        ("JobState=COMPLETING PreemptTime=None", {"SIGTERM"}, 0, "time limit"),  # the notice came before anybody listened
        ("JobState=RUNNING PreemptTime=None", {"SIGUSR2"}, 120, "time limit"),  # a limit that submitit would misjudge
        ("", {"SIGUSR2"}, 36_000, "preempted"),
        ("", {"SIGUSR2"}, 120, "time limit"),
        ("", {"SIGTERM"}, 36_000, "cancelled"),
    ],
)
def test_why_a_job_was_told_to_stop(
    fake: Path, store: Store, monkeypatch: pytest.MonkeyPatch, facts: str, signals: set[str], left: float, cause: str
) -> None:
    (fake / "job").write_text(facts)
    monkeypatch.setattr(slurm_task, "seconds_left", lambda minutes: left)
    sweep = submit_plan(Plan([Toy()], store), Profile(), name="test")
    assert Runner(sweep, Toy().key, 10_000, Asked(signals)).why_stopped() == cause


def test_the_clock_of_a_job_began_before_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    left = seconds_left(100_000)
    assert left <= 100_000 * 60 - time.process_time() / (os.cpu_count() or 1)  # it has computed that long at least
    assert left > 100_000 * 60 - 24 * 3600
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 500))
    assert 490 < seconds_left(1) <= 500


def test_retries_are_counted_by_job_and_cause(fake: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    sweep = submit_plan(Plan([Toy()], store), Profile(), name="test")
    for job, cause in (("6", "killed"), ("7", "killed"), ("7", "preempted"), ("7", "killed")):
        sweep.event(Toy().key, "end", job=job, cause=cause, seconds=1.0)
    runner = Runner(sweep, Toy().key, 10_000, Asked())
    assert (runner.tried("killed"), runner.tried("preempted"), runner.tried("time limit")) == (2, 1, 0)


def test_a_failing_stage_ends_its_job_with_its_code(fake: Path, store: Store, capfd: pytest.CaptureFixture[str]) -> None:
    sweep = submit_plan(Plan([ToyFailing()], store), Profile(), name="test")
    code = Runner(sweep, ToyFailing().key, 10_000, Asked()).run()  # the stage is not known to a bare process: refused
    (end,) = [e for e in sweep.events(ToyFailing().key) if e["event"] == "end"]
    assert code == end["code"] == 2
    assert end["cause"] == "refused"
    assert "unknown kind 'toy-failing'" in capfd.readouterr().out


def test_nodes_are_read_by_partition() -> None:
    text = "a*|4|8192|gpu:2\nb|x|1|(null)\nb|1|1024|gpu:t4:1(S:0),gpu:h100:3(S:1)\n"
    first, second = slurm_query.Node(4, 8.0, 2), slurm_query.Node(1, 1.0, 4)
    assert slurm_query.read_nodes(text) == {"a": [first], "": [first], "b": [second]}


def test_more_nodes_than_fit_are_refused() -> None:
    with pytest.raises(UserError, match=r"2 nodes with 32 CPUs, partition 'low' has 1"):
        _fits(Request(nodes=2, cpus=32), [slurm_query.Node(64, 64.0, 0), slurm_query.Node(8, 8.0, 0)], "low")
    _fits(Request(nodes=2, cpus=8), [slurm_query.Node(64, 64.0, 0), slurm_query.Node(8, 8.0, 0)], "low")
    _fits(Request(nodes=99, cpus=99), [], "low")  # nothing is known
