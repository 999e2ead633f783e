"""The toy stages as jobs: what a test wants of one in another process is said in the environment.

TOY_STEPS_LOG=FILE   a byte for every step that was really computed
TOY_KILL_AT=N        SIGKILL to itself at step N of the process; with TOY_KILLED=FILE only once
TOY_TELL=FOLDER      writes what GPU and how many threads it was given
"""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import toy_parallel  # noqa: F401 - its recipes
import toy_stages

_count = toy_stages.count_step
_steps = 0


def count_step() -> None:
    global _steps
    _count()
    _steps += 1
    if os.environ.get("TOY_KILL_AT") == str(_steps):
        once = os.environ.get("TOY_KILLED")
        if once is None or not Path(once).exists():
            if once is not None:
                Path(once).touch()
            os.kill(os.getpid(), signal.SIGKILL)


if log := os.environ.get("TOY_STEPS_LOG"):
    toy_stages.STEPS_LOG.append(Path(log))
if folder := os.environ.get("TOY_TELL"):
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")
    Path(folder, f"told-{os.getpid()}.json").write_text(json.dumps({name: os.environ.get(name) for name in names}))
toy_stages.count_step = count_step
