"""One tiny job that tells what a node of a cluster sees."""

from __future__ import annotations

import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagoda_bench.artifacts.checkpoint import read_json
from pagoda_bench.artifacts.locks import Faults
from pagoda_bench.errors import UserError, nearest
from pagoda_bench.plan import slurm_query as slurm
from pagoda_bench.plan.attempts import tail
from pagoda_bench.plan.requests import DEFAULT, Profile, Request
from pagoda_bench.plan.slurm import executor, submit_array
from pagoda_bench.plan.sweeps import AREA
from pagoda_bench.recipes.base import KINDS


@dataclass(frozen=True)
class LookTask:
    """Called by submitit in the job: runs `pagoda-bench cluster look`."""

    store: str
    report: str
    data: tuple[str, ...]
    scratch: str | None = None

    def __call__(self) -> None:
        command = [sys.executable, "-m", "pagoda_bench.cli.main", "cluster", "look", self.store, self.report, *self.data]
        subprocess.run([*command, *(["--scratch", self.scratch] if self.scratch else [])], check=True)


def probe(profile: Profile, kind: str, store: Path, data: Sequence[str], wait: float) -> dict[str, Any]:
    """Submits the job, waits for it, and returns its report, with the seconds it waited in the queue and ran.

    Raises:
        UserError: SLURM refuses the job, or it does not report within `wait` seconds (it is cancelled then), and why.
    """
    if kind != DEFAULT and kind not in KINDS:
        raise UserError(f"unknown kind of stage '{kind}'{nearest(kind, [DEFAULT, *KINDS])}")
    slurm.need_slurm()
    one = {"time": "10", "nodes": 1, "tasks": 1, "shards": 1}
    values = {**profile.stages.get(DEFAULT, {}), **profile.stages.get(kind, {}), **one}
    request = Request.load(values, f"stages.{kind}")
    folder = store / AREA / f".check-{secrets.token_hex(4)}"
    with Faults(store):
        folder.mkdir(parents=True)
    report = folder / "report.json"
    start = time.monotonic()
    runner = executor(folder, profile, request, "pagoda-bench-check")
    job = submit_array(runner, [LookTask(str(store), str(report), tuple(data), profile.scratch)])[0].job_id
    seen: dict[str, str] = {}
    while not report.is_file():
        seen = slurm.job_facts(job) or seen
        state = seen.get("JobState", "?")
        if state in ("FAILED", "CANCELLED", "NODE_FAIL", "OUT_OF_MEMORY", "TIMEOUT", "BOOT_FAIL"):
            said = (tail(folder / f"{job}_0_log.out").strip().splitlines() or ["it printed nothing"])[-1]
            raise UserError(f"the job of the check ended with {state}: {said} (log: {folder / f'{job}_0_log.out'})")
        if time.monotonic() - start > wait:
            slurm.cancel([job])
            raise UserError(f"no report after {wait:.0f} s: job {job} is {state} ({seen.get('Reason', '?')}); it was cancelled")
        time.sleep(0.5)
    found = read_json(report)
    shutil.rmtree(folder, ignore_errors=True)
    return {
        "job": job,
        "partition": (slurm.job_facts(job) or {}).get("Partition", ""),
        **found,
        "seconds": round(time.monotonic() - start, 1),
    }
