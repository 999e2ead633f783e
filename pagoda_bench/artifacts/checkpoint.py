"""Files that are whole or not there, whatever ends the process, and what a full disk looks like."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

FULL = (errno.ENOSPC, errno.EDQUOT)


def save_atomic(path: Path, write: Callable[[Path], object]) -> None:
    """Calls `write(temporary)` and puts the result at `path` in one step: a reader, or the next run after a kill, finds the
    old file or the new one, never a part. The temporary file lies beside `path` and ends in the same suffix."""
    temporary = path.with_name(f".{path.stem}.tmp-{os.getpid()}{path.suffix}")
    done = False
    try:
        write(temporary)
        sync(temporary)
        os.replace(temporary, path)
        done = True
    finally:
        if not done:
            full = nearly_full(path.parent)  # asked before the temporary file gives its space back
            temporary.unlink(missing_ok=True)
            if full:  # some writers report a full disk in words of their own
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))
    sync(path.parent)


def write_json(path: Path, value: Any) -> None:
    """`value` as indented, sorted JSON at `path`, atomically."""
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=True, allow_nan=False) + "\n"
    save_atomic(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> Any:
    """The JSON value at `path`; None when there is no file, or no whole JSON in it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def sync(path: Path) -> None:
    """Asks the system to put a file, or a folder's list of names, on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """`sync` for a folder and all in it."""
    for directory, _, files in os.walk(folder):
        for name in files:
            sync(Path(directory, name))
        sync(Path(directory))


def disk_full(error: BaseException, folder: Path) -> bool:
    """Whether `error`, or what caused it, comes from a full disk (or quota), also as libraries put it that lose the errno."""
    cause: BaseException | None = error
    while cause is not None:
        if getattr(cause, "errno", None) in FULL or "no space left on device" in str(cause).lower():
            return True
        cause = cause.__cause__ or cause.__context__
    return not isinstance(error, KeyboardInterrupt) and nearly_full(folder)


def nearly_full(folder: Path) -> bool:
    """Whether the disk that holds `folder` has less than 64 kB left. What has no size at all (/proc) is no disk."""
    try:
        usage = shutil.disk_usage(folder)
    except OSError:
        return False
    return usage.total > 0 and usage.free < 2**16
