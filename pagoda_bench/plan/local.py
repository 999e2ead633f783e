"""The local launcher: a queue of processes on this machine, each making one artifact.

The processes share the cores evenly, and each has a GPU for itself as long as there are no more of them than GPUs. A stage
that fails takes along only what needs it.
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from pathlib import Path

from pagoda_bench.errors import UserError
from pagoda_bench.plan.attempts import DONE, FAILED, STOPPED, Ended, attempt, blamed, environment_of, stage_command
from pagoda_bench.plan.dag import Plan
from pagoda_bench.plan.inline import Outcome
from pagoda_bench.plan.processes import started
from pagoda_bench.plan.progress import Reporter, finished, reporter
from pagoda_bench.plan.requests import Retries
from pagoda_bench.plan.sweeps import Sweep, Task
from pagoda_bench.recipes.base import Recipe

GRACE_SECONDS = 30.0  # to write a checkpoint in after Ctrl-C


def run_local(
    plan: Plan,
    *,
    data: Mapping[str, Path] | None = None,
    jobs: int | None = None,
    gpus: Sequence[str] | None = None,
    retries: Retries | None = None,
    name: str = "local",
    about: Mapping[str, object] | None = None,
    report: Reporter | None = None,
) -> Outcome:
    """Makes what is to make with `jobs` processes at a time (default: one a GPU, else one). `gpus`: their ids (default: those
    that are visible). `about` goes into the sweep's sweep.json. Ctrl-C stops all of them with their work saved."""
    outcome = Outcome()
    with plan.running():
        for key, node in plan.nodes.items():
            if node.state != "to make" and (artifact := plan.store.find(node.recipe, plan.session)):
                outcome.artifacts[key] = artifact
        if plan.to_make:
            devices = visible_gpus() if gpus is None else list(gpus)
            said = {"started": started(os.getpid()), **(about or {})}
            sweep = Sweep.create(plan, name, executor="local", data=data or {}, **said)
            workers = max(1, min(jobs or len(devices) or 1, len(sweep.tasks)))
            report = report or reporter()
            try:
                _Queue(plan, sweep, workers, devices, retries or Retries(), report, outcome).run()
            finally:
                report.close()
        if not outcome.failures:
            plan.end()
    return outcome


def visible_gpus() -> list[str]:
    """The ids in CUDA_VISIBLE_DEVICES, else one for each GPU that the driver lists; none where there is no driver."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu.strip() for gpu in chosen.split(",") if gpu.strip() not in ("", "-1")]
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30, check=False).stdout
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [str(i) for i, line in enumerate(line for line in listed.splitlines() if line.startswith("GPU "))]


class _Queue:
    """The state of one run. Threads wait for the processes; all decisions are made in the thread that called `run`."""

    def __init__(
        self,
        plan: Plan,
        sweep: Sweep,
        workers: int,
        gpus: Sequence[str],
        retries: Retries,
        report: Reporter,
        outcome: Outcome,
    ) -> None:
        self.plan, self.sweep, self.workers, self.retries, self.report = plan, sweep, workers, retries, report
        self.outcome = outcome
        self.recipes: dict[str, Recipe] = {recipe.key: recipe for recipe in plan.to_make}
        self.stopping = threading.Event()
        self.places: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        for i in range(workers):
            self.places.put(gpus[i % len(gpus)] if gpus else None)
        self.threads = max(1, len(os.sched_getaffinity(0)) // workers) if workers > 1 else None

    def run(self) -> None:
        waiting = dict(self.sweep.tasks)
        running: dict[Future[Ended], Task] = {}
        ended = 0
        with ThreadPoolExecutor(self.workers) as pool:
            try:
                while waiting or running:
                    for key, task in list(waiting.items()):
                        if failed := [k for k in task.needs if k in self.outcome.failures]:
                            parent = self.recipes[failed[0]]
                            ended += 1
                            self._failed(task, f"it needs {parent.title} ({parent.key[:8]}), which failed", ended)
                            del waiting[key]
                        elif len(running) < self.workers and all(k in self.outcome.artifacts for k in task.needs):
                            running[pool.submit(self._make, task)] = task
                            del waiting[key]
                    if not running:
                        continue
                    for future in wait(running, timeout=1.0, return_when=FIRST_COMPLETED).done:
                        task = running.pop(future)
                        ended += 1
                        self._ended(task, future.result(), ended)
            except BaseException:  # Ctrl-C too: the processes save their work before the pool is left
                self.stopping.set()
                raise

    def _make(self, task: Task) -> Ended:
        """In a thread: attempts until one ends well, or its cause was tried often enough."""
        gpu = self.places.get()
        command = stage_command(
            self.sweep.recipe_path(task.key), self.plan.store.root, self.sweep.about["data"], self.plan.session
        )
        environment = environment_of(self.threads, **({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu}))
        tried: dict[str, int] = {}
        try:
            while True:
                self.sweep.event(task.key, "start", job=f"pid {os.getpid()}", gpus=int(gpu is not None))
                log = self.sweep.log(task.key)
                end = attempt(command, log, environment, stop=self.stopping.is_set, grace=GRACE_SECONDS)
                end = blamed(end, self.plan.store.root)
                self.sweep.event(task.key, "end", cause=end.cause, code=end.code, seconds=end.seconds, line=end.line)
                tried[end.cause] = tried.get(end.cause, 0) + 1
                if end.cause in (DONE, STOPPED) or self.stopping.is_set() or tried[end.cause] > self.retries.of(end.cause):
                    return end
                time.sleep(0.2)
        finally:
            self.places.put(gpu)

    def _ended(self, task: Task, end: Ended, number: int) -> None:
        recipe = self.recipes[task.key]
        if end.cause == STOPPED:
            self._failed(task, "it was stopped", number)
            return
        artifact = self.plan.store.find(recipe, self.plan.session) if end.cause == DONE else None
        if artifact is None:
            why = end.line.removeprefix("pagoda-bench: error: ") or f"exit code {end.code}"
            cause = "" if end.cause == FAILED else f"{end.cause}: "
            self._failed(task, f"{cause}{why} (log: {self.sweep.log(task.key)})", number)
            return
        self.outcome.artifacts[task.key] = artifact
        self.report.say(finished(self._label(task, number), recipe, end.seconds, made=True))

    def _failed(self, task: Task, message: str, number: int) -> None:
        self.outcome.failures[task.key] = message
        self.report.say(f"{self._label(task, number)} failed: {message}")

    def _label(self, task: Task, number: int) -> str:
        return f"[{number}/{len(self.sweep.tasks)}] {task.title}"


def check_jobs(jobs: int | None) -> None:
    """Refuses a number of processes that cannot be meant."""
    if jobs is not None and jobs < 1:
        raise UserError(f"--jobs {jobs}: give at least one process")
