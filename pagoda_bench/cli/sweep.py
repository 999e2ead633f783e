"""`pagoda-bench sweep`: a table at every point of a grid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagoda_bench.cli.common import Folder, data_option, data_places, open_store, store_option
from pagoda_bench.cli.launch import Launch, dry_run, launch, launch_options
from pagoda_bench.errors import UserError

if TYPE_CHECKING:
    from pagoda_bench.plan.axes import Point, SweepSpec
    from pagoda_bench.tables.spec import Table


@click.command(
    epilog="""\b
Examples:
  pagoda-bench sweep experiments/sweeps/seeds.yaml --dry-run                       points, stages, jobs
  pagoda-bench sweep experiments/sweeps/seeds.yaml --executor local --jobs 2       on this machine
  pagoda-bench sweep experiments/sweeps/seeds.yaml --executor slurm                on the cluster; returns at once
  pagoda-bench sweep experiments/sweeps/seeds.yaml --set teacher.train.steps=100   with a value changed in every point
"""
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change a value of the scale in every point.")
@click.option("--dry-run", "only_show", is_flag=True, help="Only show the points and the plan.")
@click.option("--max-jobs", type=click.IntRange(min=1), default=1000, show_default=True, help="Refuse to run more stages.")
@click.option("--out", type=Folder(), help="Where the values go [default: out].")
@data_option
@store_option
@launch_options
def sweep(
    file: Path,
    sets: tuple[str, ...],
    only_show: bool,
    max_jobs: int,
    out: Path | None,
    data_paths: tuple[str, ...],
    store_path: Path | None,
    executor: str,
    jobs: int | None,
    cluster: str | None,
) -> int:
    """Make the rows of a table at every point of the grid in FILE. A stage that points share is made once.

    The values are written to OUT/NAME.csv, a line for each point, row and metric; with --executor slurm that is what
    'pagoda-bench collect' does when the jobs are through.
    """
    from pagoda_bench.plan.axes import read_sweep
    from pagoda_bench.plan.dag import Plan

    spec = read_sweep(file)
    asked = {"sweep": spec.to_dict(), "sets": list(sets)}
    how = Launch(executor, jobs, cluster, max_jobs, about=asked, stages=spec.stages)
    how.check(out)
    places = data_places(data_paths)
    tables = tables_of(spec, sets, places)
    plan = Plan([score for _, table in tables for score in table.scores], open_store(store_path))
    rows = sum(len(table.rows) for _, table in tables)
    click.echo(
        f"{spec.sweep}: {len(tables)} points, {rows} rows, {len(plan.nodes)} stages, {len(plan.to_make)} to make", err=True
    )
    if only_show:
        for point, _ in tables:
            click.echo("  " + (", ".join(f"{name}={value}" for name, value in point.items()) or "(the scale as it is)"))
        dry_run(plan, how)
        return 0
    outcome = launch(plan, places, how, spec.sweep)
    return 0 if outcome is None else write_values(spec, tables, outcome.artifacts, outcome.failures, out)


def tables_of(spec: SweepSpec, sets: Sequence[str], places: Mapping[str, Path]) -> list[tuple[Point, Table]]:
    """The table at each point, with the rows that the sweep asks for."""
    from pagoda_bench.cli.reproduce import read_table, table_of
    from pagoda_bench.plan.axes import expand, settings

    base = read_table(spec.table)
    found = []
    for point in expand(spec):
        table = table_of(base, spec.scale, spec.full, tuple(settings(spec, point, sets)), places)
        found.append((point, table.only(spec.rows)))
    return found


def write_values(
    spec: SweepSpec,
    tables: Sequence[tuple[Point, Table]],
    artifacts: Mapping[str, Any],
    failures: Mapping[str, str],
    out: Path | None,
) -> int:
    """Writes the cells of all points; prints how many are there and what is missing; 1 when something is."""
    import csv
    import io

    from pagoda_bench.artifacts.checkpoint import save_atomic
    from pagoda_bench.tables.assemble import assemble

    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    columns = ("row", "resolution", "metric", "value", "stderr", "n", "blocks", "status", "scores")
    writer.writerow([*spec.axes, *columns])
    measured, missing = 0, []
    for point, table in tables:
        for cell in assemble(table, artifacts, failures):
            said = ["" if (value := getattr(cell, name)) is None else value for name in columns]
            writer.writerow([*(point.get(axis, "") for axis in spec.axes), *said])
            measured += cell.value is not None
            if cell.value is None:
                at = ", ".join(f"{name}={value}" for name, value in point.items())
                missing.append(f"{cell.id} at {at}: {cell.status}")
    path = (out or Path("out")) / f"{spec.sweep}.csv"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_atomic(path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot write the values ({error.strerror}); choose another place with --out DIR") from None
    for line in missing[:20]:
        click.echo(line)
    if len(missing) > 20:
        click.echo(f"... and {len(missing) - 20} more")
    click.echo(f"{measured} values of {len(tables)} points, {len(missing)} rows missing: written to {path}")
    return int(bool(missing))
