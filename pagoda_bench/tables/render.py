"""Tables as sheets of lines and columns, from which the terminal, Markdown and LaTeX forms are written.

Rows are grouped by resolution: a distance is only ever best among the rows of its resolution, because each resolution is
measured against its own real images. Scores of different N or protocol get sheets of their own (`cells.together`), under a
line that says what differs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pagoda_bench.tables.cells import ALIGNMENT, DIRECTIONS, DISTANCE, LOWER, MEASURED, OVER_FLOOR, Cell, apart, together
from pagoda_bench.tables.published import Published, find
from pagoda_bench.tables.verdict import DIFFERS, SAME, Verdict

HEADS = {
    DISTANCE: "FD",
    OVER_FLOOR: "FD/floor",
    ALIGNMENT: "Alignment",
    "precision": "Precision",
    "recall": "Recall",
    "is": "IS analogue",
}
ARROWS = {"lower": "↓", "higher": "↑", "": ""}
NOT_MADE = "not made"
REAL = "data"  # the system of rows of real images: ceiling and noise floor, never a rival


@dataclass(frozen=True, kw_only=True)
class Line:
    """One row of a sheet: a row of the grid at one resolution."""

    id: str
    label: str
    resolution: int
    cells: Mapping[str, Cell]  # by metric
    any: Cell
    best: frozenset[str]  # metrics in which it is the best of its resolution, real images aside
    published: str
    committed: str
    same: bool | None  # the verdict on all its scores; None without committed ones

    @property
    def real(self) -> bool:
        return self.any.system == REAL

    @property
    def made(self) -> bool:
        return self.any.status == MEASURED


@dataclass(frozen=True, kw_only=True)
class Column:
    """A column: its head, and the text of a line in it. `metric` is "" for costs."""

    head: str
    text: Callable[[Line], str]
    metric: str = ""


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """A table ready to be written: lines of one protocol."""

    title: str
    lines: Sequence[Line]
    columns: Sequence[Column]
    published: str  # the head of the column of published values, "" for none
    committed: bool  # whether there is a column of committed values
    notes: Sequence[str]  # what the scores are, what was not made, what differs from the committed ones


def sheets(
    cells: Sequence[Cell],
    title: str,
    *,
    published: Mapping[str, str] | None = None,
    comparable: bool = False,
    verdicts: Sequence[Verdict] = (),
) -> list[Sheet]:
    """The sheets of `cells`, one a protocol. `published` is the text of the published value of a row id; `comparable`
    says that these scores may be compared with the published ones."""
    order = {name: i for i, name in enumerate(dict.fromkeys(c.id for c in cells))}
    head = "ImageNet FID, published" if comparable else "ImageNet FID, published — not comparable"
    out: list[Sheet] = []
    first: Sequence[Cell] = ()
    for group in together(cells):
        scored = any(c.value is not None for c in group)
        about = _about(group) if scored else []
        if first:
            title = f"Under another protocol, not comparable with the table above ({'; '.join(apart(first, group))})"
        first = first or group
        lines = sorted(_lines(group, published or {}, verdicts), key=lambda line: (line.resolution, order[line.id]))
        out.append(
            Sheet(
                title=title,
                lines=lines,
                columns=_columns(lines),
                published=head if any(line.published for line in lines) else "",
                committed=any(line.committed for line in lines),
                notes=[*about, *_lost(lines)],
            )
        )
    return out


def published_text(cells: Sequence[Published], system: str | None, resolution: int) -> str:
    """E.g. "1.80 at 512 px"; all values where sources differ; "not traced" for an empty slot; "" where there is no slot."""
    found = find(cells, system, resolution, "fid") if system else []
    numbers = list(dict.fromkeys(c.value for c in found if c.value))
    return f"{' or '.join(numbers) or 'not traced'} at {resolution} px" if found else ""


def _about(group: Sequence[Cell]) -> list[str]:
    cell = max((c for c in group if c.value is not None), key=lambda c: (c.trainings, c.blocks))
    ranges = (
        f"{cell.trainings} trainings with seeds of their own, ± standard error over these"
        if cell.trainings > 1
        else "one range of sample indices, so no standard error"
        if cell.blocks == 1
        else f"{cell.blocks} disjoint ranges of sample indices, ± standard error"
    )
    aligned = any(c.metric == ALIGNMENT for c in group)
    return [
        f"N = {cell.n:,}, {ranges}. FD: Fréchet distance in the features of this project's own network, never to be compared "
        "with FID. FD/floor: in units of the FD of real images at that resolution. Training FLOP: counted, upstream stages "
        "included, less the feature network that judges all rows."
        + " Alignment: the share of samples that this network takes for the class that was asked for."
        * aligned
    ]


def _lost(lines: Sequence[Line]) -> list[str]:
    """A note for each reason why rows were not made."""
    reasons: dict[str, list[str]] = {}
    for line in lines:
        if not line.made:
            reasons.setdefault(line.any.status, []).append(f"{line.label} at {line.resolution} px")
    return [f"{status} ({', '.join(rows)})" for status, rows in reasons.items()]


def _lines(group: Sequence[Cell], published: Mapping[str, str], verdicts: Sequence[Verdict]) -> list[Line]:
    rows: dict[str, dict[str, Cell]] = {}
    for cell in group:
        rows.setdefault(cell.id, {})[cell.metric] = cell
    best = _best(group)
    lines = []
    for name, by_metric in rows.items():
        head = next(iter(by_metric.values()))
        judged = {v.cell.metric: v for v in verdicts if v.cell.id == name and v.committed is not None}
        known = [v for v in judged.values() if v.verdict in (SAME, DIFFERS)]
        lines.append(
            Line(
                id=name,
                label=head.label,
                resolution=head.resolution,
                cells=by_metric,
                any=head,
                best=frozenset(m for m in by_metric if (name, m) in best),
                published=published.get(name, ""),
                committed=_committed(judged),
                same=all(v.verdict == SAME for v in known) if known else None,
            )
        )
    return lines


def _committed(judged: Mapping[str, Verdict]) -> str:
    """The committed distance with the verdict on all scores of the row: "0.280, same" or "0.350, differs in FD and 1 more"."""
    distance = judged.get(DISTANCE)
    known = [v for v in judged.values() if v.verdict in (SAME, DIFFERS)]
    if distance is None or distance.committed is None or not known:
        return "other protocol" if judged else ""
    apart = [HEADS[m] for m, v in judged.items() if v.verdict == DIFFERS and m != OVER_FLOOR]
    more = f" and {len(apart) - 1} more" if len(apart) > 1 else ""
    verdict = f"differs in {apart[0]}{more}" if apart else "same"
    return f"{number(distance.committed.value)}, {verdict}"


def _best(group: Sequence[Cell]) -> set[tuple[str, str]]:
    """(row id, metric) of the best value of each resolution, of at least two that are not real images."""
    best: set[tuple[str, str]] = set()
    for metric, direction in DIRECTIONS.items():
        for resolution in {c.resolution for c in group}:
            rivals = {
                c.id: c.value
                for c in group
                if (c.metric, c.resolution) == (metric, resolution) and c.system != REAL and c.value is not None
            }
            if len(rivals) > 1:
                top = (min if direction == LOWER else max)(rivals.values())
                best |= {(name, metric) for name, value in rivals.items() if number(value) == number(top)}
    return best


def _columns(lines: Sequence[Line]) -> list[Column]:
    present = [m for m in HEADS if m == DISTANCE or any(m in line.cells for line in lines)]
    costs: list[tuple[str, Callable[[Cell], str]]] = [
        ("NFE ↓", lambda cell: "–" if cell.nfe is None else f"{cell.nfe:.4g}"),
        ("Images/s ↑", lambda cell: number(cell.images_per_second)),
        ("Parameters", lambda cell: count(cell.parameters)),
        ("Training FLOP ↓", lambda cell: count(cell.training_flops)),
    ]
    return [
        *(Column(head=f"{HEADS[m]} {ARROWS[DIRECTIONS[m]]}", text=_score(m), metric=m) for m in present),
        *(Column(head=head, text=_cost(text)) for head, text in costs),
    ]


def _score(metric: str) -> Callable[[Line], str]:
    def text(line: Line) -> str:
        if not line.made:
            return NOT_MADE if metric == DISTANCE else ""
        cell = line.cells.get(metric)
        if cell is None or cell.value is None:
            return "–"
        return number(cell.value) if metric == OVER_FLOOR else with_error(cell.value, cell.stderr)

    return text


def _cost(text: Callable[[Cell], str]) -> Callable[[Line], str]:
    return lambda line: "" if not line.made else "–" if line.real else text(line.any)


def with_error(value: float, stderr: float | None) -> str:
    """Value and standard error with equally many decimals: two digits of the error, at most four decimals."""
    if not stderr:
        return number(value)
    places = min(4, max(0, 1 - math.floor(math.log10(stderr))))
    return f"{value:.{places}f} ± {stderr:.{places}f}"


def number(value: float | None) -> str:
    """Three significant digits, at most four decimals, no exponent; whole numbers of 10 and above in full: 0.0812, 35, 1520."""
    if value is None:
        return "–"
    if value == int(value) and abs(value) >= 10:
        return str(int(value))
    places = 2 - math.floor(math.log10(abs(value))) if value else 2
    return f"{value:.{min(max(places, 0), 4)}f}"


def count(value: float | None) -> str:
    """Three digits and a unit of thousands: 1.46M, 37.1k, 2.10P."""
    if value is None:
        return "–"
    for limit, unit in ((1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= limit:
            return number(value / limit) + unit
    return number(value)


def markdown(tables: Sequence[Sheet]) -> str:
    """The sheets in GitHub's Markdown."""
    return "\n\n".join(_markdown(sheet) for sheet in tables) + "\n"


def _markdown(sheet: Sheet) -> str:
    heads = ["px", "Row", *(c.head for c in sheet.columns)]
    heads += ["Committed FD"] * sheet.committed + [sheet.published] * bool(sheet.published)
    rows = []
    for line in sheet.lines:
        texts = [f"**{c.text(line)}**" if c.metric in line.best else c.text(line) for c in sheet.columns]
        tail = [line.committed] * sheet.committed + [line.published and f"*{line.published}*"] * bool(sheet.published)
        rows.append([str(line.resolution), line.label, *texts, *tail])
    align = ["--:", ":--", *["--:"] * len(sheet.columns), *[":--"] * (len(heads) - 2 - len(sheet.columns))]
    body = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in (heads, align, *rows)]
    return "\n".join([f"**{sheet.title}**", "", *body, *(f"\n{note}" for note in sheet.notes)])
