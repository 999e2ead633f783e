"""What the tests on a private cluster share: sweeps that take their time, and waiting for what becomes of them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import private_cluster
from toy_stages import Toy, ToyTrain, make

from pagoda_bench.artifacts.store import Store
from pagoda_bench.plan.requests import Profile
from pagoda_bench.plan.sweeps import Sweep
from pagoda_bench.plan.watch import Overview, overview
from pagoda_bench.recipes.base import Recipe

CPUS = 4
START = 900  # seconds for a stage to begin; a machine that is busy otherwise takes its time
# SLURM's default of two minutes between a requeue and the next start is cut short by `hasten`.
PROFILE = Profile(partition="low", signal_delay=10, stages={"default": {"cpus": 1, "time": "10"}})


def until(true: Callable[[], object], seconds: float, why: str) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, why
        time.sleep(0.25)


def hasten(cluster: private_cluster.Cluster) -> None:
    """Lets requeued jobs start at once, and those that SLURM holds because they were started too soon.

    At once is a few seconds after the requeue: slurmd takes a start within the second of the kill for the killed one, and
    the job ends as one that cannot be started ("Job credential revoked").
    """
    for job in cluster.run("squeue", "--noheader", "--array", "--states=PENDING", "--format=%i %V %r").splitlines():
        number, submitted, reason = job.split(" ", 2)  # a requeue counts as a submission
        if reason.startswith("launch failed"):
            cluster.run("scontrol", "release", number, check=False)
        settled = (datetime.now() - datetime.fromisoformat(submitted)).total_seconds() > 3
        if (
            reason == "BeginTime"
            and settled
            and "COMPLETING" not in cluster.run("scontrol", "show", "job", number, check=False)
        ):
            cluster.run("scontrol", "update", f"JobId={number}", "StartTime=now", check=False)


def over(cluster: private_cluster.Cluster, sweep: Sweep, store: Store, seconds: float = 1800) -> Overview:
    """How a sweep stands when nothing of it runs any more."""
    found: list[Overview] = []

    def ended() -> bool:
        hasten(cluster)
        found.append(overview(Sweep(sweep.folder), store))
        return found[-1].over

    until(ended, seconds, f"{sweep.folder} goes on and on")
    return found[-1]


def all_done(cluster: private_cluster.Cluster, sweep: Sweep, store: Store, seconds: float = 1800) -> None:
    found = over(cluster, sweep, store, seconds)
    assert found.counts["done"] == len(sweep.tasks), [task for task in found.tasks if task.state != "done"]


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


def digest(store: Store, recipe: Recipe) -> str:
    artifact = store.find(recipe)
    assert artifact is not None
    return artifact.digest


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
