"""The figures of a table: distance against resolution, distance against training work, and uncurated samples.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; every series is also labelled where it ends. Files
are byte-identical for identical numbers: no dates, no random ids.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from pagoda_bench.tables.cells import DISTANCE, Cell, values
from pagoda_bench.tables.render import REAL, number

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
FLOOR_COLOUR = "#666666"
STYLE: Any = {
    "font.family": "DejaVu Sans",
    "font.size": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "ytick.minor.width": 0.4,
    "svg.fonttype": "path",
    "svg.hashsalt": "pagoda-bench",
    "path.simplify": False,
}


@dataclass(frozen=True, kw_only=True)
class Series:
    """One method: its measured distances by resolution, and how it is drawn."""

    label: str
    points: Sequence[Cell]
    colour: str
    marker: str


def files(figure: Figure) -> dict[str, bytes]:
    """The figure as {"png": bytes, "svg": bytes}, without dates and software versions."""
    out = {}
    with matplotlib.rc_context(STYLE):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None, "Creator": None})):
            buffer = io.BytesIO()
            figure.savefig(buffer, format=kind, dpi=200, metadata=metadata)
            out[kind] = buffer.getvalue()
    return out


def series(cells: Sequence[Cell]) -> tuple[list[Series], list[Cell]]:
    """Every method's distances, and those of real images. Colours follow the order of the rows."""
    rows: dict[str, list[Cell]] = {}
    for cell in values(cells, DISTANCE).values():
        rows.setdefault(cell.row, []).append(cell)
    real = [c for row in rows.values() for c in row if c.system == REAL]
    methods = [row for row in rows.values() if row[0].system != REAL]
    found = [
        Series(
            label=row[0].label,
            points=sorted(row, key=lambda c: c.resolution),
            colour=PALETTE[i % len(PALETTE)],
            marker=MARKERS[i % len(MARKERS)],
        )
        for i, row in enumerate(_longest_first(methods))
    ]
    return found, sorted(real, key=lambda c: c.resolution)


def distance_by_resolution(cells: Sequence[Cell]) -> Figure | None:
    """Fréchet distance of every method over resolution, logarithmic, above the noise floor; None without any distance."""
    methods, real = series(cells)
    if not methods:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(5.6, 3.5, right=0.72)
        resolutions = sorted({c.resolution for m in methods for c in m.points} | {c.resolution for c in real})
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlim(resolutions[0] / 1.25, resolutions[-1] * 1.12)
        axes.xaxis.set_major_locator(FixedLocator(resolutions))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
        _limits(axes, [c for m in methods for c in m.points] + real)
        if real:
            xs = [axes.get_xlim()[0], *(c.resolution for c in real), axes.get_xlim()[1]]
            ys = [c.value or 0 for c in real]
            ys = [ys[0], *ys, ys[-1]]
            axes.plot(xs, ys, color=FLOOR_COLOUR, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
            axes.fill_between(xs, ys, [axes.get_ylim()[0]] * len(xs), color="#f0f0f0", linewidth=0, zorder=0.5)
        for method in methods:
            _line(axes, [c.resolution for c in method.points], method)
        ends = [(m.points[-1], m.label, m.colour) for m in methods]
        ends += [(real[-1], "Real images:\nnoise floor", FLOOR_COLOUR)] if real else []
        last = resolutions[-1]
        _end_labels(axes, [(c, f"{t}\n{evaluations(c)}".strip(), colour) for c, t, colour in ends if c.resolution == last])
        for cell, text, colour in ends:
            if cell.resolution != last:
                said = f"{text}\n{evaluations(cell)}".strip()
                at = (cell.resolution, cell.value or 0)
                axes.annotate(said, at, xytext=(7, 1), textcoords="offset points", color=colour, va="center")
        axes.set_xlabel("Resolution (px)")
        axes.set_ylabel(f"Fréchet distance, N = {_n(cells):,}")
    return figure


def distance_by_work(cells: Sequence[Cell]) -> Figure | None:
    """Fréchet distance of every row over the floating-point work of its training; None when no row has both."""
    methods, _ = series([c for c in cells if c.system == REAL or c.training_flops])
    if not methods:
        return None
    with matplotlib.rc_context(STYLE):
        figure, axes = _axes(5.6, 3.5, right=0.955)
        axes.set_xscale("log")
        axes.set_yscale("log")
        points = [c for m in methods for c in m.points]
        work = [c.training_flops or 1.0 for c in points]
        low, high = min(work), max(work)
        margin = max((high / low) ** 0.12, 1.15)
        axes.set_xlim(low / margin, high * margin ** 2.4)
        _limits(axes, points)
        for method in methods:
            _line(axes, [c.training_flops or 1.0 for c in method.points], method)
        axes.xaxis.set_major_locator(FixedLocator(_ticks(*axes.get_xlim())))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(_power))
        axes.set_xlabel("Training work with everything upstream (floating-point operations)")
        axes.set_ylabel(f"Fréchet distance, N = {_n(cells):,}")
        labels = []
        for method in methods:
            for cell in method.points:
                name = f"{method.label}, " if cell is method.points[-1] else ""
                labels.append((cell.training_flops or 1.0, cell.value or 0.0, f"{name}{cell.resolution} px", method.colour))
        _place(figure, axes, labels, methods)
    return figure


