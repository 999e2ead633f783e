"""`pagoda-bench reproduce`: from the name of a table to the table."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagoda_bench.cli.common import Folder, data_option, data_places, listed, open_store, store_option
from pagoda_bench.cli.launch import Launch, launch, launch_options
from pagoda_bench.cli.launch import dry_run as show_plan
from pagoda_bench.errors import UserError, nearest

if TYPE_CHECKING:
    from pagoda_bench.plan.inline import Outcome
    from pagoda_bench.recipes.data import DataConfig
    from pagoda_bench.tables.spec import Table, TableSpec

WIDE = 200  # columns when the output is no terminal


@click.command(
    epilog="""\b
Examples:
  pagoda-bench reproduce table1                                   embedded data, released models, N = 1,000
  pagoda-bench reproduce table1 --full                            N = 10,000, three disjoint ranges of samples
  pagoda-bench reproduce table1 --dry-run                         what would be made, and how long it would take
  pagoda-bench reproduce table1 --retrain                         everything from scratch
  pagoda-bench reproduce table1 --scale cifar10 --data cifar.zip  on your images: a folder or a zip
  pagoda-bench reproduce table1 --set grow.2.train.steps=4000     with one value changed; repeat it for more
  pagoda-bench reproduce baselines --rows pagoda,cascade,real     some of its rows
