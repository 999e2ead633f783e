"""`pagoda-bench methods`: every system that a row of a table can name."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from pagoda_bench.cli.common import echo_json, json_option
from pagoda_bench.errors import UserError

if TYPE_CHECKING:
    from pagoda_bench.tables.rows import MethodRow

WIDE = 160  # columns when the output is no terminal


@click.command(
    epilog="""\b
Examples:
  pagoda-bench methods                  all of them: implementation, weights, licence, scales, what its tests hold it against
  pagoda-bench methods edm greedy       some
  pagoda-bench methods --json           the same as JSON
"""
)
@click.argument("names", nargs=-1, metavar="[METHOD]...")
@json_option
def methods(names: tuple[str, ...], as_json: bool) -> int:
    """List the methods that a row of a table can name, those of other installed packages among them.

    The exit code is 1 when one of them cannot be loaded.
    """
    from pagoda_bench import resources
    from pagoda_bench.errors import nearest
    from pagoda_bench.tables.rows import method_rows

    try:
        results = resources.folder("results")
    except UserError:
        results = None
    rows = method_rows(resources.folder("experiments"), results)
    known = [row.name for row in rows]
    for name in names:
        if name not in known:
            raise UserError(f"unknown method '{name}'{nearest(name, known)}")
    shown = [row for row in rows if not names or row.name in names]
    if as_json:
        echo_json([row.to_dict() for row in shown])
    else:
        _print(shown)
    return 1 if any(row.problem for row in shown) else 0


def _print(rows: list[MethodRow]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_lines=True, pad_edge=False)
    for heading in (
        "Method",
        "System",
        "Implementation",
        "Released weights",
        "Licence",
        "Scales (* measured)",
        "Tested against",
    ):
        table.add_column(heading, overflow="fold")
    for row in rows:
        facts = row.facts
        system = f"{facts.title}\n{facts.paper}" if facts.paper else facts.title
        scales = " ".join(f"{scale}{'*' if scale in row.measured else ''}" for scale in row.scales)
        cells = (facts.reference, facts.weights, facts.licence, scales or "-", facts.tested)
        table.add_row(row.name, system, *([row.problem, "", "", "", ""] if row.problem else cells))
    console = Console(width=None if sys.stdout.isatty() else WIDE, highlight=False, markup=False)
    console.print(table)
