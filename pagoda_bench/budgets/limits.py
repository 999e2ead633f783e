"""The regression gate: limits on the scores of a measured table, and which of them it leaves.

A limit is on a value of one row, or on its ratio to that of another row of the same run: seconds of one machine say nothing
about another, ratios within a run do. A row that is missing or was not made leaves every budget that names it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from pagoda_bench.errors import UserError, nearest
from pagoda_bench.recipes.base import Config
from pagoda_bench.recipes.values import read_yaml
from pagoda_bench.tables.cells import DIRECTIONS, MEASURED, Cell, differences

COLUMNS = ("nfe", "images_per_second", "parameters", "training_flops")  # of a row, whatever the metric
METRICS = (*DIRECTIONS, *COLUMNS)


class Other(Config):
    """The row that a limit compares with; by default at the same resolution."""

    row: str
    resolution: int | None = None


class Limit(Config):
    """`at_most` or `at_least`, of the value itself or of its ratio to that of the row `of`."""

    row: str
    resolution: int
    metric: str
    at_most: float | None = None
    at_least: float | None = None
    of: Other | None = None

    @model_validator(mode="after")
    def _whole(self) -> Limit:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("give either at_most or at_least")
        if self.metric not in METRICS:
            raise ValueError(f"unknown metric '{self.metric}'" + nearest(self.metric, METRICS))
        return self

    @property
    def what(self) -> str:
        """E.g. "pagoda-64 fd / edm-64"."""
        over = "" if self.of is None else f" / {self.of.row}-{self.of.resolution or self.resolution}"
        return f"{self.row}-{self.resolution} {self.metric}{over}"

    @property
    def bound(self) -> str:
        return f"at most {self.at_most:g}" if self.at_most is not None else f"at least {self.at_least:g}"

    def holds(self, value: float) -> bool:
        """NaN is within no limit."""
        return value <= self.at_most if self.at_most is not None else value >= (self.at_least or 0.0)


class Limits(Config):
    """The limits at one scale, for scores of `n` samples."""

    n: int = Field(gt=1)
    limits: tuple[Limit, ...] = Field(min_length=1)


class Budget(Config):
    table: str
    scales: dict[str, Limits]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """`value` is None where it could not be had; `why` says why a limit is left."""

    limit: Limit
    value: float | None
    why: str = ""

    @property
    def within(self) -> bool:
        return not self.why

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; what is no finite number is None, and `why` has it."""
        value = self.value if self.value is not None and math.isfinite(self.value) else None
        return {"limit": self.limit.to_dict(), "value": value, "within": self.within, "why": self.why}


def load(path: Path) -> Budget:
    """The budget file at `path`."""
    return Budget.load(read_yaml(path, "the budget"), str(path))


def check(cells: Sequence[Cell], budget: Budget) -> list[Finding]:
    """One finding a limit, in their order. `UserError` when the table is another, or its scale has no budget."""
    if not cells:
        raise UserError("the table has no rows: measure it again with 'pagoda-bench reproduce'")
    table, scale = cells[0].table, cells[0].scale
    if table != budget.table:
        raise UserError(f"the budget is for '{budget.table}', the table is '{table}': name its budget with --budget FILE")
    if scale not in budget.scales:
        raise UserError(f"no budget for scale '{scale}' of {table}{nearest(scale, budget.scales)}")
    limits = budget.scales[scale]
    return [_finding(cells, limit, limits.n) for limit in limits.limits]


def _finding(cells: Sequence[Cell], limit: Limit, n: int) -> Finding:
    try:
        value, cell = _value(cells, limit.row, limit.resolution, limit.metric, n)
        if limit.of is not None:
            other, its = _value(cells, limit.of.row, limit.of.resolution or limit.resolution, limit.metric, n)
            if other <= 0:
                raise LookupError(f"{limit.metric} of {limit.of.row} is {other:g}: there is no ratio to it")
            if limit.metric not in COLUMNS and (apart := differences(cell, its)):
                raise LookupError(f"{cell.id} and {its.id} were measured differently: {'; '.join(apart)}")
            value /= other
    except LookupError as error:
        return Finding(limit=limit, value=None, why=str(error.args[0]))
    return Finding(limit=limit, value=value, why="" if limit.holds(value) else f"{value:.4g} is not {limit.bound}")


def _value(cells: Sequence[Cell], row: str, resolution: int, metric: str, n: int) -> tuple[float, Cell]:
    """The value, and a cell that has it. LookupError says what is missing."""
    own = [c for c in cells if (c.row, c.resolution) == (row, resolution)]
    if not own:
        raise LookupError(f"the table has no row {row}-{resolution}")
    if own[0].status != MEASURED:
        raise LookupError(f"{row}-{resolution}: {own[0].status}")
    if own[0].n != n:
        raise LookupError(f"{row}-{resolution} was measured with N={own[0].n}, the budget is for N={n}")
    found = own[:1] if metric in COLUMNS else [c for c in own if c.metric == metric]
    if len(found) > 1:
        raise LookupError(f"the table has {metric} of {row}-{resolution} {len(found)} times")
    value = getattr(found[0], metric if metric in COLUMNS else "value") if found else None
    if value is None:
        raise LookupError(f"{row}-{resolution} has no {metric}")
    if math.isinf(value):
        raise LookupError(f"{metric} of {row}-{resolution} is {value}")
    return float(value), found[0]
