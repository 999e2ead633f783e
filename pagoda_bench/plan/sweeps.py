"""A sweep: one plan handed to a launcher, and the folder that remembers it.

    <store>/.sweeps/<name>/
        sweep.json         what was asked for: targets, executor, place of the data, code, cluster profile
        tasks.json         every stage: key, kind, title, level, inputs
        recipes/<key>.json
        submissions/<n>.json   which job makes which key; <n>/ is submitit's folder for it
        events/<key>.jsonl     starts and ends of attempts, appended by the process that made them
        events/.reserve        space on the disk: given back when it is full, so that the events can still say so
        logs/<key>.log         what the stage printed, all attempts in one file; of a part: logs/<key>.<part>.log

The folder informs; whether a stage is done is for the store to say.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from pagoda_bench.artifacts.checkpoint import FULL, read_json, write_json
from pagoda_bench.artifacts.locks import Faults
from pagoda_bench.artifacts.provenance import now
from pagoda_bench.artifacts.store import Store
from pagoda_bench.errors import UserError, nearest
from pagoda_bench.plan.dag import Plan
from pagoda_bench.plan.processes import user
from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.registry import read_recipe

AREA = ".sweeps"
CLOSED, RESERVE = "closed", ".reserve"
RESERVED_BYTES = 2**15


@dataclass(frozen=True)
class Task:
    """One stage of a sweep. `level`: 0 for those whose inputs were all there; else one above the highest it waits for.
    `needs`: keys of those inputs that the sweep makes too."""

    key: str
    kind: str
    title: str
    level: int
    needs: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.kind}/{self.key}"


@dataclass(frozen=True)
class Job:
    """One call of sbatch. `id` is that of the whole array; element i makes `keys[i]`. A key in shards has several elements."""

    id: str
    array: bool
    keys: tuple[str, ...]
    folder: str  # submitit's, relative to the sweep's
    user: str = ""  # who submitted it; empty: who made the sweep

    def element(self, index: int) -> str:
        return f"{self.id}_{index}" if self.array else self.id


def tasks_of(plan: Plan) -> list[Task]:
    """What `plan` has to make, inputs before what needs them."""
    tasks: dict[str, Task] = {}
    for recipe in plan.to_make:
        needs = tuple(parent.key for parent in recipe.inputs() if parent.key in tasks)
        level = 1 + max((tasks[key].level for key in needs), default=-1)
        tasks[recipe.key] = Task(recipe.key, recipe.kind, recipe.title, level, needs)
    return list(tasks.values())


class Sweep:
    """A sweep's folder. Reading is cached; make a new object to see what others changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def create(cls, plan: Plan, name: str, *, executor: str, data: Mapping[str, Path], **about: Any) -> Sweep:
        """Writes down `plan`. `about` goes into sweep.json as it is."""
        root = plan.store.root / AREA
        stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
        folder = root / f"{re.sub(r'[^A-Za-z0-9_.-]+', '-', name).strip('.-') or 'sweep'}-{stamp}-{secrets.token_hex(2)}"
        with Faults(plan.store.root):
            for part in ("recipes", "events", "logs", "submissions"):
                (folder / part).mkdir(parents=True)
            wanted = plan.to_make
            for recipe in wanted:
                _plain_write(folder / "recipes" / f"{recipe.key}.json", {**recipe.to_dict(), "key": recipe.key})
            write_json(folder / "tasks.json", [asdict(task) for task in tasks_of(plan)])
            said = {
                "name": folder.name,
                "executor": executor,
                "created": now(),
                "user": user(),
                "host": socket.gethostname(),
                "pid": os.getpid(),
                "store": str(plan.store.root),
                "data": {digest: str(path) for digest, path in data.items()},
                "session": plan.session,
                "targets": [target.key for target in plan.targets],
            }
            write_json(folder / "sweep.json", {**said, **about})
            made = cls(folder)
            made.reserve()
        return made

    @property
    def name(self) -> str:
        return self.folder.name

    @cached_property
    def about(self) -> dict[str, Any]:
        value = read_json(self.folder / "sweep.json")
        if not isinstance(value, dict):
            raise UserError(
                f"{self.folder} holds no readable sweep.json: it was interrupted while it was made; submit it again"
            )
        return value

    @cached_property
    def tasks(self) -> dict[str, Task]:
        value = read_json(self.folder / "tasks.json")
        if not isinstance(value, list):
            raise UserError(f"{self.folder} holds no readable tasks.json: remove that folder and submit it again")
        return {t["key"]: Task(t["key"], t["kind"], t["title"], t["level"], tuple(t["needs"])) for t in value}

    def recipe(self, key: str) -> Recipe:
        return read_recipe(self.recipe_path(key))

    def recipe_path(self, key: str) -> Path:
        return self.folder / "recipes" / f"{key}.json"

    def log(self, key: str, part: str = "") -> Path:
        return self.folder / "logs" / (f"{key}.{part}.log" if part else f"{key}.log")

    def logs(self, key: str) -> list[Path]:
        """All that are there, those of a shard or of a process of several too; the one written last comes last."""
        found = [*self.folder.glob(f"logs/{key}.log"), *self.folder.glob(f"logs/{key}.*.log")]
        return sorted(found, key=lambda path: path.stat().st_mtime_ns)

    # Jobs

    @property
    def jobs(self) -> list[Job]:
        """All calls of sbatch so far, oldest first."""
        found = []
        for path in sorted((self.folder / "submissions").glob("*.json")):
            value = read_json(path)
            if isinstance(value, dict):
                found.append(Job(value["id"], value["array"], tuple(value["keys"]), value["folder"], value.get("user", "")))
        return found

    @property
    def users(self) -> set[str]:
        """Whose jobs make it: others may have resumed it."""
        return {self.about["user"], *(job.user for job in self.jobs if job.user)}

    def elements(self) -> dict[str, tuple[str, ...]]:
        """The newest jobs of each key that was submitted, elements of arrays as `<array>_<index>`: one, or one a shard."""
        found: dict[str, tuple[str, ...]] = {}
        for job in self.jobs:
            here: dict[str, list[str]] = {}
            for i, key in enumerate(job.keys):
                here.setdefault(key, []).append(job.element(i))
            found |= {key: tuple(ids) for key, ids in here.items()}
        return found

    def job_ids(self) -> dict[str, str]:
        """The first of the `elements` of each key."""
        return {key: ids[0] for key, ids in self.elements().items()}

    @property
    def borrowed(self) -> dict[str, tuple[tuple[str, ...], str]]:
        """Key -> (jobs, their user) for stages that another sweep had in the queue when this one was last submitted."""
        value = read_json(self.folder / "borrowed.json") or {}
        return {key: (tuple(jobs), user) for key, (jobs, user) in value.items()}

    def borrow(self, jobs: Mapping[str, tuple[tuple[str, ...], str]], own: Iterable[str] = ()) -> None:
        """Notes `jobs` of other sweeps; the keys in `own` are this one's to make again."""
        before = self.borrowed
        if (after := {**{key: of for key, of in before.items() if key not in set(own)}, **jobs}) != before:
            write_json(self.folder / "borrowed.json", after)

    def next_submission(self) -> Path:
        """A new, empty folder for submitit: ids of jobs may come again, its files must not be met again."""
        with Faults(self.folder):
            number = len(list((self.folder / "submissions").glob("*/"))) + 1
            while True:
                folder = self.folder / "submissions" / f"{number:04d}"
                try:
                    folder.mkdir()
                    return folder
                except FileExistsError:
                    number += 1

    def add_job(self, job: Job) -> None:
        write_json(self.folder / f"{job.folder}.json", asdict(job))

    # Events

    def event(self, key: str, event: str, **facts: Any) -> None:
        """Appends one line to the key's events: short, so that two writers do not mix. On a full disk the reserve is given
        up for it; where that does not help, the line goes to the job's own log."""
        line = json.dumps({"event": event, "time": time.time(), **facts}) + "\n"
        path = self.folder / "events" / f"{key}.jsonl"
        for last in (False, True):
            try:
                with path.open("a", encoding="ascii") as file:
                    file.write(line)
                return
            except OSError as error:
                if error.errno not in FULL:
                    raise
                (self.folder / "events" / RESERVE).unlink(missing_ok=True)
                if last:
                    print(f"pagoda-bench: {key}: {line}", end="", flush=True)
                line = f"\n{line}"  # a part of it may be there

    def reserve(self) -> None:
        """Keeps a little space for the events; random bytes, which no file system can leave out."""
        path = self.folder / "events" / RESERVE
        if not path.exists():
            path.write_bytes(os.urandom(RESERVED_BYTES))

    def events(self, key: str) -> list[dict[str, Any]]:
        """What happened to a key, oldest first; a line that a full disk cut off does not count."""
        try:
            lines = (self.folder / "events" / f"{key}.jsonl").read_text(encoding="ascii").splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            try:
                value = json.loads(line)
            except ValueError:
                continue
            found.append(value)
        return found

    # The end

    @property
    def closed(self) -> bool:
        """Whether all of it was seen done: nobody needs to ask the scheduler for it again."""
        return (self.folder / CLOSED).exists()

    def close(self) -> None:
        (self.folder / CLOSED).touch()

    def dependants(self, keys: Iterable[str]) -> list[str]:
        """`keys` and all that needs them, directly or not, in order."""
        chosen = set(keys)
        for task in self.tasks.values():  # inputs come first
            if chosen & set(task.needs):
                chosen.add(task.key)
        return [key for key in self.tasks if key in chosen]

    def upstream(self, keys: Iterable[str]) -> list[str]:
        """`keys` and all of this sweep that they need, directly or not, in order."""
        chosen = set(keys) & set(self.tasks)
        for task in reversed(self.tasks.values()):  # what needs inputs comes after them
            if task.key in chosen:
                chosen.update(task.needs)
        return [key for key in self.tasks if key in chosen]

    def pick(self, texts: Sequence[str]) -> list[str]:
        """The keys that `[KIND/]KEY`s, or the first digits of keys, mean."""
        found = []
        for text in texts:
            kind, _, digits = text.rpartition("/")
            hits = [t.key for t in self.tasks.values() if t.key.startswith(digits) and kind in ("", t.kind)]
            if len(hits) != 1:
                what = "no stage" if not hits else f"{len(hits)} stages"
                raise UserError(f"'{text}' means {what} of {self.name}: 'pagoda-bench status {self.name} --tasks' lists them")
            found += hits
        return found


