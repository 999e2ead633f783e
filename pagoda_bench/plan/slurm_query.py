"""What SLURM says: the queue, the accounting where there is any, the limits of the cluster. Reads only.

Every function makes one call. One that SLURM does not answer gives None: the artifacts and the events of a sweep tell the
rest.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pagoda_bench.errors import UserError

WAITING = frozenset(("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD"))
LIVE = WAITING | {"RUNNING", "SUSPENDED", "COMPLETING", "STAGE_OUT", "SIGNALING", "STOPPED", "RESIZING"}
FORMAT = "%i|%T|%M|%N|%r"
TIMEOUT = 60.0


@dataclass(frozen=True)
class Seen:
    """A job as SLURM sees it. `state` in SLURM's words, `seconds` it has run, `reason` why it waits or ended."""

    state: str
    seconds: float = 0.0
    node: str = ""
    reason: str = ""

    @property
    def live(self) -> bool:
        return self.state in LIVE

    @property
    def waiting(self) -> bool:
        return self.state in WAITING


def ask(*command: str) -> str | None:
    """What a command of SLURM's prints; None when it is absent, fails or takes too long."""
    if shutil.which(command[0]) is None:
        return None
    try:
        done = subprocess.run(list(command), capture_output=True, text=True, timeout=TIMEOUT, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def need_slurm() -> None:
    """Refuses, in one line, a machine from which nothing can be submitted."""
    for program in ("sbatch", "srun", "squeue", "scontrol"):
        if shutil.which(program) is None:
            raise UserError(
                f"no {program} on the PATH: run this on a login node of the cluster, or use --executor local or inline"
            )


def queue(user: str) -> dict[str, Seen] | None:
    """All jobs of a user by id, an array's elements as `<array>_<index>`, with those that ended a few minutes ago."""
    said = ask("squeue", "--noheader", "--array", "--states=all", f"--user={user}", f"--format={FORMAT}")
    return None if said is None else read_queue(said)


def read_queue(text: str) -> dict[str, Seen]:
    found = {}
    for line in text.splitlines():
        job, *rest = line.strip().split("|", 4)
        if len(rest) == 4:
            for one in expand(job):
                found[one] = Seen(rest[0], seconds(rest[1]), rest[2], rest[3])
    return found


def accounting(jobs: Sequence[str]) -> dict[str, Seen] | None:
    """What the accounting database has on these arrays or jobs; None where there is none."""
    command = ("sacct", "--allocations", "--noheader", "--parsable2", "--duplicates", f"--jobs={','.join(jobs)}")
    said = ask(*command, "--format=JobID,State,ElapsedRaw,NodeList,Reason") if jobs else ""
    return None if said is None else read_accounting(said)


def read_accounting(text: str) -> dict[str, Seen]:
    found = {}
    for line in text.splitlines():
        job, *rest = line.strip().split("|")
        if len(rest) == 4 and "." not in job and rest[0]:
            for one in expand(job):
                found[one] = Seen(rest[0].split()[0], float(rest[1] or 0), rest[2], rest[3])
    # an array is one record under its plain number until the database has heard of its elements
    arrays = {job.partition("_")[0] for job in found if "_" in job}
    return {job: seen for job, seen in found.items() if job not in arrays}


def expand(job: str) -> list[str]:
    """`7` -> 7; `7_2` -> 7_2; `7_[0-2,5%4]` -> 7_0, 7_1, 7_2, 7_5."""
    match = re.fullmatch(r"(\d+)_\[([\d,-]+)(?:%\d+)?\]", job)
    if not match:
        return [job]
    found = []
    for part in match[2].split(","):
        first, _, last = part.partition("-")
        found += [f"{match[1]}_{i}" for i in range(int(first), int(last or first) + 1)]
    return found


def seconds(text: str) -> float:
    """SLURM's `[D-][H:]M:S`; 0 for what is no time (INVALID, N/A)."""
    match = re.fullmatch(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+)", text.strip())
    if not match:
        return 0.0
    days, hours, minutes, rest = (int(g or 0) for g in match.groups())
    return float(((days * 24 + hours) * 60 + minutes) * 60 + rest)


def job_facts(job: str) -> dict[str, str] | None:
    """`scontrol show job` of one job or element as a dictionary; None when SLURM does not answer or does not know it."""
    said = ask("scontrol", "--oneliner", "show", "job", job)
    return None if not said else dict(re.findall(r"(\S+?)=(\S*)", said.splitlines()[0]))


def max_array_size() -> int:
    """The number of elements that an array may have (its largest index is one less)."""
    said = ask("scontrol", "show", "config")
    if said is None:
        raise UserError("SLURM does not answer ('scontrol show config' fails): is its controller running?")
    match = re.search(r"^MaxArraySize\s*=\s*(\d+)", said, re.MULTILINE)
    return max(1, int(match[1])) if match else 1001


def partitions() -> dict[str, float]:
    """The longest time, in minutes, that each partition allows; under "" that of the one for jobs that name none."""
    said = ask("scontrol", "--oneliner", "show", "partition") or ""
    found = {}
    for line in said.splitlines():
        facts = dict(re.findall(r"(\S+?)=(\S*)", line))
        if "PartitionName" in facts:
            limit = seconds(facts.get("MaxTime", "")) / 60 or float("inf")
            found[facts["PartitionName"]] = limit
            if facts.get("Default") == "YES":
                found[""] = limit
    return found


@dataclass(frozen=True)
class Node:
    """What one node of a partition has; `mem_gb` in units of 1024 MB."""

    cpus: int
    mem_gb: float
    gpus: int


def nodes() -> dict[str, list[Node]]:
    """The nodes of each partition, under "" those of the default one; empty when SLURM does not answer."""
    return read_nodes(ask("sinfo", "--noheader", "--Node", "--format=%P|%c|%m|%G") or "")


def read_nodes(text: str) -> dict[str, list[Node]]:
    found: dict[str, list[Node]] = {}
    for line in text.splitlines():
        partition, *rest = line.strip().split("|")
        if len(rest) == 3 and rest[0].isdigit() and rest[1].isdigit():
            # e.g. gpu:a100:8(S:0-1),gpu:t4:2
            gpus = sum(int(count) for count in re.findall(r"\bgpu:(?:[^:,()]+:)?(\d+)", rest[2]))
            for name in {partition.removesuffix("*"), "" if partition.endswith("*") else partition}:
                found.setdefault(name, []).append(Node(int(rest[0]), int(rest[1]) / 1024, gpus))
    return found


def cancel(jobs: Iterable[str]) -> None:
    """Cancels jobs and elements of arrays."""
    wanted = list(jobs)
    for first in range(0, len(wanted), 500):
        done = subprocess.run(["scancel", *wanted[first : first + 500]], capture_output=True, text=True, check=False)
        if done.returncode != 0 and "Invalid job id" not in done.stderr:
            raise UserError(f"scancel: {' '.join(done.stderr.split())}")
