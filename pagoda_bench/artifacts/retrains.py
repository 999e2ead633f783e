"""The marks of unfinished retrainings, `<root>/.retrain/<name>.json` with {"session": ...}: how long ago one was worked on is
the age of the file, and whether one is being run says a lock."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from pagoda_bench.artifacts.checkpoint import read_json

AREA = ".retrain"


def session_of(mark: Path) -> str | None:
    """The session that a mark stands for; None when there is none."""
    value = read_json(mark)
    return str(value["session"]) if isinstance(value, dict) and "session" in value else None


def touch(root: Path, session: str | None) -> None:
    """Notes that somebody works on a retraining."""
    for mark in (root / AREA).glob("*.json") if session is not None else ():
        if session_of(mark) == session:
            with suppress(OSError):  # it only informs
                os.utime(mark)


def lock_of(session: str) -> str:
    """The name of the lock that a process holds which runs the plan of a retraining."""
    return f"retrain-{session}"
