"""What is known of every method: its facts, the scales at which an experiment has a row of it, and where it was measured."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pagoda_bench.errors import UserError
from pagoda_bench.recipes.methods import MethodFacts, facts_of
from pagoda_bench.tables import methods
from pagoda_bench.tables.spec import TableSpec, read


@dataclass(frozen=True)
class MethodRow:
    """A method as it is listed. `scales` are "table/scale" with a row of it, `measured` those whose committed table holds a
    score of such a row; `problem` says why the method cannot be loaded."""

    name: str
    facts: MethodFacts
    scales: tuple[str, ...] = ()
    measured: tuple[str, ...] = ()
    problem: str = ""

    def to_dict(self) -> dict[str, Any]:
        facts = {k: v for k, v in vars(self.facts).items() if k != "toy"}
        said = {"name": self.name, **facts, "trainable": self.facts.toy is not None}
        return {**said, "scales": list(self.scales), "measured": list(self.measured), "problem": self.problem}


def method_rows(experiments: Path, results: Path | None) -> list[MethodRow]:
    """All registered methods by name, with what the experiment files and the committed tables say of them."""
    specs = [read(path) for path in sorted(experiments.glob("*.yaml"))]
    return [_row(name, specs, results) for name in methods.known()]


def _row(name: str, specs: Sequence[TableSpec], results: Path | None) -> MethodRow:
    try:
        method: Callable[..., Any] = methods.find(name)
    except UserError as error:
        return MethodRow(name, MethodFacts(title=name), problem=str(error))
    scales, measured = [], []
    for spec in specs:
        ids = {row.id for row in spec.rows if row.method == name}
        for scale in spec.scales if ids else ():
            scales.append(f"{spec.table}/{scale}")
            if results is not None and ids & _scored(results / scale / f"{spec.table}.csv"):
                measured.append(f"{spec.table}/{scale}")
    return MethodRow(name, facts_of(method), tuple(scales), tuple(measured))


def _scored(path: Path) -> set[str]:
    """The rows of a committed table that hold a score; none where there is no such table."""
    if not path.is_file():
        return set()
    with path.open(newline="", encoding="utf-8") as file:
        return {line["row"] for line in csv.DictReader(file) if line.get("status") == "measured"}
