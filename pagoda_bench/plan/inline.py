"""The inline launcher: runs a plan in this process, stage after stage."""

from __future__ import annotations

import importlib
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.artifacts.store import Artifact, Store
from pagoda_bench.errors import UserError
from pagoda_bench.plan.dag import Plan
from pagoda_bench.plan.progress import Reporter, reporter
from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.registry import read_recipe

Runner = Callable[[Recipe, StageContext], None]


@dataclass(frozen=True)
class Outcome:
    """How a plan ended: the artifacts that are there now, and why others are not, both by key of their recipe."""

    artifacts: dict[str, Artifact] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def run_plan(
    plan: Plan,
    *,
    data: Mapping[str, Path] | None = None,
    keep_going: bool = False,
    report: Reporter | None = None,
) -> Outcome:
    """Makes what is to make. `data` maps the digest of images, or "*" for any, to their place.

    Raises:
        UserError: a stage failed. With `keep_going` the failure is noted instead, for the stage and for all that needs it,
            and the rest is made; so it is where a stage has a fault of its own, whose traceback is shown.
    """
    with plan.running():
        outcome = _run(plan, data, keep_going, report or reporter())
        if not outcome.failures:
            plan.end()
        return outcome


def _run(plan: Plan, data: Mapping[str, Path] | None, keep_going: bool, report: Reporter) -> Outcome:
    store, outcome = plan.store, Outcome()
    for key, node in plan.nodes.items():
        if node.state != "to make" and (artifact := store.find(node.recipe, plan.session)):
            outcome.artifacts[key] = artifact
    wanted = plan.to_make
    notify, store.notify = store.notify, report.say
    try:
        for number, recipe in enumerate(wanted, 1):
            report.start(recipe, number, len(wanted))
            try:
                for parent in recipe.inputs():
                    if parent.key in outcome.failures:
                        raise UserError(f"it needs {parent.title} ({parent.key[:8]}), which failed")
                with _faults(report) if keep_going else nullcontext():
                    outcome.artifacts[recipe.key] = _make(recipe, store, data, report, plan.session)
            except UserError as error:
                if not keep_going:
                    raise UserError(f"{recipe.title} ({recipe.kind}/{recipe.key}): {error}") from error
                outcome.failures[recipe.key] = str(error)
                report.fail(recipe, str(error))
    finally:
        store.notify = notify
        report.close()
    return outcome


@contextmanager
def _faults(report: Reporter) -> Iterator[None]:
    """A fault of a stage is shown with its traceback and goes on as a `UserError`: it is no reason to lose the other rows."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        report.say(traceback.format_exc().rstrip())
        raise UserError(" ".join(f"{type(error).__name__}: {error}".split())) from error


def run_stage(
    path: Path,
    store: Store,
    *,
    data: Mapping[str, Path] | None = None,
    session: str | None = None,
    report: Reporter | None = None,
) -> Artifact:
    """Makes the one artifact whose recipe is in the JSON file `path`; its inputs must be there. What a launcher runs on
    another machine, and what can be run by hand. `session` is that of a retraining (`Plan.session`)."""
    recipe = read_recipe(path)
    report = report or reporter()
    notify, store.notify = store.notify, report.say
    try:
        if artifact := store.find(recipe, session):
            return artifact
        report.start(recipe, 1, 1)
        return _make(recipe, store, data, report, session)
    finally:
        store.notify = notify
        report.close()


def _make(recipe: Recipe, store: Store, data: Mapping[str, Path] | None, report: Reporter, session: str | None) -> Artifact:
    start = time.monotonic()
    with store.making(recipe, data=data, report=report.progress, session=session) as context:
        if context is not None:
            load_runner(recipe)(recipe, context)
    report.finish(recipe, time.monotonic() - start, made=context is not None)
    artifact = store.find(recipe, session)
    if artifact is None:
        raise UserError(f"{recipe.kind}/{recipe.key} was made but is gone again: is another program clearing {store.root}?")
    return artifact


def load_runner(recipe: Recipe) -> Runner:
    """The function that `recipe.runner` names as "module:function"."""
    runner: Runner = load_function(recipe, recipe.runner)
    return runner


def load_function(recipe: Recipe, name: str) -> Any:
    """The function called `name`, "module:function", that has to do with `recipe`."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except ModuleNotFoundError as error:
        raise UserError(f"recipe '{recipe.kind}' needs the Python module '{error.name}', which is not installed") from error
    except AttributeError as error:
        raise UserError(f"recipe '{recipe.kind}' names the runner '{name}', which is not there") from error