"""
)
@click.argument("table", metavar="TABLE")
@click.option("--scale", "scale_name", metavar="SCALE", help="The set of values [default: the table's own, e.g. embedded].")
@click.option("--rows", metavar="NAMES", help="Only these rows, with commas: 'pagoda', or 'pagoda-16' of it.")
@click.option("--full", is_flag=True, help="Score more samples, in disjoint ranges, for standard errors.")
@click.option("--retrain", is_flag=True, help="Make everything anew, whatever is cached or released.")
@click.option("--dry-run", is_flag=True, help="Only show the plan.")
@data_option
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="Change a value of the scale, by its dotted path.")
@click.option(
    "--out",
    type=Folder(),
    help="Where the tables go [default: results, or out where results holds the committed ones].",
)
@click.option(
    "--publish", is_flag=True, help="Let them replace the committed results of this checkout; with --rows the other rows stay."
)
@store_option
@launch_options
def reproduce(
    table: str,
    scale_name: str | None,
    rows: str | None,
    full: bool,
    retrain: bool,
    dry_run: bool,
    data_paths: tuple[str, ...],
    sets: tuple[str, ...],
    out: Path | None,
    publish: bool,
    store_path: Path | None,
    executor: str,
    jobs: int | None,
    cluster: str | None,
) -> int:
    """Make TABLE: train what is not there, sample, score, and set the numbers beside the committed and the published ones.

    The table is printed, and written with its figures and their provenance to OUT/SCALE. What is there already is used; an
    interrupted run goes on where it stopped. The exit code is 1 when a row could not be made.
    """
    from pagoda_bench import resources
    from pagoda_bench.cli.cost import show_costs
    from pagoda_bench.plan.dag import Plan
    from pagoda_bench.plan.tree import summary
    from pagoda_bench.recipes.data import PreparedData

    if publish and sets:
        raise UserError(
            "--publish is for the scale as its file has it: change the value there, or leave --publish away and give --out DIR"
        )
    names = [] if rows is None else listed(rows, "--rows")
    asked = {"table": table, "scale": scale_name, "rows": names, "full": full, "sets": list(sets)}
    how = Launch(executor, jobs, cluster, about=asked)
    how.check(out, publish=publish)
    places = data_places(data_paths)
    whole = table_of(read_table(table), scale_name, full, sets, places, planned=dry_run)
    built = whole.only(names)
    plan = Plan(built.scores, open_store(store_path), retrain=retrain)
    if dry_run:
        show_plan(plan, how)
        if isinstance(built.scale.data, PreparedData):
            click.echo()
            try:
                show_costs(built.scale)
            except UserError as error:  # the plan stands without them
                click.echo(f"costs are not known: {error}", err=True)
            if not places:
                click.echo("without --data: the keys above are those of no images")
        return 0
    target = choose_out(out, resources.folder("results"), publish) if executor != "slurm" or not plan.to_make else None
    if plan.to_make:
        click.echo(summary(plan), err=True)
    outcome = launch(plan, places, how, f"{table}-{built.scale.name}")
    if outcome is None or target is None:
        return 0
    return show(built, outcome, target, publish=publish, whole=whole)


def read_table(name: str) -> TableSpec:
    from pagoda_bench import resources
    from pagoda_bench.tables.spec import read

    folder = resources.folder("experiments")
    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        raise UserError(f"unknown table '{name}'{nearest(name, known)}")
    return read(folder / f"{name}.yaml")


def table_of(
    spec: TableSpec,
    scale_name: str | None,
    full: bool,
    sets: tuple[str, ...],
    places: Mapping[str, Path],
    *,
    planned: bool = False,
) -> Table:
    from pagoda_bench.recipes.data import PreparedData
    from pagoda_bench.tables.spec import build, load_scale, needs_data

    name = scale_name or spec.default_scale
    if places and not needs_data(spec, name):
        users = [other for other in spec.scales if needs_data(spec, other)]
        raise UserError(f"scale '{name}' makes its own images; --data is for scales that measure yours ({', '.join(users)})")

    def describe(section: Mapping[str, Any]) -> DataConfig:
        from pagoda_bench.data.sources import describe as describe_images

        path = places.get("*") or next(iter(places.values()))
        if section["kind"] == PreparedData.kind:
            from pagoda_bench.data.imagenet import describe as describe_prepared

            return describe_prepared(path)
        if not isinstance(master := section.get("master"), int) or master < 1:
            raise UserError(f"scale '{name}', data.master: write the side of the images in pixels, e.g. 32, not {master}")
        return describe_images(path, master, str(section.get("name", "images")))

    scale = load_scale(spec, name, sets, describe if places else None, planned=planned)
    return build(spec, scale, full=full, changed=bool(sets))


def choose_out(chosen: Path | None, committed: Path, publish: bool) -> Path:
    """Where to write. The committed results are what verdicts compare with, so only --publish writes over them."""
    out = chosen or Path("results")
    if out.resolve() == committed.resolve() and not publish:
        if chosen is not None:
            raise UserError(
                f"--out {chosen} holds the committed results, which only 'reproduce --publish' replaces: choose another folder"
            )
        out = Path("out")
        click.echo("writing to out/: results/ holds the committed tables, which only --publish replaces", err=True)
    return out


def show(table: Table, outcome: Outcome, out: Path, *, publish: bool = False, whole: Table | None = None) -> int:
    """Prints and writes what there is of a table; 1 when a row could not be made. What is to become the committed table is
    compared with nothing; where `table` has a part of the rows of `whole`, the committed others stay in it."""
    from rich.console import Console

    from pagoda_bench import resources
    from pagoda_bench.tables.assemble import assemble
    from pagoda_bench.tables.report import committed, kept, report, write
    from pagoda_bench.tables.terminal import terminal

    cells, results = assemble(table, outcome.artifacts, outcome.failures), resources.folder("results")
    known = [] if publish else committed(table, results)
    others = kept(whole or table, table, out) if publish and out.resolve() == results.resolve() else None
    found = report(table, cells, outcome.artifacts, known=known, paper_tables=resources.folder("paper_tables"), others=others)
    written = write(found, out, ["pagoda-bench", *(Path(a).name if Path(a).is_absolute() else a for a in sys.argv[1:])])
    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False)
    for sheet in found.sheets:
        console.print(terminal(sheet, console.width))
    click.echo(f"written to {written[0].parent}: {', '.join(path.name for path in written)}")
    return int(any(cell.value is None for cell in cells))
