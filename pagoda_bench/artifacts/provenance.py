"""How an artifact came to be: code, versions, machine, seeds, time, memory, floating-point work. Never part of its digest."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
import time
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pagoda_bench
from pagoda_bench.artifacts.checkpoint import read_json, write_json
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.base import Recipe, walk
from pagoda_bench.recipes.work import PAYLOAD

if TYPE_CHECKING:
    from pagoda_bench.artifacts.store import Artifact, Store

PACKAGES = ("numpy", "scipy", "torch", "torchvision", "pillow", "safetensors", "pydantic", "matplotlib")
FLOPS = "training_flops"
SNAPSHOT = ".snapshot.json"
UPSTREAM_FLOPS = "upstream_training_flops"
ATTEMPTS = ".attempts.json"
BEAT_SECONDS = 10.0


class Attempt:
    """The clock of one attempt at a stage. A file in the work folder, rewritten every few seconds, carries the time and the
    memory of attempts that were killed over to the next one."""

    def __init__(self, work: Path, session: str | None) -> None:
        code_revision()  # kept from here on: what is checked out when the stage ends may be another one
        self._file = work / ATTEMPTS
        earlier = read_json(self._file)
        self.earlier: list[dict[str, Any]] = earlier["attempts"] if isinstance(earlier, dict) else []
        self.session = session
        self.started = now()
        self._start = self._beaten = time.monotonic()
        self._cpu = time.process_time()
        reset_peak_memory()
        self._write()

    def beat(self) -> None:
        """Called with every step; writes only every `BEAT_SECONDS`."""
        if time.monotonic() - self._beaten >= BEAT_SECONDS:
            self._write()

    def close(self) -> None:
        """Called when the attempt ends without an artifact."""
        self._write()

    def all(self) -> list[dict[str, Any]]:
        """Every attempt: when it started, its seconds and those of processor time (of a killed one: until its last beat), its
        peak memory in bytes."""
        seconds, cpu = round(time.monotonic() - self._start, 3), round(time.process_time() - self._cpu, 3)
        return [
            *self.earlier,
            {"started": self.started, "seconds": seconds, "cpu_seconds": cpu, "peak_memory": peak_memory()},
        ]

    def _write(self) -> None:
        self._beaten = time.monotonic()
        with suppress(OSError):  # a clock must not end the work; a full disk shows at the next checkpoint
            write_json(self._file, {"session": self.session, "attempts": self.all()})


def counted_work(folder: Path) -> float:
    """Training work of a whole chain in floating-point operations, as the artifact of a `Work` in `folder` has it; `UserError`
    where that cannot be read."""
    found = read_json(folder / PAYLOAD)
    if not isinstance(found, dict) or not isinstance(flops := found.get("flops"), (int, float)):
        raise UserError(f"{folder} has no readable {PAYLOAD}: make it again")
    return float(flops)


def describe(recipe: Recipe, facts: dict[str, Any], attempt: Attempt, inputs: dict[str, Artifact]) -> dict[str, Any]:
    """The content of `provenance.json` for a stage that has just ended. `inputs` are the artifacts of `recipe.inputs()`."""
    attempts = attempt.all()
    upstream: dict[str, float | None] = {}
    for artifact in inputs.values():
        upstream |= artifact.provenance.get(UPSTREAM_FLOPS, {})
        upstream[artifact.name] = artifact.provenance.get(FLOPS)
    return {
        "threads": threads(),
        "device": None,
        **facts,
        "key": recipe.key,
        "kind": recipe.kind,
        "package": {"pagoda-bench": pagoda_bench.__version__, **code_revision(), **_provider(recipe)},
        "versions": versions(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "seeds": {f"{r.kind}/{r.key}": getattr(r, "seed") for r in walk(recipe) if "seed" in type(r).model_fields},  # noqa: B009
        "started": attempts[0]["started"],
        "finished": now(),
        "wall_seconds": round(sum(a["seconds"] for a in attempts), 3),
        "cpu_seconds": round(sum(a.get("cpu_seconds", 0.0) for a in attempts), 3),  # of all threads: less disturbed by others
        "attempts": len(attempts),
        "peak_memory": max(a["peak_memory"] for a in attempts),
        "session": attempt.session,
        "inputs": {artifact.name: artifact.digest for artifact in inputs.values()},
        UPSTREAM_FLOPS: dict(sorted(upstream.items())),
    }


def total_flops(store: Store, recipe: Recipe) -> float:
    """Floating-point operations of training `recipe` and everything upstream of it, each counted once.

    Read from the provenance of `recipe`'s artifact alone, which carries those upstream along: they need not be there.

    Raises:
        UserError: the artifact is absent, or a stage recorded no `training_flops` (0 is a record too).
    """
    artifact = store.find(recipe)
    if artifact is None:
        raise UserError(f"{recipe.kind}/{recipe.key} ({recipe.title}) is not made yet, so its training work is unknown")
    parts = {**artifact.provenance.get(UPSTREAM_FLOPS, {}), artifact.name: artifact.provenance.get(FLOPS)}
    if unknown := sorted(name for name, flops in parts.items() if flops is None):
        raise UserError(f"the stage that made {unknown[0]} recorded no {FLOPS}, so the total of {artifact.name} is unknown")
    return float(sum(parts.values()))


def now() -> str:
    """UTC, ISO 8601, of fixed width."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@cache
def code_revision() -> dict[str, Any]:
    """Git revision of the package's own checkout, and whether its code differs from that; nulls where there is no checkout."""
    unknown = {"revision": None, "dirty": None}
    package = Path(pagoda_bench.__file__).resolve().parent
    if isinstance(mark := read_json(package.parent / SNAPSHOT), dict):  # frozen for a sweep when it was submitted
        return {"revision": mark["revision"], "dirty": mark["dirty"], "snapshot": mark["digest"]}
    try:
        top, revision = _git(package, "rev-parse", "--show-toplevel", "HEAD").split()
        if Path(top).resolve() != package.parent:  # installed below somebody else's repository
            return unknown
        changed = _git(package.parent, "status", "--porcelain", "--", package.name, "baselines", "experiments")
    except (OSError, ValueError, subprocess.SubprocessError):
        return unknown
    return {"revision": revision, "dirty": bool(changed)}


def _git(folder: Path, *arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, timeout=20, check=True)
    return done.stdout.strip()


@cache
def versions() -> dict[str, str]:
    """Python's version, and of each package in `PACKAGES` that is installed; nothing is imported for it."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package)
    return found


def _provider(recipe: Recipe) -> dict[str, str]:
    """The version of the third-party package whose recipe this is."""
    package = type(recipe).__module__.partition(".")[0]
    with suppress(PackageNotFoundError):
        return {} if package in ("pagoda_bench", "baselines") else {package: version(package)}
    return {}


@cache
def cpu_model() -> str:
    """The processor's name as Linux gives it, or the machine type."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def threads() -> int:
    """The threads that one operation may use: torch's setting where torch is loaded, else the processors allowed."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.get_num_threads())
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def reset_peak_memory() -> None:
    """Starts the peak anew for this stage where the system allows it (Linux); elsewhere the peak is the process's."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def peak_memory() -> int:
    """Peak resident memory of this process in bytes since `reset_peak_memory`."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
