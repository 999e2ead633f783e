"""Which process a number means, as the system gives the numbers of dead processes to others; and who runs this one."""

from __future__ import annotations

import getpass
import os
import subprocess
from pathlib import Path

PROC = Path("/proc")


def started(pid: int) -> str | None:
    """When process `pid` began, in the system's words, which no other process of that number shares; None when there is no
    such process. On Linux the boot and the clock ticks since then, elsewhere what ps says."""
    try:
        # "pid (name) state ...", and the name may hold anything; the start is field 22 of all, the 20th after it.
        fields = (PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = (PROC / "sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except ProcessLookupError:  # it ended while it was read
        return None
    except OSError:
        return None if (PROC / "self/stat").exists() else _by_ps(pid)
    return None if fields[0] in "ZX" else f"{boot} {fields[19]}"  # one that ended, and that nobody has waited for


def _by_ps(pid: int) -> str | None:
    try:
        done = subprocess.run(["ps", "-o", "lstart=", "-p", str(pid)], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def user() -> str:
    """The user's name; the number where it has none, as in a container that runs under any."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return str(os.getuid())
