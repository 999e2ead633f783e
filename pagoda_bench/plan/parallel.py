"""A stage that several processes make together: in shards, one after the other or side by side, or as ranks of one computation.

Shards: each process runs the recipe's `sharder(recipe, context, index, count)`, which leaves its share of the work as whole
files in the shared work folder, passes over what is there already, and returns whether anything is still missing from the
others. Who finds nothing missing runs the stage itself, which takes the shares as the checkpoints of an interrupted attempt,
and publishes under the store's lock. So there is no first and no last job, a lost shard is made by whoever looks next, and
whether the stage is done is still the artifact's to say.

Ranks: every process runs the recipe's runner. Rank 0 is the ordinary stage. The others see the same inputs and work folder,
from which they may read; what they write as a payload is thrown away.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pagoda_bench.artifacts.checkpoint import read_json, write_json
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.artifacts.locks import Faults, shard_of
from pagoda_bench.artifacts.provenance import ATTEMPTS, Attempt
from pagoda_bench.artifacts.retrains import touch
from pagoda_bench.artifacts.store import Artifact, Store
from pagoda_bench.errors import UserError
from pagoda_bench.plan.inline import load_function, load_runner, run_stage
from pagoda_bench.plan.progress import Info, Reporter, reporter
from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.registry import read_recipe


def read_shard(text: str) -> tuple[int, int]:
    """ "3/8" as (3, 8): shard 3 of 8, counted from 0."""
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match or not int(match[1]) < int(match[2]):
        raise UserError(f"--shard {text}: write I/N with I from 0 to N - 1, e.g. 0/4")
    return int(match[1]), int(match[2])


def run_shard(
    path: Path,
    store: Store,
    shard: tuple[int, int],
    *,
    data: Mapping[str, Path] | None = None,
    session: str | None = None,
    report: Reporter | None = None,
) -> Artifact | None:
    """Makes shard i of n of the stage whose recipe is in the file `path`, and the artifact if nothing is missing then; returns
    it if it is there.

    Raises:
        UserError: such a stage is not made in shards; as for `run_stage`.
    """
    recipe = read_recipe(path)
    check_shards(recipe)
    report = report or reporter()
    notify, store.notify = store.notify, report.say
    try:
        whole = _share(recipe, store, shard, data, session, report)
    finally:
        store.notify = notify
        report.close()
    return run_stage(path, store, data=data, session=session) if whole else None


def check_shards(recipe: Recipe) -> None:
    """Refuses a stage that cannot be made in shards."""
    if not recipe.sharder:
        raise UserError(f"a stage of kind '{recipe.kind}' is not made in shards: leave 'shards' out of its request")


def _share(
    recipe: Recipe, store: Store, shard: tuple[int, int], data: Mapping[str, Path] | None, session: str | None, report: Reporter
) -> bool:
    """Whether the stage can be published: nothing is missing, or it is there already."""
    if store.find(recipe, session) is not None:
        return True
    name = f"{recipe.kind}-{recipe.key}"
    own = f".shard-{shard[0]}-{shard[1]}"
    inputs = {parent.key: store.input_of(recipe, parent, session) for parent in recipe.inputs()}
    sharder = load_function(recipe, recipe.sharder)
    # Of the shard's own lock gc sees that somebody works here; it is taken first, since the other is taken again at the end.
    with Faults(store.root, f" while making {recipe.title}"), store.locked(shard_of(name, *shard)):
        with store.locked(name):  # while another process makes the whole, there is nothing to share
            if store.find(recipe, session) is not None:
                return True
            work = store.open_work(recipe, inputs, session)
            (work / own).mkdir(exist_ok=True)
            if not (work / ATTEMPTS).exists():
                write_json(work / ATTEMPTS, {"session": session, "attempts": []})
        attempt = Attempt(work / own, session)
        touch(store.root, session)
        report.start(recipe, 1, 1)

        def progress(done: int, total: int, info: Info) -> None:
            attempt.beat()
            report.progress(done, total, info)

        folders = {key: artifact.path for key, artifact in inputs.items()}
        context = StageContext(work / own, work, folders, dict(data or {}), progress)
        try:
            whole = bool(sharder(recipe, context, *shard))
        except FileNotFoundError:
            if store.find(recipe, session) is None:
                raise
            return True  # somebody made the whole meanwhile, and took the work folder away
        finally:
            attempt.close()
            touch(store.root, session)
        with store.locked(name):
            _keep_time(work, own, session)
    report.say(f"shard {shard[0]} of {shard[1]} of {recipe.title} is there{'' if whole else '; others are not yet'}")
    return whole


def _keep_time(work: Path, own: str, session: str | None) -> None:
    """Adds the attempts at a shard to those at the stage, which its provenance counts."""
    if (mine := read_json(work / own / ATTEMPTS)) is None:
        return
    before: dict[str, Any] = read_json(work / ATTEMPTS) or {"attempts": []}
    write_json(work / ATTEMPTS, {"session": session, "attempts": [*before["attempts"], *mine["attempts"]]})
    shutil.rmtree(work / own, ignore_errors=True)


def run_rank(
    path: Path, store: Store, *, data: Mapping[str, Path] | None = None, session: str | None = None
) -> Artifact | None:
    """What a process other than the first one runs of a stage in several processes; returns the artifact if it is there."""
    recipe = read_recipe(path)
    if not recipe.distributed:
        raise UserError(f"a stage of kind '{recipe.kind}' is made by one process: ask for one task on one node")
    if (artifact := store.find(recipe, session)) is not None:
        return artifact
    work = store.root / ".work" / f"{recipe.kind}-{recipe.key}"
    with tempfile.TemporaryDirectory(prefix="pagoda-bench-rank-") as out, Faults(store.root):
        load_runner(recipe)(recipe, StageContext(Path(out), work, _inputs(recipe, store, session), dict(data or {})))
    return store.find(recipe, session)


def _inputs(recipe: Recipe, store: Store, session: str | None) -> dict[str, Path]:
    return {parent.key: store.input_of(recipe, parent, session).path for parent in recipe.inputs()}
