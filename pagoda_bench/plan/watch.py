"""How a sweep stands: artifacts, events, the queue and the accounting laid over each other.

An artifact that is there is done, whatever a scheduler says. Else a job in the queue waits or runs. Else the last event of
the stage, then SLURM's word on the ended job, says why it failed.
"""

from __future__ import annotations

import os
import re
import socket
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pagoda_bench.artifacts.digests import DIGESTS
from pagoda_bench.artifacts.store import Artifact, Store
from pagoda_bench.plan import slurm_query as slurm
from pagoda_bench.plan.attempts import DONE, tail
from pagoda_bench.plan.processes import started
from pagoda_bench.plan.sweeps import Sweep, Task, sweeps

State = Literal["done", "running", "pending", "failed", "blocked", "not submitted"]
STATES: tuple[State, ...] = ("done", "running", "pending", "failed", "blocked", "not submitted")
# SLURM's words for the end of a job, in ours.
ENDS = {
    "OUT_OF_MEMORY": "out of memory",
    "NODE_FAIL": "node failed",
    "BOOT_FAIL": "node failed",
    "TIMEOUT": "time limit",
    "DEADLINE": "time limit",
    "CANCELLED": "cancelled",
    "PREEMPTED": "preempted",
}

BACK = ("preempted", "time limit", "requeued", "node failed")  # ends after which a job goes back into the queue


@dataclass(frozen=True)
class Standing:
    """One stage of a sweep. `cause` and `line`: why it failed; of one that runs, `line` is the last line of its log, with
    step, rate and time left. `seconds` it ran, all attempts together; `gpu_seconds` those times GPUs."""

    key: str
    kind: str
    title: str
    state: State
    job: str = ""
    node: str = ""
    cause: str = ""
    line: str = ""
    attempts: int = 0
    seconds: float = 0.0
    gpu_seconds: float = 0.0


@dataclass(frozen=True)
class Overview:
    """A sweep at one moment. `answered`: which of SLURM's commands gave an answer."""

    sweep: str
    executor: str
    tasks: tuple[Standing, ...]
    answered: tuple[str, ...] = ()

    @property
    def counts(self) -> dict[str, int]:
        counted = Counter(task.state for task in self.tasks)
        return {state: counted[state] for state in STATES}

    @property
    def over(self) -> bool:
        """Nothing runs and nothing will by itself."""
        return not (self.counts["running"] or self.counts["pending"])

    @property
    def gpu_hours(self) -> dict[str, float]:
        """By kind of stage."""
        total: dict[str, float] = {}
        for task in self.tasks:
            total[task.kind] = total.get(task.kind, 0.0) + task.gpu_seconds / 3600
        return {kind: round(hours, 4) for kind, hours in sorted(total.items()) if hours}

    def to_dict(self) -> dict[str, Any]:
        tasks = [asdict(task) for task in self.tasks]
        head = {"sweep": self.sweep, "executor": self.executor, "over": self.over, "answered": list(self.answered)}
        return {**head, "counts": self.counts, "gpu_hours": self.gpu_hours, "tasks": tasks}


