"""What runs inside a SLURM job: `pagoda-bench run-stage` on one recipe, watched, stopped in time, requeued.

submitit carries only the place of a sweep and a key. Its own handling of signals, which guesses from the run time whether a
job was preempted or timed out, is replaced: SLURM is asked, and how often a stage went on is counted by cause.

Of a job with several tasks, each runs the stage; the first one alone writes events and requeues.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from pagoda_bench.artifacts.ranks import place
from pagoda_bench.plan.attempts import DONE, STOPPED, Ended, attempt, blamed, environment_of, stage_command
from pagoda_bench.plan.requests import Profile
from pagoda_bench.plan.slurm_query import job_facts
from pagoda_bench.plan.sweeps import Sweep

CANCELLED, PREEMPTED, TIME_LIMIT = "cancelled", "preempted", "time limit"


@dataclass
class Asked:
    """Signals that arrived. SLURM sends USR2 ahead of a limit or of a preemption, TERM with a cancellation, and with a
    preemption where the cluster does not send signals of the user's. `due`: the moment (of the monotonic clock) at which the
    limit is near; a signal that came while Python was starting is lost, the clock is not."""

    names: set[str] = field(default_factory=set)
    due: float = float("inf")

    def __call__(self) -> bool:
        return bool(self.names) or self.late

    @property
    def late(self) -> bool:
        return time.monotonic() >= self.due

    def note(self, number: int, frame: FrameType | None) -> None:
        self.names.add(signal.Signals(number).name)

    def listen(self) -> None:
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self.note)
        signal.signal(signal.SIGCONT, signal.SIG_IGN)


@dataclass(frozen=True)
class StageTask:
    """Called by submitit in the job. `sweep`: the sweep's folder; `shard`: "i/n" of a stage in shards. Ends the process with
    the stage's exit code."""

    sweep: str
    key: str
    minutes: int
    shard: str | None = None

    def __call__(self) -> None:
        asked = Asked()
        asked.listen()
        code = Runner(Sweep(Path(self.sweep)), self.key, self.minutes, asked, self.shard).run()
        if code:
            sys.stdout.flush()
            sys.exit(code)


