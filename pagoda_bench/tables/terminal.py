"""Sheets for a terminal: in one piece where the width allows, otherwise in several, what matters most first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from pagoda_bench.tables.render import Line, Sheet

FIRST = ("FD ", "FD/floor", "NFE")  # heads of the columns that a narrow terminal shows first, beside the published values


@dataclass(frozen=True)
class _Column:
    head: str
    text: Callable[[Line], Text]
    right: bool = True
    style: str = ""


def terminal(sheet: Sheet, width: int) -> Group:
    """What to print of a sheet on `width` columns."""
    columns = _columns(sheet)
    pieces = [columns]
    if _width(_table(sheet, columns)) > width:
        leading = [c for c in columns if c.head.startswith(FIRST) or c.style]
        pieces = _pack(sheet, [*leading, *(c for c in columns if c not in leading)], width)
    title = Text(sheet.title, style="bold")
    return Group(title, *(_table(sheet, piece) for piece in pieces), *(Text(note, style="dim") for note in sheet.notes))


def _columns(sheet: Sheet) -> list[_Column]:
    def value(column_text: Callable[[Line], str], metric: str) -> Callable[[Line], Text]:
        def text(line: Line) -> Text:
            return Text(column_text(line), style="red" if not line.made else "bold" if metric and metric in line.best else "")

        return text

    columns = [_Column(c.head, value(c.text, c.metric)) for c in sheet.columns]
    if sheet.committed:
        colours = {True: "green", False: "red", None: ""}
        columns.append(_Column("Committed FD", lambda line: Text(line.committed, style=colours[line.same]), right=False))
    if sheet.published:
        head = sheet.published.replace(", published", ",\npublished").replace("— ", "—\n")
        columns.append(_Column(head, lambda line: Text(line.published), right=False, style="dim italic"))
    return columns


def _pack(sheet: Sheet, columns: Sequence[_Column], width: int) -> list[list[_Column]]:
    """The columns in as few tables as fit, each table as full as it can be."""
    pieces: list[list[_Column]] = [[]]
    for column in columns:
        if pieces[-1] and _width(_table(sheet, [*pieces[-1], column])) > width:
            pieces.append([])
        pieces[-1].append(column)
    return pieces


def _width(table: Table) -> int:
    return Console(width=1000).measure(table).maximum


def _table(sheet: Sheet, columns: Sequence[_Column]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, padding=(0, 1), collapse_padding=True)
    table.add_column("px", justify="right", no_wrap=True)
    table.add_column("Row", no_wrap=True)
    for column in columns:
        table.add_column(
            column.head,
            justify="right" if column.right else "left",
            style=column.style,
            header_style=f"bold {column.style}",
            no_wrap=True,
        )
    above = 0
    for line in sheet.lines:
        if above and line.resolution != above:
            table.add_section()
        px = str(line.resolution) if line.resolution != above else ""
        above = line.resolution
        table.add_row(px, Text(line.label, style="dim" if line.real else ""), *(column.text(line) for column in columns))
    return table
