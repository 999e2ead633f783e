"""Several processes that one test starts: they end together, one way or the other, and what they said is in the failure."""

from __future__ import annotations

import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

ROOT = Path(__file__).parent.parent
PORTS = range(15_000, 32_000)  # below those that systems give to connections by themselves (32768 and up on Linux)
GRACE = 5.0  # seconds that the others have to say what they have to, once one has failed


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, drawn at random, so that tests that run side by side do not meet."""
    draws, found = random.SystemRandom(), []
    while len(found) < count:
        port = draws.choice(PORTS)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found


def together(
    module: str,
    arguments: Sequence[str],
    folder: Path,
    world: int,
    variables: Mapping[str, str] | None = None,
    seconds: float = 500.0,
) -> None:
    """Runs `python -m module *arguments` once for each rank, under RANK, WORLD_SIZE and `variables`, and waits for all.

    A rank whose partner is gone may wait for it for minutes: when one fails, the others are ended. Output goes to files below
    `folder`, so that no pipe can fill up. AssertionError, with the end of all output, when a rank fails or takes too long.
    """
    folder.mkdir(parents=True, exist_ok=True)
    logs = [folder / f"rank{rank}.log" for rank in range(world)]
    processes: list[subprocess.Popen[bytes]] = []
    with ExitStack() as stack:
        try:
            for rank, log in enumerate(logs):
                environment = {
                    **os.environ,
                    "PYTHONPATH": str(ROOT),
                    "RANK": str(rank),
                    "WORLD_SIZE": str(world),
                    "LOCAL_RANK": str(rank),
                    "MASTER_ADDR": "127.0.0.1",
                    **(variables or {}),
                }
                command = [sys.executable, "-m", module, *arguments]
                out = stack.enter_context(log.open("wb"))
                processes.append(subprocess.Popen(command, env=environment, cwd=ROOT, stdout=out, stderr=out))
            codes = _wait(processes, seconds)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                process.wait()
    said = "\n".join(f"--- rank {i} ({codes[i]})\n{log.read_text(errors='replace')[-4000:]}" for i, log in enumerate(logs))
    assert codes == [0] * world, said


def _wait(processes: Sequence[subprocess.Popen[bytes]], seconds: float) -> list[int | None]:
    """The exit codes; None of those that were still running when the time was over, or when another had failed."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        codes = [process.poll() for process in processes]
        if None not in codes:
            return codes
        if any(codes):  # neither None nor 0
            end = min(end, time.monotonic() + GRACE)
        time.sleep(0.05)
    return [process.poll() for process in processes]
