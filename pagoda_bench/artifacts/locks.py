"""Locks between processes, and faults of the disk put in one line."""

from __future__ import annotations

import errno
import json
import os
import socket
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from pagoda_bench.artifacts.checkpoint import disk_full, read_json
from pagoda_bench.artifacts.provenance import now
from pagoda_bench.errors import UserError

NO_LOCKS = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOLCK)
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EIO)


class Locks:
    """Named locks in a folder. They end with the process that holds them. A process may take one again that it holds."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._locks: dict[str, BaseFileLock] = {}

    @contextmanager
    def held(self, name: str, wait: Callable[[str], None] | None) -> Iterator[bool]:
        """Holds the lock `name` and yields True. Where another process holds it: without `wait` yields False at once, else
        hands `wait` a word on who that is, and waits."""
        self.folder.mkdir(parents=True, exist_ok=True)
        lock = self._locks.setdefault(name, FileLock(self.folder / f"{name}.lock"))
        holder = self.folder / f"{name}.json"
        try:
            _take(lock, timeout=0)
        except Timeout:
            if wait is None:
                yield False
                return
            try:
                _take(lock, timeout=0.5)  # long enough for the holder to have said who it is
            except Timeout:
                wait(_who(read_json(holder)))
                _take(lock)
        try:
            if lock.lock_counter == 1:
                with suppress(OSError):  # it only informs
                    said = {"pid": os.getpid(), "host": socket.gethostname(), "since": now()}
                    holder.write_text(json.dumps(said), encoding="ascii")
            yield True
        finally:
            lock.release()


def _take(lock: BaseFileLock, timeout: float = -1) -> None:
    """Waits for `timeout` seconds, or for as long as it takes; `UserError` where the file system has no locks.

    Newer releases of filelock would put a file in the place of the lock there. It stays when its process is killed, and the
    next one would wait for ever.
    """
    why = errno.ENOSYS
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "flock not supported")
            lock.acquire(timeout, poll_interval=0.2)
        if not isinstance(lock, SoftFileLock):
            return
        lock.release()
    except NotImplementedError:  # what older releases say
        pass
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        why = error.errno
    place = os.path.dirname(lock.lock_file)
    raise UserError(f"the file system of {place} has no locks ({os.strerror(why)}): choose another place with --store")


def shard_of(name: str, index: int | str = "*", count: int | str = "*") -> str:
    """The name of the lock that a process holds while it makes a shard of the artifact whose own lock is `name`, which it does
    not hold meanwhile. Without numbers: a pattern for all of them."""
    return f"{name}.{index}of{count}"


class Faults:
    """A context in which a full disk, or a store below `root` that cannot be written to, ends in a `UserError` of one line."""

    def __init__(self, root: Path, doing: str = "") -> None:
        self.root, self.doing = root, doing

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is None or isinstance(error, (UserError, KeyboardInterrupt, GeneratorExit)):
            return
        if disk_full(error, self.root):
            raise UserError(
                f"the disk that holds {self.root} is full{self.doing}: free some space (e.g. 'pagoda-bench artifacts gc "
                "--delete') and run the same command again; the work so far is kept"
            ) from error
        if isinstance(error, OSError) and error.filename:
            path = Path(os.fsdecode(error.filename))
            # /proc says of a folder that cannot be made that it is not there; of a file in the store this is a stage's error.
            above = self.root.is_relative_to(path) and error.errno in (*NOT_WRITABLE, errno.ENOENT)
            if above or (path.is_relative_to(self.root) and error.errno in NOT_WRITABLE):
                raise UserError(
                    f"cannot write to the artifact store: {path}: {error.strerror}; choose another place with --store or "
                    "PAGODA_BENCH_STORE"
                ) from error


def _who(holder: Any) -> str:
    try:
        return f"process {holder['pid']} on {holder['host']} (since {holder['since'][:19]}Z)"
    except (TypeError, KeyError):
        return "another process"