def sweeps(store: Store) -> list[Sweep]:
    """All sweeps of a store, oldest first; those whose sweep.json says nothing are named and passed over."""
    there = {path.parent: read_json(path) for path in (store.root / AREA).glob("*/sweep.json")}
    if lost := sorted(folder.name for folder, about in there.items() if not isinstance(about, dict) or "session" not in about):
        store.notify(f"passed over, since there is no readable sweep.json: {', '.join(lost)} in {store.root / AREA}")
    found = [Sweep(folder) for folder in there if folder.name not in lost]
    return sorted(found, key=lambda s: (s.folder / "sweep.json").stat().st_mtime_ns)


def find_sweep(store: Store, name: str | None) -> Sweep:
    """The sweep of that name, or whose name begins so; None: the newest."""
    there = sweeps(store)
    if not there:
        raise UserError(f"no sweep in {store.root}: 'pagoda-bench sweep' and 'reproduce --executor slurm' make one")
    if name is None:
        return there[-1]
    hits = [s for s in there if s.name == name] or [s for s in there if s.name.startswith(name)]
    if len(hits) > 1:
        raise UserError(f"'{name}' means {len(hits)} sweeps ({', '.join(s.name for s in hits[-4:])}): write more of the name")
    if not hits:
        raise UserError(f"unknown sweep '{name}'" + nearest(name, [s.name for s in there[-20:]]))
    return hits[0]


def _plain_write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, sort_keys=True), encoding="ascii")
