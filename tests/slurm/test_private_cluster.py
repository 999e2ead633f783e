"""Sweeps on a real SLURM: a private one on this machine (see private_cluster.py)."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import private_cluster
import pytest
from toy_site import toy_environment
from toy_stages import Toy, ToySum, ToyTrain, make

from pagoda_bench.artifacts.store import Store
from pagoda_bench.cli import main as cli
from pagoda_bench.plan.dag import Plan
from pagoda_bench.plan.inline import run_plan
from pagoda_bench.plan.requests import Profile, Retries
from pagoda_bench.plan.slurm import resume, submit_plan
from pagoda_bench.plan.slurm_query import max_array_size
from pagoda_bench.plan.sweeps import Sweep, sweeps
from pagoda_bench.plan.watch import Overview, overview

pytestmark = pytest.mark.slurm
CPUS = 4
START = 300  # seconds for a stage to begin; a machine that is busy otherwise takes its time
# SLURM's default of two minutes between a requeue and the next start is cut short by `hasten`.
PROFILE = Profile(partition="low", signal_delay=10, stages={"default": {"cpus": 1, "time": "10"}})


@pytest.fixture(scope="module")
def cluster() -> Iterator[private_cluster.Cluster]:
    if why := private_cluster.missing():
        pytest.skip(why)
    pytest.importorskip("submitit", reason="pip install 'pagoda-bench[slurm]'")
    with private_cluster.cluster(CPUS) as up:
        yield up


@pytest.fixture
def store(cluster: private_cluster.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    for name, value in {**cluster.environment, **toy_environment(tmp_path), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    yield Store(tmp_path / "store")
    cluster.run("scancel", "--user=root", check=False)
    until(lambda: not cluster.run("squeue", "--noheader").strip(), 60, "the queue does not empty")


def until(true: Callable[[], object], seconds: float, why: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, why
        time.sleep(0.25)


def hasten(cluster: private_cluster.Cluster) -> None:
    """Lets requeued jobs start at once."""
    for job in cluster.run("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i %r").splitlines():
        number, reason = job.split(" ", 1)
        if reason == "BeginTime" and "COMPLETING" not in cluster.run("scontrol", "show", "job", number, check=False):
            cluster.run("scontrol", "update", f"JobId={number}", "StartTime=now", check=False)


def over(cluster: private_cluster.Cluster, sweep: Sweep, store: Store, seconds: float = 900) -> Overview:
    """How a sweep stands when nothing of it runs any more."""
    found: list[Overview] = []

    def ended() -> bool:
        hasten(cluster)
        found.append(overview(Sweep(sweep.folder), store))
        return found[-1].over

    until(ended, seconds, f"{sweep.folder} goes on and on")
    return found[-1]


def causes(sweep: Sweep, key: str) -> list[str]:
    """How the attempts at a stage ended; its artifact is there a moment before the last of them has."""
    until(lambda: sweep.events(key)[-1]["event"] == "end", 60, "the last attempt does not end")
    return [event["cause"] for event in sweep.events(key) if event["event"] == "end"]


def slow(seed: int = 1, steps: int = 60) -> Toy:
    return Toy(seed=seed, train=ToyTrain(steps=steps), pause=0.2)


def begun(store: Store, recipe: Toy) -> Callable[[], bool]:
    return lambda: (store.root / ".work" / f"toy-{recipe.key}" / "state.json").is_file()


def expected(recipe: Toy, folder: Path) -> str:
    """The digest of the artifact, made without interruption."""
    return str(make(recipe.model_copy(update={"pause": 0.0}), Store(folder / "expected")).digest)


def digest(store: Store, recipe: Toy) -> str:
    artifact = store.find(recipe)
    assert artifact is not None
    return artifact.digest


def test_a_plan_of_three_levels_makes_the_same_bytes(cluster: private_cluster.Cluster, store: Store, tmp_path: Path) -> None:
    toys = [Toy(seed=seed) for seed in range(3)]
    top = ToySum(parts=(ToySum(parts=tuple(toys)), toys[0]))
    start = time.monotonic()
    sweep = submit_plan(Plan([top], store), PROFILE, name="levels")
    assert time.monotonic() - start < 30
    assert len(sweep.jobs) == 3
    found = over(cluster, sweep, store)
    assert found.counts["done"] == 5, found
    inline = run_plan(Plan([top], Store(tmp_path / "inline"))).artifacts
    assert {key: store.find(sweep.recipe(key)).digest for key in sweep.tasks} == {k: a.digest for k, a in inline.items()}
    assert sweep.closed


def test_a_preempted_job_goes_on_from_its_checkpoint(
    cluster: private_cluster.Cluster, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TOY_STEPS_LOG", str(tmp_path / "steps"))
    recipe = slow()
    sweep = submit_plan(Plan([recipe], store), PROFILE.with_stages({"toy": {"cpus": CPUS}}, "test"), name="preempted")
    until(begun(store, recipe), START, "it does not start")
    cluster.run("sbatch", "--partition=high", f"--cpus-per-task={CPUS}", "--output=/dev/null", "--wrap=sleep 2")
    assert over(cluster, sweep, store).counts["done"] == 1
    assert causes(sweep, recipe.key) == ["preempted", "done"]
    assert digest(store, recipe) == expected(recipe, tmp_path)
    assert recipe.train.steps <= (tmp_path / "steps").stat().st_size <= recipe.train.steps + 1


@pytest.mark.slow
def test_the_time_limit_four_times_in_a_row(cluster: private_cluster.Cluster, store: Store, tmp_path: Path) -> None:
    """A limit of a minute and a notice long before it: SLURM signals within seconds of each start."""
    recipe = slow(steps=600)
    stages = {"default": {"cpus": 1, "time": "1"}}
    profile = Profile(partition="low", signal_delay=55, stages=stages, retries=Retries(time_limit=60))
    sweep = submit_plan(Plan([recipe], store), profile, name="limits")
    assert over(cluster, sweep, store).counts["done"] == 1
    found = causes(sweep, recipe.key)
    assert set(found[:-1]) == {"time limit"}
    assert len(found) >= 5
    assert digest(store, recipe) == expected(recipe, tmp_path)


def test_a_killed_stage_is_tried_again_in_its_job(cluster: private_cluster.Cluster, store: Store, tmp_path: Path) -> None:
    recipe = slow(steps=30)
    sweep = submit_plan(Plan([recipe], store), PROFILE, name="killed")
    until(begun(store, recipe), START, "it does not start")
    kill(lambda words: "run-stage" in words and any(recipe.key in word for word in words))
    assert over(cluster, sweep, store).counts["done"] == 1
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
    assert over(cluster, sweep, store).counts["done"] == 3
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
    assert over(cluster, sweep, store).counts["done"] == 4


def test_fifteen_hundred_tasks(cluster: private_cluster.Cluster, store: Store) -> None:
    recipes = [Toy(seed=seed) for seed in range(1500)]
    plan = Plan(recipes, store)
    clock, used = time.monotonic(), time.process_time()
    sweep = submit_plan(plan, PROFILE, name="many")
    taken, taken_cpu = time.monotonic() - clock, time.process_time() - used
    assert len(sweep.jobs) <= -(-1500 // max_array_size()) + 1
    sweep = Sweep(sweep.folder)
    clock, used = time.monotonic(), time.process_time()
    found = overview(sweep, store)
    looked, looked_cpu = time.monotonic() - clock, time.process_time() - used
    cluster.run("scancel", *(job.id for job in sweep.jobs))
    print(f"submitted in {taken:.1f} s (CPU {taken_cpu:.2f} s), looked at in {looked:.2f} s (CPU {looked_cpu:.2f} s)")
    assert sum(found.counts.values()) == 1500
    assert taken_cpu < 10  # the time on the wall is that of the machine's other work too
    assert looked_cpu < 1


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
        assert over(cluster, sweep, store).counts["done"] == 4


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
    assert over(cluster, sweep, store, 1800).counts["done"] == len(sweep.tasks)
    assert cli.main(["collect", sweep.name, "--store", str(store.root), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "smoke" / "table1.csv").is_file()
    inline = Store(tmp_path / "inline")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    places = ["--store", str(inline.root), "--out", str(tmp_path / "inline-out")]
    command = [sys.executable, "-m", "pagoda_bench.cli.main", *common, *places]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    for artifact in inline.artifacts():
        found = store.find(artifact.recipe)
        assert found is not None
        assert found.digest == artifact.digest, artifact.name


def kill(meant: Callable[[list[str]], bool]) -> None:
    """SIGKILL to the processes whose command line is meant."""
    killed = 0
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = path.read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            continue
        if meant(words):
            os.kill(int(path.parent.name), signal.SIGKILL)
            killed += 1
    assert killed, "there is no such process"