class Runner:
    """The attempts of one job at one stage."""

    def __init__(self, sweep: Sweep, key: str, minutes: int, asked: Asked, shard: str | None = None) -> None:
        self.sweep, self.key, self.minutes, self.asked, self.shard = sweep, key, minutes, asked, shard
        self.profile = Profile.load(sweep.about["cluster"], str(sweep.folder))
        self.end = time.monotonic() + seconds_left(minutes)
        asked.due = self.end - min(minutes * 30.0, self.profile.signal_delay)
        self.job = job_id()
        self.rank = place()
        part = f"shard-{shard.partition('/')[0]}" if shard else ""
        self.log = sweep.log(key, part if self.rank.first else f"rank-{self.rank.rank}")

    def run(self) -> int:
        if not self.rank.first:
            return self.attempt().code
        gpus = len(os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(",", " ").split())
        gpus *= int(os.environ.get("SLURM_NNODES", "1"))
        while True:
            self.event("start", host=os.environ.get("SLURMD_NODENAME") or socket.gethostname(), gpus=gpus)
            end = blamed(self.attempt(), Path(self.sweep.about["store"]))
            cause = self.why_stopped() if end.cause == STOPPED else end.cause
            self.event("end", cause=cause, code=end.code, seconds=end.seconds, line=end.line)
            print(f"pagoda-bench: {self.key}: {cause} after {end.seconds:.1f} s {end.line}", flush=True)
            if cause == DONE:
                return 0
            if self.tried(cause) > self.profile.retries.of(cause):
                return abs(end.code) or 1
            if end.cause == STOPPED or self.rank.size > 1:  # the other processes have to begin anew too
                return self.requeue()

    def attempt(self) -> Ended:
        about = self.sweep.about
        recipe = self.sweep.recipe_path(self.key)
        command = stage_command(recipe, Path(about["store"]), about["data"], about["session"], self.shard)
        code = Path(about["code"]["path"]) if about["code"]["path"] else None
        environment = environment_of(self.profile.threads or int(os.environ.get("SLURM_CPUS_PER_TASK", "1")))
        if self.profile.scratch:
            environment["TMPDIR"] = scratch = os.path.expandvars(self.profile.scratch)
            try:
                Path(scratch).mkdir(parents=True, exist_ok=True)
                with tempfile.TemporaryFile(dir=scratch):
                    pass
            except OSError as error:
                return Ended("scratch not writable", 2, 0.0, f"{scratch}: {error.strerror}: change 'scratch' of the profile")
        grace = max(5.0, self.profile.signal_delay - 15.0)
        return attempt(command, self.log, environment, stop=self.asked, grace=grace, cwd=code)

    def event(self, event: str, **facts: Any) -> None:
        self.sweep.event(self.key, event, job=self.job, **({"shard": self.shard} if self.shard else {}), **facts)

    def tried(self, cause: str) -> int:
        """How often this job ended so; submitting again starts a new count."""
        return sum(
            e["event"] == "end" and e.get("job") == self.job and e["cause"] == cause for e in self.sweep.events(self.key)
        )

    def why_stopped(self) -> str:
        """Asks SLURM; where it does not answer (as inside some containers), judges by signal and time."""
        facts = job_facts(self.job) or {}
        if facts.get("JobState", "").startswith("CANCELLED"):
            return CANCELLED
        if facts.get("JobState", "").startswith("NODE_FAIL"):
            return "node failed"
        if facts.get("PreemptTime", "None") not in ("None", "N/A", "Unknown"):
            return PREEMPTED
        if facts.get("JobState") in ("PENDING", "REQUEUED", "REQUEUE_HOLD"):  # SLURM has done so: its node goes out of service
            return "requeued"
        left = self.end - time.monotonic()
        if not (signal.SIGUSR2.name in self.asked.names or self.asked.late):
            # A notice comes ahead of a limit and of a preemption, never with scancel; it is lost while Python starts.
            return TIME_LIMIT if left < 5 else CANCELLED
        return TIME_LIMIT if left <= self.profile.signal_delay + 75 else PREEMPTED  # SLURM signals up to a minute early

    def requeue(self) -> int:
        """Puts the job back into the queue. SLURM ends it within moments, and is waited for: a job that ends by itself while
        it is being requeued can be taken for one that failed."""
        self.asked.names.discard(signal.SIGTERM.name)
        try:
            done = subprocess.run(["scontrol", "requeue", self.job], capture_output=True, text=True, timeout=60, check=False)
            why = " ".join(done.stderr.split()) if done.returncode else ""
        except (OSError, subprocess.TimeoutExpired) as error:
            why = str(error)
        if why:
            self.event("note", line=f"the job could not be requeued ({why}): 'pagoda-bench resume' goes on")
            return 1
        patience = time.monotonic() + 30
        while signal.SIGTERM.name not in self.asked.names and time.monotonic() < patience:
            time.sleep(0.1)
        return 1


def seconds_left(minutes: int) -> float:
    """Of the job that this process runs in. Where SLURM does not say when it will end (before 23.02), it began no later than
    this process, which on a busy machine may be long before it comes to look at the clock."""
    if end := os.environ.get("SLURM_JOB_END_TIME", ""):
        return float(end) - time.time()
    passed = 0.0
    with suppress(OSError, ValueError, IndexError):
        began = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]) / os.sysconf("SC_CLK_TCK")
        passed = float(Path("/proc/uptime").read_text().split()[0]) - began
    return minutes * 60.0 - max(0.0, passed)


def job_id() -> str:
    """`<array>_<index>` or the id of the job that this process runs in; "?" outside of one."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ.get("SLURM_JOB_ID", "?")
