"""`pagoda-bench status`, `logs` and `collect`: how a sweep stands, what its stages print, what came of it."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagoda_bench.cli.common import Folder, echo_columns, echo_json, json_option, open_store, store_option
from pagoda_bench.errors import UserError

if TYPE_CHECKING:
    from pagoda_bench.plan.axes import Point, SweepSpec
    from pagoda_bench.plan.sweeps import Sweep
    from pagoda_bench.plan.watch import Overview, Standing
    from pagoda_bench.tables.spec import Table

SHOWN = 30
sweep_argument = click.argument("name", metavar="[SWEEP]", required=False)


@click.command(
    epilog="""\b
Examples:
  pagoda-bench status                          the newest sweep
  pagoda-bench status table1 --watch           live, until it is over
  pagoda-bench status table1 --wait --quiet    say nothing, end when it is over: 0 all done, 1 something failed
  pagoda-bench status table1 --json | jq .counts
  pagoda-bench status --all                    every sweep of this store
"""
)
@sweep_argument
@click.option("--all", "every", is_flag=True, help="A line for every sweep of the store.")
@click.option("--tasks", "all_tasks", is_flag=True, help="A line for every stage, the done ones too.")
@click.option("--watch", is_flag=True, help="Show it anew until it is over.")
@click.option("--wait", is_flag=True, help="Return only when it is over.")
@click.option(
    "--every", "interval", type=click.FloatRange(min=0.2), default=15, show_default=True, help="Seconds between looks."
)
@click.option("--quiet", is_flag=True, help="Print nothing.")
@store_option
@json_option
def status(
    name: str | None,
    every: bool,
    all_tasks: bool,
    watch: bool,
    wait: bool,
    interval: float,
    quiet: bool,
    store_path: Path | None,
    as_json: bool,
) -> int:
    """Show how SWEEP stands (the first letters of its name; by default the newest).

    A stage is done when its artifact is there. Each look costs the scheduler one query. The exit code is 1 when the sweep is
    over and something failed.
    """
    from pagoda_bench.plan.sweeps import find_sweep, sweeps
    from pagoda_bench.plan.watch import overview

    store = open_store(store_path)
    if every:
        shown = [overview(sweep, store) for sweep in sweeps(store)]
        if as_json:
            echo_json([{key: value for key, value in o.to_dict().items() if key != "tasks"} for o in shown])
        elif shown:
            echo_columns([(o.sweep, o.executor, _counts(o)) for o in shown])
        return 0
    sweep = find_sweep(store, name)
    while True:
        found = overview(sweep, store)
        last = found.over or not (watch or wait)
        if not quiet and (watch or last):
            if watch and sys.stdout.isatty():
                click.clear()
            if as_json:
                echo_json({**found.to_dict(), **({"gpu_hours_by_system": by_system(sweep, found)} if found.gpu_hours else {})})
            else:
                _show(found, all_tasks)
        if last:
            return int(found.over and found.counts["done"] < len(found.tasks))
        time.sleep(interval)


def _counts(found: Overview) -> str:
    return ", ".join(f"{count} {state}" for state, count in found.counts.items() if count) or "nothing to make"


def _show(found: Overview, all_tasks: bool) -> None:
    heard = f" ({', '.join(found.answered)})" if found.answered else ""
    click.echo(f"{found.sweep}: {_counts(found)}{heard}")
    order = ("failed", "running", "pending", "blocked", "not submitted", "done")
    chosen = sorted((t for t in found.tasks if all_tasks or t.state != "done"), key=lambda t: order.index(t.state))
    rows = chosen if all_tasks else chosen[:SHOWN]
    if rows:
        echo_columns([("STATE", "STAGE", "TITLE", "JOB", "NODE", "RAN", "WHAT"), *map(_row, rows)])
    if len(rows) < len(chosen):
        click.echo(f"... and {len(chosen) - len(rows)} more: --tasks shows them")
    if found.gpu_hours:
        click.echo("GPU hours: " + ", ".join(f"{kind} {hours:.2f}" for kind, hours in found.gpu_hours.items()))
    if found.over and (found.counts["failed"] or found.counts["blocked"] or found.counts["not submitted"]):
        click.echo(f"'pagoda-bench logs {found.sweep} KEY' shows more; 'pagoda-bench resume {found.sweep}' tries again")


def _row(task: Standing) -> tuple[str, ...]:
    from pagoda_bench.plan.progress import duration

    what = ": ".join(filter(None, (task.cause, task.line.removeprefix("pagoda-bench: error: "))))
    ran = duration(task.seconds) if task.attempts else ""
    tries = f" ({task.attempts}x)" if task.attempts > 1 else ""
    return (task.state, f"{task.kind}/{task.key[:8]}", task.title, task.job, task.node, ran + tries, what[:120])


@click.command(
    epilog="""\b
Examples:
  pagoda-bench logs table1                   the end of the log of every stage that failed
  pagoda-bench logs table1 grow/3f2a         that stage's
  pagoda-bench logs table1 3f2a --lines 200
