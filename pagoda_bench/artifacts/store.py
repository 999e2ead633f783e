"""The artifact store: content-addressed, atomic, locked, verified.

    <root>/<kind>/<key>/                 an artifact: payload files, recipe.json, provenance.json, digests.json
    <root>/.work/<kind>-<key>/           checkpoints of a stage in progress; survives a kill
    <root>/.staging/<kind>-<key>/        an artifact being written; lands by one rename
    <root>/.locks/<kind>-<key>.lock      held by the process that makes the artifact; .json beside it says who
    <root>/.retrain/                     the marks of unfinished retrainings (see retrains.py)
    <root>/.damaged/, <root>/.trash/     moved aside; removed by `pagoda-bench artifacts gc`

Whoever holds the lock owns staging and work of that key. The lock ends with the process, so what a dead process left is
recognised by its free lock. Staging is whole once its digests.json is there: a kill between that and the rename loses
nothing, the next holder of the lock lands it.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pagoda_bench.artifacts.checkpoint import read_json, sync, sync_tree, write_json
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.artifacts.digests import ABOUT, DIGESTS, PROVENANCE, RECIPE, damage, files, write_digests
from pagoda_bench.artifacts.locks import Faults, Locks
from pagoda_bench.artifacts.provenance import ATTEMPTS, Attempt, describe
from pagoda_bench.artifacts.retrains import touch
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.registry import read_recipe

INPUTS = ".inputs.json"  # in a work folder: the digests of the inputs of what lies there, by key

Info = Mapping[str, float | str]


def default_root() -> Path:
    """$PAGODA_BENCH_STORE, else `pagoda-bench/store` in the user's cache folder."""
    if chosen := os.environ.get("PAGODA_BENCH_STORE"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pagoda-bench" / "store"


def say(line: str) -> None:
    """One line to the user, on stderr."""
    print(f"pagoda-bench: {line}", file=sys.stderr, flush=True)


@dataclass(frozen=True)
class Artifact:
    """A published artifact. Reading it trusts the folder; `Store.find` and `Store.verify` check it."""

    path: Path
    released: bool = False

    @property
    def kind(self) -> str:
        return self.path.parent.name

    @property
    def key(self) -> str:
        return self.path.name

    @property
    def name(self) -> str:
        """`kind/key`."""
        return f"{self.kind}/{self.key}"

    @cached_property
    def recipe(self) -> Recipe:
        return read_recipe(self.path / RECIPE)

    @cached_property
    def provenance(self) -> dict[str, Any]:
        """Empty when it cannot be read."""
        value = read_json(self.path / PROVENANCE)
        return value if isinstance(value, dict) else {}

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all payload files; empty when it cannot be read."""
        value = read_json(self.path / DIGESTS)
        return str(value.get("digest", "")) if isinstance(value, dict) else ""

    @property
    def lacks(self) -> str | None:
        """The first of the files of every artifact that is not there: it is damaged then."""
        return next((name for name in (*ABOUT, DIGESTS) if not (self.path / name).is_file()), None)

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(status.st_size for status in files(self.path).values())


class Store:
    """Artifacts below `root`, then those of the `released` stores, which are only read. Creates nothing until it must."""

    def __init__(self, root: Path, released: Sequence[Path] = (), notify: Callable[[str], None] = say) -> None:
        self.root = Path(root).expanduser().absolute()
        self.released = tuple(Path(path).absolute() for path in released)
        self.notify = notify
        self._locks = Locks(self.root / ".locks")
        self._checked: dict[Path, list[tuple[str, int, int, int]]] = {}  # what was seen when the digests last agreed
        self._named: set[Path] = set()

    # Finding

    def find(self, recipe: Recipe, session: str | None = None) -> Artifact | None:
        """The artifact of `recipe`, its digests checked once a process, or None.

        A damaged one is named; in the local store it is moved aside too. With `session` (of a `--retrain`) only what that
        session made counts.
        """
        local = Artifact(self.root / recipe.kind / recipe.key)
        if local.path.is_dir():
            problem = self.verify(local)
            whole = problem is None or self._set_aside(local, problem)
            if whole and (session is None or local.provenance.get("session") == session):
                return local
        for root in self.released if session is None else ():
            artifact = Artifact(root / recipe.kind / recipe.key, released=True)
            if artifact.path.is_dir():
                if (problem := self.verify(artifact)) is None:
                    return artifact
                if artifact.path not in self._named:
                    self._named.add(artifact.path)
                    self.notify(f"released artifact {artifact.path} is damaged and not used: {problem}")
        return None

    def verify(self, artifact: Artifact, again: bool = False) -> str | None:
        """What is wrong with an artifact, None when it is whole. Files whose size and time stand as they were when this
        process last found them whole are not read again, except with `again`."""
        try:
            seen = _seen(artifact.path)
        except OSError as error:
            return f"it cannot be read ({error.strerror})"
        if again or self._checked.get(artifact.path) != seen:
            problem = damage(artifact.path, artifact.key)
            if problem is not None:
                return problem
            self._checked[artifact.path] = seen
        return None

    def artifacts(self) -> Iterator[Artifact]:
        """All artifacts, local ones first, by kind and key; not verified, and of a damaged one any file may be missing."""
        for root, released in ((self.root, False), *((root, True) for root in self.released)):
            for path in sorted(root.glob("[!.]*/[!.]*")):
                if re.fullmatch("[0-9a-f]{20}", path.name) and path.is_dir():
                    yield Artifact(path, released)

    def half_made(self, recipe: Recipe) -> bool:
        """Whether an interrupted attempt left something to go on from."""
        work = self.root / ".work" / _name(recipe)
        return work.is_dir() and any(path.name not in (ATTEMPTS, INPUTS) for path in work.iterdir())

    # Making

    def open_work(self, recipe: Recipe, inputs: Mapping[str, Artifact], session: str | None) -> Path:
        """The work folder of a stage, for who holds its lock. What lies there is cleared away first where it is of no use here:
        made of inputs with other bytes, which were made again since, or outside this retraining."""
        work = self.root / ".work" / _name(recipe)
        now, before = {key: artifact.digest for key, artifact in inputs.items()}, read_json(work / INPUTS)
        if isinstance(before, dict) and before != now:
            self.notify(f"what was begun of {_label(recipe)} had other inputs: it begins anew")
            _remove(work)
        elif session is not None and work.is_dir() and (read_json(work / ATTEMPTS) or {}).get("session") != session:
            _remove(work)
        work.mkdir(parents=True, exist_ok=True)
        if not (work / INPUTS).is_file():
            write_json(work / INPUTS, now)
        return work

    @contextmanager
    def making(
        self,
        recipe: Recipe,
        *,
        data: Mapping[str, Path] | None = None,
        report: Callable[[int, int, Info], None] | None = None,
        session: str | None = None,
    ) -> Iterator[StageContext | None]:
        """Holds the lock of `recipe` while the body makes it, then publishes; yields None if it is there (perhaps made by
        another process, for which this one waited). When the body raises, nothing is published and the work is kept.

        Raises:
            UserError: an input is absent; the store cannot be written to; its disk is full.
        """
        stage = self.root / ".staging" / _name(recipe)
        with Faults(self.root, f" while making {_label(recipe)}"), self.locked(_name(recipe)):
            if (stage / DIGESTS).is_file() and damage(stage, recipe.key) is None:  # whole, but killed before it landed
                self._land(stage, self.root / recipe.kind / recipe.key)
            _remove(stage)
            if self.find(recipe, session) is not None:
                yield None
                return
            inputs = {parent.key: self.input_of(recipe, parent, session) for parent in recipe.inputs()}
            work = self.open_work(recipe, inputs, session)
            stage.mkdir(parents=True)
            attempt = Attempt(work, session)
            touch(self.root, session)

            def progress(done: int, total: int, info: Info) -> None:
                attempt.beat()
                if report is not None:
                    report(done, total, info)

            context = StageContext(stage, work, {key: a.path for key, a in inputs.items()}, data or {}, progress)
            try:
                yield context
                self._publish(recipe, stage, describe(recipe, context.facts, attempt, inputs))
            finally:
                touch(self.root, session)
                if stage.is_dir():
                    attempt.close()
                    if not (stage / DIGESTS).is_file():
                        shutil.rmtree(stage, ignore_errors=True)

    def input_of(self, recipe: Recipe, parent: Recipe, session: str | None = None) -> Artifact:
        """The artifact of an input of `recipe`; of a retraining only what it made itself, as with `find`: an older one would
        be published under its name. `UserError` when there is none."""
        if (artifact := self.find(parent, session)) is None:
            when = "yet" if session is None else "yet by this retraining"
            raise UserError(f"{_label(recipe)} needs {_label(parent)}, which is not made {when}: make that first")
        return artifact

    def _publish(self, recipe: Recipe, stage: Path, provenance: dict[str, Any]) -> None:
        payload = files(stage)
        if reserved := payload.keys() & {*ABOUT, DIGESTS}:
            raise RuntimeError(f"the stage that makes {_label(recipe)} wrote {sorted(reserved)[0]}, a name the store reserves")
        if not payload:
            raise RuntimeError(f"the stage that makes {_label(recipe)} wrote no file")
        write_json(stage / RECIPE, {**recipe.to_dict(), "key": recipe.key})
        write_json(stage / PROVENANCE, provenance)
        sync_tree(stage)
        write_digests(stage)  # atomically, and last: from here on it is whole
        final = self.root / recipe.kind / recipe.key
        self._land(stage, final)
        self._checked[final] = _seen(final)  # digested a moment ago

    def _land(self, stage: Path, final: Path) -> None:
        """Puts a whole staging folder in its place, an older artifact out of it, and drops the work that led to it."""
        _remove(self.root / ".work" / stage.name)
        final.parent.mkdir(parents=True, exist_ok=True)
        if final.exists():
            self._move(final, ".trash")
        os.rename(stage, final)
        sync(final.parent)
        sync(stage.parent)
        self._empty_trash(stage.name)

    # Faults

    def _set_aside(self, artifact: Artifact, problem: str) -> bool:
        """Names a damaged artifact and moves it to `.damaged`, unless a process that holds its lock sees to it. Returns whether
        it is whole after all: another one took its place while it was read."""
        with Faults(self.root), self.locked(f"{artifact.kind}-{artifact.key}", wait=False) as mine:
            if self.verify(artifact, again=True) is None:
                return True
            if mine and artifact.path.is_dir():
                where = self._move(artifact.path, ".damaged")
                self.notify(f"artifact {artifact.path} is damaged ({problem}): moved to {where}, it will be made again")
            return False

    # Moving and removing

    def locked(self, name: str, wait: bool = True) -> AbstractContextManager[bool]:
        """Holds the lock of `<kind>-<key>`; tells in one line for whom it waits. Without `wait`: yields whether it is held."""

        def tell(holder: str) -> None:
            self.notify(f"waiting for {holder}, which is making {'/'.join(name.rsplit('-', 1))}")

        return self._locks.held(name, tell if wait else None)

    def _move(self, path: Path, area: str) -> Path:
        folder = self.root / area
        folder.mkdir(parents=True, exist_ok=True)
        name, number = f"{path.parent.name}-{path.name}", 1
        while (target := folder / f"{name}-{number}").exists():
            number += 1
        os.rename(path, target)
        return target

    def _empty_trash(self, name: str) -> None:
        for path in (self.root / ".trash").glob(f"{name}-*"):
            shutil.rmtree(path, ignore_errors=True)

    def remove(self, artifact: Artifact) -> None:
        """Takes a local artifact out of the store, in one step for any reader."""
        name = f"{artifact.kind}-{artifact.key}"
        with Faults(self.root), self.locked(name):
            if artifact.path.is_dir():
                self._move(artifact.path, ".trash")
                self._empty_trash(name)

    def export(self, artifact: Artifact, root: Path) -> Artifact:
        """Copies a verified artifact into another store, e.g. a released one; there it appears whole or not at all."""
        if problem := self.verify(artifact):
            raise UserError(f"artifact {artifact.path} is damaged and not copied: {problem}")
        other = Store(root, notify=self.notify)
        name = f"{artifact.kind}-{artifact.key}"
        stage, final = other.root / ".staging" / name, other.root / artifact.kind / artifact.key
        with Faults(other.root), other.locked(name):
            _remove(stage)
            shutil.copytree(artifact.path, stage)
            sync_tree(stage)
            other._land(stage, final)
            with suppress(OSError):  # another export may be in it
                stage.parent.rmdir()
        return Artifact(final)


def _seen(folder: Path) -> list[tuple[str, int, int, int]]:
    return [(name, s.st_size, s.st_mtime_ns, s.st_ino) for name, s in files(folder).items()]


def _name(recipe: Recipe) -> str:
    return f"{recipe.kind}-{recipe.key}"


def _label(recipe: Recipe) -> str:
    return f"{recipe.title} ({recipe.kind}/{recipe.key})"


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