def _axes(width: float, height: float, right: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0.11, 0.145, right - 0.11, 0.825))
    return figure, axes


def _limits(axes: Axes, cells: Sequence[Cell]) -> None:
    """Room around the values, with round ticks 1-2-5."""
    heights = [c.value for c in cells if c.value and c.value > 0] or [1.0]
    low, high = min(heights) / 1.5, max(heights) * 1.35
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator(_ticks(low, high)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def _ticks(low: float, high: float) -> list[float]:
    """Round values between two positive limits: the fewer decades, the more in each."""
    span = high / low
    steps: tuple[float, ...] = (1, 1.5, 2, 3, 4, 5, 7) if span < 8 else (1, 2, 5) if span < 1e3 else (1,)
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [s * 10.0**d for d in decades for s in steps if low <= s * 10.0**d <= high]


def _power(value: float, _position: float) -> str:
    """1500000 as 1.5 x 10^6, in matplotlib's mathematics."""
    exponent = math.floor(math.log10(value) + 1e-9)
    return rf"${value / 10.0**exponent:.3g}\times10^{{{exponent}}}$"


def _line(axes: Axes, xs: Sequence[float], method: Series) -> None:
    ys = [c.value or 0 for c in method.points]
    errors = [c.stderr or 0 for c in method.points]
    axes.errorbar(
        xs, ys, yerr=errors if any(errors) else None, color=method.colour, marker=method.marker, markersize=6,
        linewidth=1.4, capsize=0, elinewidth=1.0, markeredgecolor="white", markeredgewidth=0.6, zorder=3,
    )


def _end_labels(axes: Axes, ends: Sequence[tuple[Cell, str, str]]) -> None:
    """Labels right of the axes at the height of each series' end, moved apart where they would touch."""
    low, high = (math.log(v) for v in axes.get_ylim())
    wanted = sorted(((math.log(max(c.value or 0, 1e-12)) - low) / (high - low), t, colour) for c, t, colour in ends)
    heights = [h for h, _, _ in wanted]
    halves = [0.026 * (1 + t.count("\n")) + 0.008 for _, t, _ in wanted]
    for _ in range(200):  # push neighbours apart, both by half
        for i in range(1, len(heights)):
            short = halves[i] + halves[i - 1] - (heights[i] - heights[i - 1])
            if short > 1e-6:
                heights[i - 1] -= short / 2
                heights[i] += short / 2
    for (at, text, colour), height in zip(wanted, heights, strict=True):
        axes.annotate(
            text, xy=(1.0, at), xytext=(1.05, height), xycoords="axes fraction", color=colour, va="center", linespacing=1.05,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)},
        )  # fmt: skip


PLACES = ((7, 0, "left", "center"), (0, 6, "center", "bottom"), (0, -6, "center", "top"), (-7, 0, "right", "center"),
          (6, 6, "left", "bottom"), (6, -6, "left", "top"), (-6, 6, "right", "bottom"), (-6, -6, "right", "top"))  # fmt: skip


def _place(figure: Figure, axes: Axes, labels: Sequence[tuple[float, float, str, str]], methods: Sequence[Series]) -> None:
    """Each label beside its point, at the first of eight places where it meets no other label, point, line or edge."""
    figure.draw_without_rendering()
    marks = [tuple(axes.transData.transform((x, y))) for x, y, _, _ in labels]
    for method in methods:  # lines count as rows of points
        ends = [axes.transData.transform((c.training_flops or 1.0, c.value or 1.0)) for c in method.points]
        for (x0, y0), (x1, y1) in pairwise(ends):
            marks += [(x0 + (x1 - x0) * i / 40, y0 + (y1 - y0) * i / 40) for i in range(41)]
    taken: list[Any] = []
    inside = axes.get_window_extent()
    for x, y, text, colour in labels:
        tried: list[tuple[float, Annotation]] = []
        for dx, dy, ha, va in PLACES:
            note = axes.annotate(
                text, (x, y), xytext=(dx, dy), textcoords="offset points", ha=ha, va=va, color=colour, fontsize=7.5
            )
            box = note.get_window_extent()
            cost = 10.0 * sum(box.overlaps(other) for other in taken)
            cost += sum(bool(box.x0 - 2 < px < box.x1 + 2 and box.y0 - 2 < py < box.y1 + 2) for px, py in marks)
            cost += 20.0 * bool(box.x0 < inside.x0 or box.x1 > inside.x1 or box.y0 < inside.y0 or box.y1 > inside.y1)
            tried.append((cost, note))
        kept = min(tried, key=lambda entry: entry[0])[1]
        for _, note in tried:
            if note is not kept:
                note.remove()
        taken.append(kept.get_window_extent())


def _longest_first(rows: Sequence[list[Cell]]) -> list[list[Cell]]:
    """The row with most resolutions gets the first colour: it is the one that the table is about."""
    return sorted(rows, key=lambda row: -len(row))


def evaluations(cell: Cell) -> str:
    """"35 evaluations", from the counted ones; "" for real images."""
    return "" if cell.system == REAL or not cell.nfe else f"{number(cell.nfe)} evaluation{'s' if cell.nfe != 1 else ''}"


def _n(cells: Sequence[Cell]) -> int:
    return max((c.n for c in cells), default=0)

