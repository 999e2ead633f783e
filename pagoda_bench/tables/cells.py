"""A cell: one measured value with everything needed to judge it. Long form, one cell a line of CSV."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pagoda_bench.errors import UserError

DISTANCE = "fd"
OVER_FLOOR = "fd_over_floor"
LOWER, HIGHER = "lower", "higher"
ALIGNMENT = "alignment"
DIRECTIONS = {
    DISTANCE: LOWER,
    OVER_FLOOR: LOWER,
    ALIGNMENT: HIGHER,
    "precision": HIGHER,
    "recall": HIGHER,
    "is": HIGHER,
}
MEASURED = "measured"
# What scores of one column may differ in: every resolution is measured against its own real images, and says so.
BY_RESOLUTION = ("resolution", "reference")
# And rows: what they are guided by is a part of them, as their number of evaluations is, and their labels say it.
BY_ROW = ("guidance",)


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One metric of one row. `value` is the mean over `blocks` disjoint ranges of `n` sample indices each; `stderr` and
    `std` are over the blocks and None for a single one. With more than one of `trainings` all of these are over the
    trainings, and `blocks` is their number. A row that was not made has one cell, without metric and value, whose `status`
    says why."""

    table: str
    scale: str
    row: str
    label: str
    system: str
    resolution: int
    metric: str = ""
    direction: str = ""
    value: float | None = None
    stderr: float | None = None
    std: float | None = None
    min: float | None = None
    max: float | None = None
    n: int = 0
    blocks: int = 0
    nfe: float | None = None  # network evaluations an image, counted while sampling
    images_per_second: float | None = None
    parameters: int | None = None
    training_flops: float | None = None  # of one generator and all it was trained from, less the feature network
    status: str = MEASURED
    weights: str = ""  # digest of the weights that made the samples, of all trainings; blank for real images
    protocol: Mapping[str, Any] = field(default_factory=dict)
    scores: str = ""  # keys of the score artifacts, separated by blanks
    git_revision: str = ""
    trainings: int = 1  # with seeds of their own

    @property
    def id(self) -> str:
        return f"{self.row}-{self.resolution}"


FIELDS = {f.name: str(f.type) for f in dataclasses.fields(Cell)}
LATER = {"trainings": "1"}  # columns that older tables lack, and what they would hold


def to_csv(cells: Iterable[Cell]) -> str:
    """Long-form CSV: floats by shortest repr, so that reading gives back the same cells; None is blank."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(FIELDS)
    for cell in cells:
        writer.writerow([_text(getattr(cell, name)) for name in FIELDS])
    return out.getvalue()


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return json.dumps(value, sort_keys=True)
    return repr(value) if isinstance(value, float) else str(value)


def from_csv(text: str, where: str) -> list[Cell]:
    """The cells of `to_csv`. `UserError` names `where` and the line when they are not."""
    reader = csv.DictReader(io.StringIO(text))
    cells = []
    try:
        if missing := [name for name in FIELDS if name not in (*(reader.fieldnames or ()), *LATER)]:
            raise UserError(f"{where}: no column '{missing[0]}'; is it a table of this program?")
        for line in reader:
            row = {**LATER, **line}
            cells.append(Cell(**{name: _parse(row[name] or "", kind) for name, kind in FIELDS.items()}))
    except (ValueError, csv.Error) as error:  # csv.Error: e.g. a field of more than 131,072 characters
        number = reader.line_num + isinstance(error, csv.Error)  # which leaves the line uncounted
        raise UserError(f"{where}, line {number}: {error}") from None
    return cells


def load(path: Path) -> list[Cell]:
    """The cells in a CSV file; `UserError` names the file when it cannot be read or holds none."""
    try:
        return from_csv(path.read_text(encoding="utf-8"), path.name)
    except OSError as error:
        raise UserError(f"cannot read the table {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8; is it a table of this program?") from None


def _parse(text: str, kind: str) -> Any:
    if kind.startswith("Mapping"):
        value = json.loads(text or "{}")
        if not isinstance(value, dict):
            raise ValueError(f"'{text[:40]}' is no JSON object")
        return value
    if kind == "str":
        return text
    if not text:
        return None
    return int(text) if kind.startswith("int") else float(text)


def values(cells: Iterable[Cell], metric: str) -> dict[str, Cell]:
    """The measured cells of one metric, by row id."""
    return {c.id: c for c in cells if c.metric == metric and c.value is not None}


def differences(a: Cell, b: Cell) -> list[str]:
    """In what the protocols of two cells of one column differ: "n 1000 and 10000"; empty when they may stand together."""
    left, right = {"n": a.n, **a.protocol}, {"n": b.n, **b.protocol}
    names = sorted({*left, *right})
    names = [k for k in names if a.resolution == b.resolution or k not in BY_RESOLUTION]
    names = [k for k in names if a.id == b.id or k not in BY_ROW]
    return [f"{k} {_short(left.get(k))} and {_short(right.get(k))}" for k in names if left.get(k) != right.get(k)]


def together(cells: Iterable[Cell]) -> list[list[Cell]]:
    """The rows in groups within which every column is of one protocol, the largest first: one table each. Rows that were
    not made go with the first group."""
    rows: dict[str, list[Cell]] = {}
    for cell in cells:
        rows.setdefault(cell.id, []).append(cell)
    lost = [c for row in rows.values() for c in row if c.value is None]
    groups: list[dict[tuple[str, int], Cell]] = []  # one cell of each metric and resolution stands for all of them
    members: list[list[Cell]] = []
    for row in rows.values():
        made = [c for c in row if c.value is not None]
        if not made:
            continue
        fitting = [i for i, group in enumerate(groups) if all(not _against(c, group) for c in made)]
        if not fitting:
            fitting = [len(groups)]
            groups.append({})
            members.append([])
        groups[fitting[0]].update({(c.metric, c.resolution): c for c in made})
        members[fitting[0]].extend(made)
    members.sort(key=len, reverse=True)
    if not members:
        return [lost] if lost else []
    return [[*members[0], *lost], *members[1:]]


def apart(first: Iterable[Cell], other: Iterable[Cell]) -> list[str]:
    """In what the protocols of two groups differ, each thing once."""
    known = {(c.metric, c.resolution): c for c in first if c.value is not None}
    return list(dict.fromkeys(text for c in other for text in _against(c, known)))


def _against(cell: Cell, group: Mapping[tuple[str, int], Cell]) -> list[str]:
    """The differences to one cell of each resolution; same-metric cells of a group agree already."""
    return [text for (metric, _), other in group.items() if metric == cell.metric for text in differences(other, cell)]


def _short(value: Any) -> str:
    text = "nothing" if value is None else str(value)
    return text[:12] if len(text) == 64 else text if len(text) <= 40 else text[:37] + "..."