def overview(sweep: Sweep, store: Store) -> Overview:
    """One query to the scheduler, a second one to its accounting if a job is gone whose end nobody wrote down."""
    about, borrowed = sweep.about, sweep.borrowed
    session = about["session"]
    jobs = {**sweep.elements(), **{key: ids for key, (ids, _) in borrowed.items()}}
    done = {task.key for task in sweep.tasks.values() if made(task, store, session) is not None}
    seen: dict[str, slurm.Seen] = {}
    answered: list[str] = []
    open_jobs = {key: ids for key, ids in jobs.items() if key not in done}
    events = {key: sweep.events(key) for key in sweep.tasks}
    if open_jobs:
        queue = slurm.queue(",".join(sorted({*sweep.users, *(user for _, user in borrowed.values())})))
        if queue is not None:
            seen, answered = queue, ["squeue"]
        lost = {
            job for key, ids in open_jobs.items() for job in ids if job not in seen and _last_end(_of(events[key], job)) is None
        }
        old = slurm.accounting(sorted({job.partition("_")[0] for job in lost})) if lost else None
        if old is not None:
            seen, answered = {**old, **seen}, [*answered, "sacct"]
    local = about["executor"] == "local" and _alive(about)
    tasks: dict[str, Standing] = {}
    for task in sweep.tasks.values():
        ids = jobs.get(task.key, ())
        standing = _standing(sweep, task, task.key in done, ids, seen, answered, events[task.key], local)
        if standing.state == "failed" and made(task, store, session) is not None:  # it came between the two looks
            standing = _standing(sweep, task, True, ids, seen, answered, sweep.events(task.key), local)
        if standing.state in ("failed", "not submitted") and (standing.cause == "input missing" or not standing.attempts):
            parents = [tasks[key] for key in task.needs if tasks[key].state in ("failed", "blocked")]
            if parents:
                word = f"needs {parents[0].kind}/{parents[0].key[:8]}, which failed"
                standing = replace(standing, state="blocked", cause="input missing", line=word)
        tasks[task.key] = standing
    found = Overview(sweep.name, about["executor"], tuple(tasks.values()), tuple(answered))
    if found.tasks and found.counts["done"] == len(found.tasks) and not sweep.closed and os.access(sweep.folder, os.W_OK):
        sweep.close()
    return found


def living(store: Store) -> tuple[set[str], set[str]]:
    """What something runs or waits for, here or on a cluster: the sessions of retrainings, and by `<kind>-<key>` the stages in
    a cluster's queue of which there is work to go on from. Costs an `overview` of each sweep that may have one."""
    sessions: set[str] = set()
    stages: set[str] = set()
    for sweep in sweeps(store):
        if sweep.closed:
            continue
        session = sweep.about["session"]
        names = {key: f"{task.kind}-{key}" for key, task in sweep.tasks.items() if sweep.about["executor"] == "slurm"}
        half_made = any((store.root / ".work" / name).is_dir() for name in names.values())
        if session is None and not half_made:
            continue
        found = overview(sweep, store)
        if session is not None and not found.over:
            sessions.add(session)
        stages |= {names[task.key] for task in found.tasks if task.key in names and task.state in ("running", "pending")}
    return sessions, stages


def made(task: Task, store: Store, session: str | None) -> Path | None:
    """The folder of a task's artifact; its contents are not read. With `session` only what that retraining made counts."""
    local = store.root / task.kind / task.key
    if (local / DIGESTS).is_file() and (session is None or Artifact(local).provenance.get("session") == session):
        return local
    for root in store.released if session is None else ():
        if (root / task.kind / task.key / DIGESTS).is_file():
            return root / task.kind / task.key
    return None


def _standing(
    sweep: Sweep,
    task: Task,
    done: bool,
    jobs: Sequence[str],
    seen: Mapping[str, slurm.Seen],
    answered: Sequence[str],
    events: list[dict[str, Any]],
    local: bool,
) -> Standing:
    job = _telling(jobs, seen, events)
    own = _of(events, job) if len(jobs) > 1 else events
    ends = [e for e in (_of(events, job) if job else own) if e["event"] == "end"]  # not that of a job before it
    starts = [e for e in own if e["event"] == "start"]
    seconds, gpu_seconds = _used(events, still=not done)
    known = seen.get(job)
    state: State
    cause = line = ""
    if done:
        state = "done"
    elif known is not None and known.live:
        state = "pending" if known.waiting else "running"
        line = known.reason if state == "pending" else _says(sweep, task.key, len(jobs) > 1)
    elif known is None and job and not answered and _last_end(_of(events, job)) is None:
        state, line = ("running", _says(sweep, task.key, len(jobs) > 1)) if _open(own) else ("pending", "SLURM does not answer")
    elif local and (_open(own) or not starts):
        state, line = ("running", _says(sweep, task.key, len(jobs) > 1)) if _open(own) else ("pending", "")
    elif not job and not starts:
        state = "not submitted"
    else:
        state = "failed"
        cause, line = _why(known, ends[-1] if ends and not _open(own) else None, _says(sweep, task.key, len(jobs) > 1))
    if len(jobs) > 1 and state in ("running", "pending"):
        there = sum(1 for one in jobs if (end := _last_end(_of(events, one))) is not None and end["cause"] == DONE)
        line = f"{there} of {len(jobs)} shards; {line}"
    node = known.node if known else (starts[-1].get("host", "") if starts else "")
    return Standing(task.key, task.kind, task.title, state, job, node, cause, line, len(starts), seconds, gpu_seconds)