"""
)
@click.argument("name", metavar="SWEEP")
@click.argument("keys", nargs=-1, metavar="[[KIND/]KEY]...")
@click.option("--lines", type=click.IntRange(min=1), default=20, show_default=True, help="How many of the last lines.")
@store_option
def logs(name: str, keys: tuple[str, ...], lines: int, store_path: Path | None) -> None:
    """Show what stages printed, their last lines, and where the whole log is."""
    from pagoda_bench.plan.attempts import tail
    from pagoda_bench.plan.sweeps import find_sweep
    from pagoda_bench.plan.watch import overview

    store = open_store(store_path)
    sweep = find_sweep(store, name)
    chosen = sweep.pick(keys) or [task.key for task in overview(sweep, store).tasks if task.state == "failed"]
    if not chosen:
        click.echo("nothing failed: name a stage to see its log")
    for key in chosen:
        task = sweep.tasks[key]
        batch = batch_log(sweep, key)
        places = [*sweep.logs(key), *([batch] if batch is not None and batch.is_file() else [])]
        click.echo(f"== {task.name}  {task.title}")
        for path in places:
            click.echo(f"-- {path}")
            for line in tail(path, size=lines * 400).splitlines()[-lines:]:
                click.echo(f"   {line}")
        if not places:
            click.echo("   (no log: it was never started)")


def batch_log(sweep: Sweep, key: str) -> Path | None:
    """What submitit and the batch script printed in the last job of a stage."""
    for job in reversed(sweep.jobs):
        if key in job.keys:
            return sweep.folder / job.folder / f"{job.element(job.keys.index(key))}_0_log.out"
    return None


@click.command(
    epilog="""\b
Examples:
  pagoda-bench collect                  the newest sweep: its table or its values, as far as they are made
  pagoda-bench collect table1 --out results-of-tonight
"""
)
@sweep_argument
@click.option("--out", type=Folder(), help="Where it goes [default: as without SLURM].")
@store_option
def collect(name: str | None, out: Path | None, store_path: Path | None) -> int:
    """Write the table, or the values, that SWEEP was submitted for. What is missing is named; the exit code is 1 then."""
    from pagoda_bench import resources
    from pagoda_bench.cli.reproduce import choose_out, show
    from pagoda_bench.cli.sweep import write_values
    from pagoda_bench.plan.dag import Plan
    from pagoda_bench.plan.inline import Outcome
    from pagoda_bench.plan.sweeps import find_sweep
    from pagoda_bench.plan.watch import overview

    store = open_store(store_path)
    sweep = find_sweep(store, name)
    if not sweep.about.get("collect"):
        raise UserError(f"{sweep.name} was not made by 'reproduce' or 'sweep': there is no table to collect")
    found = overview(sweep, store)
    failures = {t.key: _why(t) for t in found.tasks if t.state != "done"}
    spec, tables = tables_for(sweep)
    scores = [score for _, table in tables for score in table.scores]
    session = sweep.about["session"]
    artifacts = {score.key: a for score in scores if (a := store.find(score, session)) is not None}
    if session is not None:
        Plan((), store, session=session, asked=sweep.about.get("asked") or sweep.about["targets"]).end()
    if found.gpu_hours:
        click.echo("GPU hours: " + ", ".join(f"{system} {hours:.2f}" for system, hours in by_system(sweep, found).items()))
    if spec is not None:
        return write_values(spec, tables, artifacts, failures, out)
    return show(tables[0][1], Outcome(artifacts, failures), choose_out(out, resources.folder("results"), publish=False))


def tables_for(sweep: Sweep) -> tuple[SweepSpec | None, list[tuple[Point, Table]]]:
    """What a sweep was submitted for: a table, or one at every point of a grid."""
    from pagoda_bench.cli.reproduce import read_table, table_of
    from pagoda_bench.cli.sweep import tables_of
    from pagoda_bench.plan.axes import SweepSpec

    asked: dict[str, Any] = sweep.about["collect"]
    places = {digest: Path(path) for digest, path in sweep.about["data"].items()}
    if "sweep" in asked:
        spec = SweepSpec.load(asked["sweep"], sweep.name)
        return spec, tables_of(spec, asked["sets"], places)
    table = table_of(read_table(asked["table"]), asked["scale"], asked["full"], tuple(asked["sets"]), places)
    return None, [({}, table.only(asked.get("rows", ())))]


def by_system(sweep: Sweep, found: Overview) -> dict[str, float]:
    """GPU hours that each system's rows cost in this sweep, all that they need included; what two share counts for both."""
    used = {task.key: task.gpu_seconds / 3600 for task in found.tasks}
    wanted: dict[str, set[str]] = {}
    for _, table in tables_for(sweep)[1] if sweep.about.get("collect") else ():
        for row in table.rows:
            wanted.setdefault(row.system, set()).update(score.key for score in row.scores)
    return {system: round(sum(used[key] for key in sweep.upstream(keys)), 4) for system, keys in wanted.items()}


def _why(task: Standing) -> str:
    return ": ".join(filter(None, (task.cause or task.state, task.line.removeprefix("pagoda-bench: error: "))))
