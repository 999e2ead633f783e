"""A large array on disk in pieces of a fixed number of rows, which any number of processes write in any order.

A shard is `<number>.npy` with a note beside it, `<number>.json`, that holds its SHA-256 and the identity of what it was made
from. Both appear atomically, the note last: a shard without a fitting note is made again, whatever ended the process that
was at it. A lock keeps two processes from making the same shard. When all are there, `Writer.publish` puts them, as links
where the file system has them, into another folder with `index.json`, from which `Sharded` reads without loading.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from pagoda_bench.artifacts.checkpoint import read_json, save_atomic, write_json
from pagoda_bench.artifacts.digests import sha256
from pagoda_bench.errors import UserError

INDEX = "index.json"
FORMAT = 1
HEADER = 128  # bytes before the values of a .npy file with a short header, as numpy writes it
REPAIRS = 3

Make = Callable[[int, int], NDArray[Any]]
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Layout:
    """`rows` rows of `shape` and `dtype` (a NumPy name), `shard` of them in a file; the last one may hold fewer."""

    rows: int
    shape: tuple[int, ...]
    dtype: str
    shard: int

    @property
    def count(self) -> int:
        return -(-self.rows // self.shard)

    @property
    def bytes(self) -> int:
        """Of all values."""
        return self.rows * self.row_bytes

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape) * np.dtype(self.dtype).itemsize

    def bounds(self, number: int) -> tuple[int, int]:
        """First row of a shard, and the one after its last."""
        return number * self.shard, min((number + 1) * self.shard, self.rows)


class Writer:
    """The shards of one array in a folder of work. `identity` says what they are made from: shards that were made from
    something else do not count."""

    def __init__(self, folder: Path, layout: Layout, identity: str) -> None:
        self.folder, self.layout, self.identity = folder, layout, identity
        folder.mkdir(parents=True, exist_ok=True)

    def missing(self) -> list[int]:
        return [number for number in range(self.layout.count) if not self.has(number)]

    def run(self, make: Make, *, part: tuple[int, int] = (0, 1), wait: bool = True, progress: Progress | None = None) -> int:
        """Makes what is missing, `make(start, stop)` giving these rows; returns how many shards this process made.

        `part` = (i, n) says with which shard to begin, so that n processes seldom meet. With `wait`, shards that others are
        making are waited for, and made here should the others die; without, they are left to them.
        """
        first = part[0] * self.layout.count // part[1]
        made, held = 0, []
        for number in [*range(first, self.layout.count), *range(first)]:
            taken = self.make(number, make, timeout=0.0)
            made += taken is True
            if taken is None:
                held.append(number)
            elif progress is not None:
                progress(self.layout.count - len(self.missing()) if taken else number + 1, self.layout.count)
        for number in held if wait else []:
            made += self.make(number, make, timeout=-1.0) is True
        return made

    def damaged(self) -> list[int]:
        """Reads every shard; those whose values are not as they were written, by number. They then count as missing."""
        found = []
        for number in range(self.layout.count):
            note = read_json(self._path(number, "json"))
            if not self.has(number) or sha256(self._path(number, "npy")) != note["sha256"]:
                self._path(number, "json").unlink(missing_ok=True)
                found.append(number)
        return found

    def finish(self, make: Make, *, progress: Progress | None = None) -> None:
        """`run` until every shard is there and whole. `UserError` when a disk keeps returning other values."""
        for _ in range(REPAIRS):
            self.run(make, progress=progress)
            if not (bad := self.damaged()):
                return
        raise UserError(f"{self._path(bad[0], 'npy')} does not keep what is written to it: use another disk")

    def publish(self, out: Path, about: Mapping[str, Any]) -> None:
        """All shards and `index.json`, with `about` in it, into the folder `out`. The work folder stays as it is."""
        out.mkdir(parents=True, exist_ok=True)
        listed = []
        for number in range(self.layout.count):
            name = self._path(number, "npy").name
            _link(self._path(number, "npy"), out / name)
            listed.append({"file": name, "sha256": read_json(self._path(number, "json"))["sha256"]})
        layout = {
            "rows": self.layout.rows,
            "shape": list(self.layout.shape),
            "dtype": self.layout.dtype,
            "shard": self.layout.shard,
        }
        write_json(out / INDEX, {"format": FORMAT, **layout, "about": dict(about), "shards": listed})

    def make(self, number: int, make: Make, timeout: float = -1.0) -> bool | None:
        """One shard. True: made here. False: it was there. None: another process was at it for `timeout` seconds (-1: for
        ever)."""
        if self.has(number):
            return False
        lock = FileLock(self._path(number, "lock"))
        try:
            lock.acquire(timeout=timeout, poll_interval=0.2)
        except Timeout:
            return None
        try:
            if self.has(number):
                return False
            start, stop = self.layout.bounds(number)
            rows = np.ascontiguousarray(make(start, stop), dtype=self.layout.dtype)
            if rows.shape != (stop - start, *self.layout.shape):
                raise ValueError(f"shard {number} should be {(stop - start, *self.layout.shape)}, not {rows.shape}")
            path = self._path(number, "npy")
            save_atomic(path, partial(_save, rows))
            write_json(self._path(number, "json"), {"identity": self.identity, "sha256": sha256(path)})
            return True
        finally:
            lock.release()

    def has(self, number: int) -> bool:
        """Whether the shard is made, by the looks of its note and its size; `damaged` reads it."""
        note = read_json(self._path(number, "json"))
        if not isinstance(note, dict) or note.get("identity") != self.identity:
            return False
        start, stop = self.layout.bounds(number)
        try:
            return self._path(number, "npy").stat().st_size == HEADER + (stop - start) * self.layout.row_bytes
        except OSError:
            return False

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f"{number:05d}.{suffix}"


class Sharded:
    """What `Writer.publish` wrote: `array[rows]` gathers rows by number, in any order, reading only those.

    Raises:
        UserError: no whole index, a shard that is missing or cut short, or a row that is not there.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        index = read_json(folder / INDEX)
        try:
            self.layout = Layout(int(index["rows"]), tuple(index["shape"]), str(index["dtype"]), int(index["shard"]))
            self.about: dict[str, Any] = dict(index["about"])
            self._shards = [(str(shard["file"]), str(shard["sha256"])) for shard in index["shards"]]
            known = index["format"] == FORMAT and len(self._shards) == self.layout.count
        except (TypeError, KeyError, ValueError):
            known = False
        if not known:
            raise UserError(f"{folder / INDEX} is missing, damaged or of another release: make the shards again")
        for number, (name, _) in enumerate(self._shards):
            start, stop = self.layout.bounds(number)
            path = folder / name
            if not path.is_file() or path.stat().st_size != HEADER + (stop - start) * self.layout.row_bytes:
                raise UserError(f"{path} is missing or cut short: make the shards again, or copy them whole")
        self._open: dict[int, NDArray[Any]] = {}

    def __len__(self) -> int:
        return self.layout.rows

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """(N,) row numbers to (N, *shape), a copy in memory."""
        rows = np.asarray(rows, np.int64)
        if len(rows) and not 0 <= rows.min() <= rows.max() < len(self):
            raise UserError(
                f"{self.folder} has {len(self)} rows, not a row {int(rows.max() if rows.min() >= 0 else rows.min())}"
            )
        out = np.empty((len(rows), *self.layout.shape), self.layout.dtype)
        shards = rows // self.layout.shard
        for number in np.unique(shards).tolist():
            here = np.flatnonzero(shards == number)
            here = here[np.argsort(rows[here], kind="stable")]  # the file is read forwards
            out[here] = self._shard(number)[rows[here] - number * self.layout.shard]
        return out

    def verify(self) -> list[str]:
        """The names of shards whose SHA-256 is not the index's; reads everything."""
        return [name for name, digest in self._shards if sha256(self.folder / name) != digest]

    def _shard(self, number: int) -> NDArray[Any]:
        if number not in self._open:
            self._open[number] = np.load(self.folder / self._shards[number][0], mmap_mode="r")
        return self._open[number]


def identity_of(**facts: Any) -> str:
    """One digest of JSON values that determine the content of shards."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _save(rows: NDArray[Any], path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, rows)


def _link(path: Path, to: Path) -> None:
    to.unlink(missing_ok=True)
    try:
        os.link(path, to)
    except OSError:  # another file system, or one without links
        shutil.copyfile(path, to)