def _telling(jobs: Sequence[str], seen: Mapping[str, slurm.Seen], events: list[dict[str, Any]]) -> str:
    """The job that says most on a stage: of several shards one that runs, else one that waits, else one that failed."""
    ends = {e.get("job"): e["cause"] for e in events if e["event"] == "end"} if len(jobs) > 1 else {}

    def rank(job: str) -> int:
        if (known := seen.get(job)) is not None and known.live:
            return int(known.waiting)
        return 2 if ends.get(job) != DONE else 3

    return min(jobs, key=rank, default="")


def _why(known: slurm.Seen | None, end: dict[str, Any] | None, said: str) -> tuple[str, str]:
    """The cause of a failure, from SLURM's word on the job, the end that the stage wrote down, and what its log `said` last."""
    ended = ENDS.get(known.state) if known else None
    if ended and (end is None or end["cause"] in (DONE, "stopped", "killed", "failed", *BACK)):
        return ended, said
    if end is not None:
        return ("artifact gone", "") if end["cause"] == DONE else (end["cause"], end.get("line", ""))
    if known is not None and known.state not in ("COMPLETED",):
        return "ended before it could say why", said or known.reason
    return "lost: its process or its node ended", said


def _of(events: list[dict[str, Any]], job: str) -> list[dict[str, Any]]:
    return [e for e in events if e.get("job") == job]


def _open(events: list[dict[str, Any]]) -> bool:
    """Whether the last attempt has not said its end."""
    return next((e["event"] == "start" for e in reversed(events) if e["event"] in ("start", "end")), False)


def _last_end(events: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The end of the last attempt of a job, from its events; None while it is open, where it never began, or where the job went
    back into the queue after it (else a note follows)."""
    end = None if _open(events) else next((e for e in reversed(events) if e["event"] == "end"), None)
    return None if end is not None and end["cause"] in BACK and end is events[-1] else end


def _used(events: list[dict[str, Any]], still: bool) -> tuple[float, float]:
    """(seconds, GPU seconds) of all attempts; an open one counts up to now if it may `still` be running, and a killed one
    not at all, since nobody knows when it ended."""
    seconds = gpu_seconds = 0.0
    begun: dict[Any, dict[str, Any]] = {}
    for event in events:
        if event["event"] == "start":
            begun[event.get("job")] = event
        elif event["event"] == "end" and (start := begun.pop(event.get("job"), None)) is not None:
            seconds += event["seconds"]
            gpu_seconds += event["seconds"] * start.get("gpus", 0)
    for start in begun.values() if still else ():
        passed = max(0.0, time.time() - start["time"])
        seconds, gpu_seconds = seconds + passed, gpu_seconds + passed * start.get("gpus", 0)
    return round(seconds, 3), round(gpu_seconds, 3)


def _says(sweep: Sweep, key: str, shards: bool) -> str:
    """The last line of a stage's log; of one in shards, of that which was written to last."""
    logs = sweep.logs(key) if shards else [sweep.log(key)]
    return last_line(logs[-1]) if logs else ""


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    lines = [line.strip() for line in tail(log, size=4000).splitlines() if line.strip()]
    return re.sub(r"^\[1/1\] ", "", lines[-1])[:300] if lines else ""


def _alive(about: dict[str, Any]) -> bool:
    """Whether the process that runs a local sweep is there, as far as can be seen from here. Its number alone says nothing:
    another process may have it by now."""
    if about["host"] != socket.gethostname():
        return True
    return (now := started(int(about["pid"]))) is not None and now == about.get("started")
