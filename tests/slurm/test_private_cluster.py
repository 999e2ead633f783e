"""Sweeps on a real SLURM: a private one on this machine (see private_cluster.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import private_cluster
import pytest
from following import CPUS, PROFILE, START, all_done, begun, causes, digest, expected, kill, over, slow, until
from toy_stages import Toy, ToySum

from pagoda_bench.artifacts.store import Store
from pagoda_bench.cli import main as cli
from pagoda_bench.errors import UserError
from pagoda_bench.plan.dag import Plan
from pagoda_bench.plan.inline import run_plan
from pagoda_bench.plan.requests import Profile, Retries
from pagoda_bench.plan.slurm import resume, submit_plan
from pagoda_bench.plan.slurm_query import max_array_size
from pagoda_bench.plan.sweeps import Sweep, sweeps
from pagoda_bench.plan.watch import overview

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def cluster() -> Iterator[private_cluster.Cluster]:
    if why := private_cluster.missing():
        pytest.skip(why)
    with private_cluster.cluster(CPUS) as up:
        yield up


def test_a_plan_of_three_levels_makes_the_same_bytes(cluster: private_cluster.Cluster, store: Store, tmp_path: Path) -> None:
    toys = [Toy(seed=seed) for seed in range(3)]
    top = ToySum(parts=(ToySum(parts=tuple(toys)), toys[0]))
    start = time.monotonic()
    sweep = submit_plan(Plan([top], store), PROFILE, name="levels")
    assert time.monotonic() - start < 30
    assert len(sweep.jobs) == 3
    assert len(sweep.tasks) == 5
    all_done(cluster, sweep, store)
    inline = run_plan(Plan([top], Store(tmp_path / "inline"))).artifacts
    assert {key: digest(store, sweep.recipe(key)) for key in sweep.tasks} == {key: a.digest for key, a in inline.items()}
    assert sweep.closed


def test_a_preempted_job_goes_on_from_its_checkpoint(
    cluster: private_cluster.Cluster, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_STEPS_LOG", str(tmp_path / "steps"))
    recipe = slow()
    sweep = submit_plan(Plan([recipe], store), PROFILE.with_stages({"toy": {"cpus": CPUS}}, "test"), name="preempted")
    until(begun(store, recipe), START, "it does not start")
    cluster.run("sbatch", "--partition=high", f"--cpus-per-task={CPUS}", "--output=/dev/null", "--wrap=sleep 2")
    all_done(cluster, sweep, store)
    assert causes(sweep, recipe.key) == ["preempted", "done"]
    assert digest(store, recipe) == expected(recipe, tmp_path)
    assert recipe.train.steps <= (tmp_path / "steps").stat().st_size <= recipe.train.steps + 1


@pytest.mark.slow
def test_the_time_limit_four_times_in_a_row(cluster: private_cluster.Cluster, store: Store, tmp_path: Path) -> None:
    """A job may use half of its limit, a minute or on a busy machine more; the work is that of four such halves."""
    minutes = 1 + int(seconds_of_a_start(tmp_path) / 10)
    recipe = slow(steps=600 * minutes)
    stages = {"default": {"cpus": 1, "time": str(minutes)}}
    profile = Profile(partition="low", signal_delay=30 * minutes, stages=stages, retries=Retries(time_limit=60))
    sweep = submit_plan(Plan([recipe], store), profile, name="limits")
    all_done(cluster, sweep, store, 3600)
    found = causes(sweep, recipe.key)
    assert set(found[:-1]) == {"time limit"}
    assert len(found) >= 5
    assert digest(store, recipe) == expected(recipe, tmp_path)


def seconds_of_a_start(folder: Path) -> float:
    """How long a stage takes here that has nothing to do."""
    path = folder / "recipe.json"
    path.write_text(json.dumps(Toy(seed=100).to_dict()))
    clock = time.monotonic()
    command = [sys.executable, "-m", "pagoda_bench.cli.main", "run-stage", str(path), "--store", str(folder / "start")]
    subprocess.run(command, check=True, capture_output=True)
    return time.monotonic() - clock


def test_a_killed_stage_is_tried_again_in_its_job(cluster: private_cluster.Cluster, store: Store, tmp_path: Path) -> None:
    recipe = slow(steps=30)
    sweep = submit_plan(Plan([recipe], store), PROFILE, name="killed")
    until(begun(store, recipe), START, "it does not start")
    kill(lambda words: "run-stage" in words and any(recipe.key in word for word in words))
    all_done(cluster, sweep, store)
    assert causes(sweep, recipe.key) == ["killed", "done"]
    assert digest(store, recipe) == expected(recipe, tmp_path)


def test_a_killed_job_fails_and_is_resumed(cluster: private_cluster.Cluster, store: Store, tmp_path: Path) -> None:
    recipe, other = slow(steps=30), Toy(seed=7)
    above = ToySum(parts=(recipe,))
    sweep = submit_plan(Plan([above, other], store), PROFILE, name="lost")
    until(begun(store, recipe), START, "it does not start")
    job = sweep.job_ids()[recipe.key]
    cluster.run("scancel", "--signal=KILL", "--full", job)
    found = {task.key: task for task in over(cluster, sweep, store).tasks}
    assert [found[r.key].state for r in (recipe, other, above)] == ["failed", "done", "blocked"]
    missing = [task.key for task in found.values() if task.state != "done"]
    assert resume(Sweep(sweep.folder), missing, PROFILE, store) == 2
    all_done(cluster, sweep, store)
    assert digest(store, recipe) == expected(recipe, tmp_path)


def test_scancel_of_one_element(cluster: private_cluster.Cluster, store: Store) -> None:
    toys = [slow(seed, steps=20) for seed in (1, 2)]
    sums = [ToySum(parts=(toy,)) for toy in toys]
    sweep = submit_plan(Plan(sums, store), PROFILE, name="cancelled")
    until(begun(store, toys[1]), START, "it does not start")
    cluster.run("scancel", sweep.job_ids()[toys[1].key])
    found = {task.key: task for task in over(cluster, sweep, store).tasks}
    assert [found[r.key].state for r in (toys[0], sums[0])] == ["done", "done"]
    assert (found[toys[1].key].state, found[toys[1].key].cause) == ("failed", "cancelled")
    assert found[sums[1].key].state == "blocked"


def test_the_controller_may_end_and_come_back(cluster: private_cluster.Cluster, store: Store) -> None:
    toys = [slow(seed, steps=100) for seed in (1, 2, 3)]
    sweep = submit_plan(Plan([ToySum(parts=tuple(toys))], store), PROFILE, name="controller")
    until(begun(store, toys[0]), START, "it does not start")
    time.sleep(6)  # it writes its state every few seconds
    cluster.kill("slurmctld")
    silent = overview(Sweep(sweep.folder), store)
    assert silent.answered == ()
    assert not silent.over
    cluster.start_controller(clean=False)
    until(lambda: cluster.run("squeue", check=False), 60, "the controller does not come back")
    all_done(cluster, sweep, store)


def test_fifteen_hundred_tasks_are_submitted_and_seen(cluster: private_cluster.Cluster, store: Store) -> None:
    many(1500, cluster, store)


@pytest.mark.slow
def test_many_tasks_are_all_collected(cluster: private_cluster.Cluster, store: Store) -> None:
    """As many as PAGODA_BENCH_MANY says: a task costs about a second of a core."""
    sweep = many(int(os.environ.get("PAGODA_BENCH_MANY", "200")), cluster, store, cancel=False)
    clock = time.monotonic()
    until(lambda: not cluster.run("squeue", "--noheader").strip(), 7200, "the queue does not empty")
    took = time.monotonic() - clock
    all_done(cluster, sweep, store)
    clock = time.monotonic()
    overview(Sweep(sweep.folder), store)
    print(f"{len(sweep.tasks)} tasks made in {took:.0f} s, looked at in {time.monotonic() - clock:.2f} s")


def many(count: int, cluster: private_cluster.Cluster, store: Store, cancel: bool = True) -> Sweep:
    """A sweep of so many stages, submitted and looked at; times are those of this process's own work where a limit holds,
    since those on the wall are of the machine's other work too."""
    plan = Plan([Toy(seed=seed) for seed in range(count)], store)
    clock, used = time.monotonic(), time.process_time()
    sweep = submit_plan(plan, PROFILE, name="many")
    taken, taken_cpu = time.monotonic() - clock, time.process_time() - used
    assert len(sweep.jobs) <= -(-count // max_array_size()) + 1
    sweep = Sweep(sweep.folder)
    clock, used = time.monotonic(), time.process_time()
    found = overview(sweep, store)
    looked, looked_cpu = time.monotonic() - clock, time.process_time() - used
    if cancel:
        cluster.run("scancel", *(job.id for job in sweep.jobs))
    print(f"submitted in {taken:.1f} s (CPU {taken_cpu:.2f} s), looked at in {looked:.2f} s (CPU {looked_cpu:.2f} s)")
    assert sum(found.counts.values()) == count
    assert taken_cpu < 10
    assert looked_cpu < 1
    return sweep


def test_a_full_disk_is_named_and_made_space_on(cluster: private_cluster.Cluster, store: Store, tmp_path: Path) -> None:
    """The store, with its events and logs, lies on a disk that another program fills while a stage runs."""
    recipe, above = slow(steps=60), ToySum(parts=(slow(steps=60),))
    with small_disk(store.root):
        sweep = submit_plan(Plan([above], store), PROFILE, name="full")
        until(begun(store, recipe), START, "it does not start")
        fill(store.root / "ballast")
        found = {task.key: task for task in over(cluster, sweep, store).tasks}
        assert (found[recipe.key].state, found[recipe.key].cause) == ("failed", "disk full")
        assert f"the disk that holds {store.root} is full" in found[recipe.key].line
        assert found[above.key].state in ("blocked", "failed")  # its own job may come to an end on the full disk too
        assert json.loads((store.root / ".work" / f"toy-{recipe.key}" / "state.json").read_text())[0] > 0
        (store.root / "ballast").unlink()
        assert resume(Sweep(sweep.folder), list(sweep.tasks), PROFILE, store) == 2
        all_done(cluster, sweep, store)
        assert digest(store, recipe) == expected(recipe, tmp_path)
        cluster.run("scancel", "--user=root", check=False)
        until(lambda: not cluster.run("squeue", "--noheader").strip(), 60, "the queue does not empty")


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    place.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "tmpfs", str(place)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("no file system can be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(path: Path) -> None:
    """A file that takes all the space there is."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_two_submissions_at_once(cluster: private_cluster.Cluster, store: Store) -> None:
    program = (
        "import sys; from pathlib import Path; from toy_stages import *; from pagoda_bench.plan.dag import Plan\n"
        "from pagoda_bench.plan.slurm import submit_plan; from pagoda_bench.plan.requests import Profile\n"
        "toys = [Toy(seed=s, pause=0.2) for s in range(4)]\n"
        "submit_plan(Plan(toys, Store(Path(sys.argv[1]))), Profile(partition='low'), name='two')"
    )
    command = [sys.executable, "-c", program, str(store.root)]
    both = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    made = sweeps(store)
    assert sum(len(job.keys) for sweep in made for job in sweep.jobs) == 4
    for sweep in made:
        all_done(cluster, sweep, store)


def test_what_slurm_refuses_is_one_line(cluster: private_cluster.Cluster, store: Store) -> None:
    rare = PROFILE.model_copy(update={"gpu_type": "h9000"}).with_stages({"toy": {"gpus": 1}}, "test")
    for profile in (rare, PROFILE.model_copy(update={"constraint": "h9000"})):
        with pytest.raises(UserError, match="SLURM refuses the submission, nothing was submitted: ") as caught:
            submit_plan(Plan([Toy()], store), profile, name="no")
        assert "\n" not in str(caught.value)
    for toy, what in (({"mem_gb": 900}, "900 GB of memory"), ({"cpus": 99}, "99 CPUs"), ({"gpus": 99}, "99 GPUs")):
        with pytest.raises(UserError, match=f"a stage asks for {what} on a node, the largest of partition 'low' has"):
            submit_plan(Plan([Toy()], store), PROFILE.with_stages({"toy": toy}, ""), name="no")
    assert sweeps(store) == []


def test_the_check_reports_what_a_node_sees(
    cluster: private_cluster.Cluster, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text("partition = 'low'\n[stages.default]\ncpus = 1\n")
    code = cli.main(["cluster", "check", "--cluster", str(profile), "--store", str(store.root)])
    out = capsys.readouterr().out
    assert code == 0, out
    assert cluster.host in out
    assert "MB/s" in out


@pytest.mark.slow
def test_the_smoke_table_has_the_same_bytes_as_inline(
    cluster: private_cluster.Cluster, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "mine.toml"
    profile.write_text("partition = 'low'\nthreads = 1\n[stages.default]\ncpus = 1\ntime = '60'\n")
    common = ["reproduce", "table1", "--scale", "smoke"]
    submitted = [*common, "--executor", "slurm", "--cluster", str(profile), "--store", str(store.root)]
    assert cli.main(submitted) == 0
    (sweep,) = sweeps(store)
    all_done(cluster, sweep, store)
    assert cli.main(["collect", sweep.name, "--store", str(store.root), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "smoke" / "table1.csv").is_file()
    inline = Store(tmp_path / "inline")
    code = sweep.about["code"]["path"]  # where the checkout has changed meanwhile, the jobs have not
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((code, os.environ["PYTHONPATH"]))}
    places = ["--store", str(inline.root), "--out", str(tmp_path / "inline-out")]
    command = [sys.executable, "-m", "pagoda_bench.cli.main", *common, *places]
    subprocess.run(command, cwd=code, env=environment, check=True, capture_output=True)
    assert {artifact.key for artifact in inline.artifacts()} == set(sweep.tasks)
    for artifact in inline.artifacts():
        found = store.find(artifact.recipe)
        assert found is not None
        assert found.digest == artifact.digest, artifact.name
