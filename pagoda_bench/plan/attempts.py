"""One attempt at a stage in a process of its own: started, logged, stopped cleanly, and its end given a cause."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pagoda_bench.artifacts.checkpoint import FULL, nearly_full

DONE, STOPPED, FAILED = "done", "stopped", "failed"
KEPT_BYTES = 16_000  # of a log's end are searched for a cause

# What a log says, and what that means to a user; the first that fits. The wording is that of PyTorch, CUDA, Python and ours.
SIGNS: tuple[tuple[str, str], ...] = (
    (r"CUDA out of memory|OutOfMemoryError|HIP out of memory|DefaultCPUAllocator: can't allocate|MemoryError", "out of memory"),
    (r"the disk that holds .* is full|No space left on device|Disk quota exceeded", "disk full"),
    (r"needs .* which is not made yet", "input missing"),
    (r"say where they are with --data|--data .*: no such file", "data missing"),
    (r"is not finite", "not finite"),
    (r"CUDA error|CUDNN_STATUS|NCCL error|device-side assert|uncorrectable ECC", "CUDA error"),
    (r"cannot write to the artifact store", "store not writable"),
    (r"has version \d+, this program makes version", "recipe of another version"),
    (r"pagoda-bench: error:", "refused"),
)


@dataclass(frozen=True)
class Ended:
    """How an attempt ended: "done", "stopped" (because it was asked to) or a cause of failure; with the exit code, seconds,
    and the line of the log that says most."""

    cause: str
    code: int
    seconds: float
    line: str = ""


def stage_command(
    recipe: Path, store: Path, data: Mapping[str, str | Path], session: str | None, shard: str | None = None
) -> list[str]:
    """`pagoda-bench run-stage` for one recipe, as the program that is running this. `shard`: "i/n", for a share of it."""
    command = [sys.executable, "-m", "pagoda_bench.cli.main", "run-stage", str(recipe), "--store", str(store)]
    for digest, place in data.items():
        command += ["--data", str(place) if digest == "*" else f"{digest}={place}"]
    if shard is not None:
        command += ["--shard", shard]
    return command if session is None else [*command, "--session", session]


def attempt(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str],
    *,
    stop: Callable[[], bool],
    grace: float,
    cwd: Path | None = None,
    poll: float = 0.1,
) -> Ended:
    """Runs `command`, both its streams appended to `log`. When `stop()` becomes true it gets SIGTERM and `grace` seconds
    to save its work, then SIGKILL."""
    start = time.monotonic()
    try:
        opened = log.open("ab")
    except OSError as error:
        if error.errno not in FULL:
            raise
        return Ended("disk full", 2, 0.0, f"no space for the log {log}")
    with opened as stream:
        before = stream.tell()
        # Some schedulers signal every process of a job: this one is for the watcher, and a blocked signal stays so in a child.
        unblocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
        try:
            child = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                cwd=cwd,
                start_new_session=True,  # a signal to our group, or Ctrl-C in the terminal, is ours to pass on
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, unblocked)
        asked = False
        try:
            while child.poll() is None:
                if stop() and not asked:
                    asked = True
                    halt(child, grace)
                with suppress(subprocess.TimeoutExpired):
                    child.wait(poll)
        except BaseException:
            halt(child, grace)
            raise
    asked = asked or stop()  # a scheduler may have told the process itself, and it was quick
    code = child.returncode
    seconds = round(time.monotonic() - start, 3)
    if code == 0:
        return Ended(DONE, 0, seconds)
    cause, line = explain(tail(log, before), code)
    return Ended(STOPPED if asked else cause, code, seconds, line)


def halt(child: subprocess.Popen[bytes], grace: float) -> None:
    """SIGTERM, and after `grace` seconds SIGKILL for it and all that it started."""
    with suppress(ProcessLookupError):
        child.terminate()
    try:
        child.wait(grace)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def explain(text: str, code: int) -> tuple[str, str]:
    """The cause of a failure from what was printed and the exit code (negative: a signal), and the telling line."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for pattern, cause in SIGNS:
        for line in reversed(lines):
            if re.search(pattern, line):
                return cause, line[:500]
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        return "killed", f"ended by {name}"
    return FAILED, (lines[-1][:500] if lines else f"exit code {code}")


def blamed(end: Ended, store: Path) -> Ended:
    """`end`, with the cause that a stage on a full disk could not write into its log."""
    if end.cause in (DONE, STOPPED) or not nearly_full(store):
        return end
    return replace(
        end, cause="disk full", line=f"the disk that holds {store} is full: free some space, then 'pagoda-bench resume'"
    )


def tail(path: Path, start: int = 0, size: int = KEPT_BYTES) -> str:
    """The end of a text file, from `start` at the earliest; empty when there is none."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(start, end - size))
            return file.read().decode("utf-8", "replace")
    except OSError:
        return ""


def environment_of(threads: int | None, **more: str) -> dict[str, str]:
    """This process's environment for a stage: libraries compute with `threads` threads unless the user chose already."""
    environment = dict(os.environ)
    if threads is not None:
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
            environment.setdefault(name, str(threads))
    environment["PYTHONUNBUFFERED"] = "1"
    return {**environment, **more}
