"""Everything that a finished table leaves on disk: CSV, Markdown, LaTeX, figures and where they come from."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pagoda_bench.artifacts.checkpoint import read_json, save_atomic
from pagoda_bench.artifacts.provenance import code_revision, cpu_model, now, versions
from pagoda_bench.artifacts.store import Artifact
from pagoda_bench.errors import UserError
from pagoda_bench.tables import cells as long_form
from pagoda_bench.tables import latex, published, render, verdict
from pagoda_bench.tables.assemble import with_floor
from pagoda_bench.tables.cells import Cell
from pagoda_bench.tables.spec import Table
from pagoda_bench.tables.verdict import Verdict

CAPTION = "Uncurated: the first sample of each class. In a column, the rows of one method start from the same latent."
COMPARABLE = ("imagenet",)  # scales whose scores may stand beside published ImageNet values


@dataclass(frozen=True, kw_only=True)
class Kept:
    """What stays of a committed table of which some rows are published anew: the whole table, the cells of its other rows, and
    where these are from (the provenance beside them)."""

    table: Table
    cells: Sequence[Cell]
    provenance: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Report:
    """A table with its verdicts, ready to print and to write. `others`: what it keeps of the one in its place."""

    table: Table
    cells: Sequence[Cell]
    verdicts: Sequence[Verdict]
    sheets: Sequence[render.Sheet]
    artifacts: Mapping[str, Artifact]
    others: Kept | None = None


def stem(table: Table) -> str:
    """`table1`, or `table1-full`."""
    return f"{table.name}-full" if table.full else table.name


def committed(table: Table, results: Path) -> list[Cell]:
    """The committed cells for this table and number of samples; none where nothing was committed."""
    path = results / table.scale.name / f"{stem(table)}.csv"
    return long_form.load(path) if path.is_file() else []


def kept(whole: Table, part: Table, results: Path) -> Kept | None:
    """What the committed table of `whole` has beside the rows of `part`; None where that is nothing."""
    measured = {row.id for row in part.rows}
    here = {row.id for row in whole.rows}
    cells = [cell for cell in committed(whole, results) if cell.id in here - measured]
    about = read_json(results / whole.scale.name / f"{stem(whole)}.provenance.json")
    return Kept(table=whole, cells=cells, provenance=about if isinstance(about, dict) else {}) if cells else None


def report(
    table: Table,
    cells: Sequence[Cell],
    artifacts: Mapping[str, Artifact],
    *,
    known: Sequence[Cell],
    paper_tables: Path,
    others: Kept | None = None,
) -> Report:
    """`known`: the committed cells. `paper_tables`: the folder of published values. `others`: what stays of the table in whose
    place this one comes."""
    if others is not None:
        table, order = others.table, [row.id for row in others.table.rows]
        cells = [*with_floor(sorted([*cells, *others.cells], key=lambda cell: order.index(cell.id)))]
    values = published.load(paper_tables / table.published) if table.published else []
    texts = {
        row.id: render.published_text(values, row.published, table.published_resolution(row.resolution)) for row in table.rows
    }
    verdicts = verdict.judge(cells, known)
    sheets = render.sheets(
        cells,
        f"{table.title} (scale {table.scale.name})",
        published=texts,
        comparable=table.scale.name in COMPARABLE,
        verdicts=verdicts if known else (),
    )
    return Report(table=table, cells=cells, verdicts=verdicts, sheets=sheets, artifacts=artifacts, others=others)


def write(found: Report, out: Path, command: Sequence[str]) -> list[Path]:
    """Writes all files of a report into `out/<scale>`, each atomically; returns them. `command` goes to the provenance."""
    folder = out / found.table.scale.name
    name = stem(found.table)
    contents: dict[str, bytes] = {
        f"{name}.csv": long_form.to_csv(found.cells).encode(),
        f"{name}.md": render.markdown(found.sheets).encode(),
        f"{name}.tex": latex.latex(found.sheets).encode(),
        **_figures(found),
    }
    digests = {file: hashlib.sha256(data).hexdigest() for file, data in contents.items()}
    about = json.dumps(_provenance(found, command, digests), indent=1, sort_keys=True) + "\n"
    contents[f"{name}.provenance.json"] = about.encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, data in contents.items():
            save_atomic(folder / file, partial(_put, data))
    except OSError as error:
        raise UserError(f"{folder}: cannot write the table ({error.strerror}); choose another place with --out DIR") from None
    return [folder / file for file in contents]


def _put(data: bytes, path: Path) -> None:
    path.write_bytes(data)


def _figures(found: Report) -> dict[str, bytes]:
    from pagoda_bench.tables import grids, panels, plots, relation, style

    name, short = stem(found.table), found.table.name  # the grid shows the first block, the same whatever is scored
    group = next(iter(long_form.together(found.cells)), [])  # figures show one protocol only
    if found.others is not None:  # of the other rows there are no samples here: their grid stays, this one has its own name
        short += f"-{next(row.row for row in found.table.rows if row.scores and row.scores[0].key in found.artifacts)}"
    pages = grids.pages(grids.rows_of(found.table, found.artifacts, found.cells))
    classes = grids.class_names(found.table.scale.data)
    against = {row.row: row.against for row in found.table.rows if row.against is not None}
    label = ", ".join(sorted({row.system for row in found.table.rows if row.row in against.values()}))
    figures = {
        f"{name}-fd-vs-fd": relation.distance_against(group, against, label),
        f"{name}-fd-vs-resolution": plots.distance_by_resolution(group),
        f"{name}-fd-vs-work": plots.distance_by_work(group),
        **{
            f"{short}-samples" + (f"-{i}" if len(pages) > 1 else ""): grids.sample_grid(page, classes, CAPTION)
            for i, page in enumerate(pages, 1)
        },
        **{f"{name}-{plot.name}": panels.panels(plot, group) for plot in found.table.plots},
    }
    return {
        f"{file}.{kind}": data
        for file, figure in figures.items()
        if figure is not None
        for kind, data in style.files(figure).items()
    }


def _provenance(found: Report, command: Sequence[str], digests: Mapping[str, str]) -> dict[str, Any]:
    others = found.others
    about = {} if others is None else {"kept": _origin(others)}
    return about | {
        "command": list(command),
        "written": now(),
        "package": code_revision(),
        "versions": versions(),
        "cpu": cpu_model(),
        "table": found.table.name,
        "full": found.table.full,
        "changed": found.table.changed,
        "scale": found.table.scale.to_dict(),
        "files": dict(digests),
        "artifacts": {a.name: {"digest": a.digest, "released": a.released} for a in found.artifacts.values()},
        "not_made": {c.id: c.status for c in found.cells if c.value is None},
        "verdicts": [
            {
                "row": v.cell.id,
                "metric": v.cell.metric,
                "value": v.cell.value,
                "committed": None if v.committed is None else v.committed.value,
                "verdict": v.verdict,
                "why": v.why,
            }
            for v in found.verdicts
        ],
    }


def _origin(others: Kept) -> dict[str, Any]:
    """Which rows were not measured now, and what is known of where they are from."""
    said = ("command", "written", "package", "versions", "cpu", "artifacts", "not_made", "kept")
    return {
        "rows": sorted({cell.id for cell in others.cells}),
        "from": {name: others.provenance[name] for name in said if name in others.provenance},
    }
