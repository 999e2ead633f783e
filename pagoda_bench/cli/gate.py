"""`pagoda-bench gate`: a measured table against its budget."""

from __future__ import annotations

from pathlib import Path

import click

from pagoda_bench.cli.common import echo_columns, echo_json, json_option
from pagoda_bench.errors import UserError


@click.command(
    epilog="""\b
Examples:
  pagoda-bench reproduce table1 --out out && pagoda-bench gate out/embedded/table1.csv
  pagoda-bench gate results/embedded/table1.csv --json
  pagoda-bench gate out/embedded/table1.csv --budget mine.yaml      limits of your own
"""
)
@click.argument("table", type=click.Path(path_type=Path), metavar="TABLE.csv")
@click.option(
    "--budget",
    "budget_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="The limits [default: experiments/budgets/<table>.yaml].",
)
@json_option
def gate(table: Path, budget_path: Path | None, as_json: bool) -> int:
    """Hold the scores of TABLE.csv against their budget: distances, claims of the table, speeds as ratios within the run.

    The exit code is 1 when one limit is left, or a row that a limit names was not made.
    """
    from pagoda_bench import resources
    from pagoda_bench.budgets.limits import check, load
    from pagoda_bench.tables.cells import load as load_cells

    if table.is_dir():
        raise UserError(f"{table} is a folder: give a table in it, e.g. {table / 'table1.csv'}")
    if not table.is_file():
        raise UserError(f"{table}: no such file; 'pagoda-bench reproduce' writes it")
    cells = load_cells(table)
    if not cells:
        raise UserError(f"{table} has no rows: measure it again with 'pagoda-bench reproduce'")
    if budget_path is None:
        name = cells[0].table
        budget_path = resources.folder("experiments") / "budgets" / f"{name}.yaml"
        if not budget_path.is_file():
            raise UserError(f"there is no budget for '{name}': give one with --budget FILE")
    findings = check(cells, load(budget_path))
    left = [f for f in findings if not f.within]
    if as_json:
        echo_json([f.to_dict() for f in findings])
        return int(bool(left))
    lines = [
        (f.limit.what, "-" if f.value is None else f"{f.value:.4g}", f.limit.bound, "within" if f.within else f"LEFT: {f.why}")
        for f in findings
    ]
    echo_columns([("WHAT", "VALUE", "BUDGET", ""), *lines], right=(1,))
    click.echo(f"{len(findings) - len(left)} of {len(findings)} limits hold")
    return int(bool(left))
