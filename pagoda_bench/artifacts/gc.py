"""What may be removed from a store: what dead processes left, what is damaged, and what is not wanted any more."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pagoda_bench.artifacts.checkpoint import sync
from pagoda_bench.artifacts.digests import damage
from pagoda_bench.artifacts.locks import Faults, shard_of
from pagoda_bench.artifacts.retrains import AREA, lock_of, session_of
from pagoda_bench.artifacts.store import Artifact, Store
from pagoda_bench.recipes.base import Recipe, walk


@dataclass(frozen=True)
class Garbage:
    """A file or folder that may go, why, and its size in bytes."""

    path: Path
    why: str
    size: int


def garbage(
    store: Store,
    older_than: float,
    keep: Collection[Recipe] | None = None,
    living: Collection[str] = (),
    queued: Collection[str] = (),
) -> list[Garbage]:
    """What may go from the local store. Nothing that a living process is making is ever in it, nor is the work of a stage that
    is `queued` (`<kind>-<key>`), nor the mark of a retraining that a process runs, or whose session is among the `living`
    (those that wait in a queue).

    - half-written artifacts of dead processes, artifacts that are damaged (moved aside, or without one of the files that
      every artifact has) and the trash: always;
    - interrupted work, and the marks of interrupted `--retrain` runs: untouched for `older_than` seconds;
    - artifacts: only with `keep`, and then those untouched for `older_than` seconds that are neither kept nor upstream of
      a kept one.
    """
    found = [*_leftovers(store, older_than, queued), *_marks(store, older_than, living)]
    wanted = {(r.kind, r.key) for kept in keep or () for r in walk(kept)}
    for artifact in store.artifacts():
        if artifact.released:
            continue
        if (lacking := artifact.lacks) is not None:
            if _free(store, f"{artifact.kind}-{artifact.key}"):
                found.append(Garbage(artifact.path, f"damaged artifact ({lacking} is missing)", _size(artifact.path)))
        elif keep is not None and (artifact.kind, artifact.key) not in wanted and _idle(artifact.path) >= older_than:
            found.append(Garbage(artifact.path, "artifact that is not kept", _size(artifact.path)))
    return found


def remove(store: Store, items: Collection[Garbage]) -> int:
    """Removes what `garbage` found and no process has taken up since; returns the bytes that this freed."""
    freed = 0
    with Faults(store.root):
        for item in items:
            if item.path.parent.name == AREA:
                if _runs(store, item.path):
                    continue
                item.path.unlink(missing_ok=True)
            elif item.path.parent.parent == store.root and not item.path.parent.name.startswith("."):
                store.remove(Artifact(item.path))
            elif item.path.parent.name in (".work", ".staging"):
                with store.locked(item.path.name, wait=False) as mine:  # a shard begins under this lock too
                    if not (mine and _shards_free(store, item.path.name)):
                        continue
                    if not _remove(item.path):
                        continue
            elif not _remove(item.path):
                continue
            freed += item.size
            if item.path.parent.is_dir():
                sync(item.path.parent)
    return freed


def _leftovers(store: Store, older_than: float, queued: Collection[str]) -> Iterator[Garbage]:
    for area, why in ((".damaged", "damaged artifact"), (".trash", "artifact replaced or removed")):
        for path in sorted((store.root / area).glob("*")):
            yield Garbage(path, why, _size(path))
    for path in sorted((store.root / ".staging").glob("*")):
        if _free(store, path.name) and damage(path, path.name.rpartition("-")[2]) is not None:  # a whole one will land
            yield Garbage(path, "artifact half written by a process that is gone", _size(path))
    for path in sorted((store.root / ".work").glob("*")):
        if path.name not in queued and _idle(path) >= older_than and _free(store, path.name) and _shards_free(store, path.name):
            yield Garbage(path, "interrupted work", _size(path))


def _marks(store: Store, older_than: float, living: Collection[str]) -> Iterator[Garbage]:
    for path in sorted((store.root / AREA).glob("*")):
        if _idle(path) >= older_than and session_of(path) not in living and not _runs(store, path):
            yield Garbage(path, "mark of an interrupted --retrain", _size(path))


def _runs(store: Store, mark: Path) -> bool:
    """Whether a process runs the retraining of that mark."""
    session = session_of(mark)
    return session is not None and not _free(store, lock_of(session))


def _free(store: Store, name: str) -> bool:
    with store.locked(name, wait=False) as mine:
        return mine


def _shards_free(store: Store, name: str) -> bool:
    """Whether no process makes a shard of what is called so."""
    return all(_free(store, path.stem) for path in (store.root / ".locks").glob(f"{shard_of(name)}.lock"))


def _remove(path: Path) -> bool:
    """Whether it was there to remove: others land, publish and clear meanwhile."""
    try:
        shutil.rmtree(path)
    except FileNotFoundError:
        return False
    return True


def _size(path: Path) -> int:
    return sum(status.st_size for status in _files(path))


def _idle(path: Path) -> float:
    """Seconds since the newest change in a file or folder."""
    return time.time() - max((status.st_mtime for status in _files(path, itself=True)), default=time.time())


def _files(path: Path, itself: bool = False) -> Iterator[os.stat_result]:
    """Of what goes while it is looked at (a process at work renames its files) nothing is said."""
    if itself or not path.is_dir():
        with suppress(FileNotFoundError):
            yield path.lstat()
    for directory, _, names in os.walk(path):
        for name in names:
            with suppress(FileNotFoundError):
                yield Path(directory, name).lstat()
