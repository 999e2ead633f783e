"""Published values: one value, of one system, from one source, a line of a CSV file (see paper_tables/README.md).

A blank value is an empty slot: the value is known to exist but could not be traced, and `pointer` says where a reader who
has the paper finds it. Nothing is filled in from memory, and `load` refuses a value without a source.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pagoda_bench.errors import UserError, nearest

TRUST = ("paper", "repository", "quoted", "checkpoint", "thread", "aggregator", "missing")  # strong to weak
GUIDANCE = ("none", "cfg", "classifier", "autoguidance", "truncation")
METRICS = ("fid", "sfid", "is", "precision", "recall", "fd-dinov2")
COLUMNS = ("system", "resolution", "metric", "value", "nfe", "guidance", "source", "trust", "pointer", "note")
_NFE = re.compile(r"\d+(x2|\+\d+)?")


@dataclass(frozen=True, kw_only=True)
class Published:
    """One cell. `value` is the printed text ("1.80" keeps its zero), or "" for an empty slot."""

    system: str
    resolution: int
    metric: str
    value: str
    nfe: str
    guidance: str
    source: str
    trust: str
    pointer: str
    note: str


def load(path: Path) -> list[Published]:
    """The cells of a file, checked. `UserError` names the file and the line that breaks a rule."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot read the published values ({error.strerror})") from None
    return parse(text, path.name)


def parse(text: str, where: str) -> list[Published]:
    """Like `load`, from text; `where` stands in messages."""
    reader = csv.DictReader(io.StringIO(text), restkey="")
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise UserError(f"{where}: the first line must be {','.join(COLUMNS)}")
    cells: list[Published] = []
    seen: dict[tuple[object, ...], int] = {}
    for row in reader:
        line = f"{where}, line {reader.line_num}"
        if "" in row or None in row.values():
            raise UserError(f"{line}: needs {len(COLUMNS)} columns; quote a text that holds a comma")
        cell = _check({k: (v or "").strip() for k, v in row.items()}, line)
        identity = (cell.system, cell.resolution, cell.metric, cell.nfe, cell.guidance, cell.source, cell.note)
        if identity in seen:
            raise UserError(f"{line}: says the same as line {seen[identity]}")
        seen[identity] = reader.line_num
        cells.append(cell)
    return cells


def _check(row: dict[str, str], line: str) -> Published:
    for column, known in (("metric", METRICS), ("guidance", GUIDANCE), ("trust", TRUST)):
        if row[column] not in known:
            raise UserError(f"{line}: unknown {column} '{row[column]}'{nearest(row[column], known)}")
    if not row["system"] or not row["resolution"].isdecimal():
        raise UserError(f"{line}: needs a system and a resolution in pixels")
    if row["nfe"] and not _NFE.fullmatch(row["nfe"]):
        raise UserError(f"{line}: nfe must be like 63, 63x2 or 250+250, not '{row['nfe']}'")
    if row["value"]:
        try:
            float(row["value"])
        except ValueError:
            raise UserError(f"{line}: the value '{row['value']}' is not a number; leave it blank if it is unknown") from None
        if not row["source"] or row["trust"] == "missing":
            raise UserError(f"{line}: a value needs its source and how far to trust it")
    elif row["source"] or row["trust"] != "missing" or not row["pointer"]:
        raise UserError(f"{line}: an empty slot has trust 'missing', no source, and a pointer to where the value can be found")
    return Published(**{**row, "resolution": int(row["resolution"])})  # type: ignore[arg-type]


def find(
    cells: Iterable[Published], system: str, resolution: int, metric: str = "fid", guidance: str = "none"
) -> list[Published]:
    """The cells of one system, the most trusted first; several when sources disagree or agree independently."""
    found = [c for c in cells if (c.system, c.resolution, c.metric, c.guidance) == (system, resolution, metric, guidance)]
    return sorted(found, key=lambda c: TRUST.index(c.trust))
