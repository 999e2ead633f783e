"""Figures that answer one question of a table each: distance and alignment of some of its rows, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from pagoda_bench.tables.cells import ALIGNMENT, DISTANCE, Cell
from pagoda_bench.tables.lines import PlotSpec
from pagoda_bench.tables.plots import FLOOR_COLOUR, MARKERS, PALETTE
from pagoda_bench.tables.render import REAL, number
from pagoda_bench.tables.style import STYLE

WIDTH, HEIGHT = 3.7, 2.9  # inches of a panel
LEFT = 0.19  # of a panel, for its ticks and what they are
LINE = 14  # letters of a label in one line


def panels(plot: PlotSpec, cells: Sequence[Cell]) -> Figure | None:
    """The figure of `plot`; None where none of its rows was measured. A dashed line is what real images have. A row that was
    not made leaves its place empty. Rows are taken at the highest resolution at which they stand."""
    found = {metric: _values(cells, metric) for metric in (DISTANCE, ALIGNMENT)}
    shown = [metric for metric in found if any(row in found[metric] for row in plot.rows)]
    if not shown:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH * len(shown), HEIGHT))
        for place, metric in enumerate(shown):
            left, width = (place + LEFT) / len(shown), (0.96 - LEFT) / len(shown)
            axes = figure.add_axes((left, 0.235, width, 0.635))
            _panel(axes, plot, found[metric])
            cell = next(iter(found[metric].values()))
            axes.set_ylabel("Alignment ↑" if metric == ALIGNMENT else f"Fréchet distance ↓, N = {cell.n:,}")
        figure.text(LEFT / len(shown), 0.965, plot.title, ha="left", va="top", fontsize=9)
        notes = [_errors([found[m][row] for m in shown for row in plot.rows if row in found[m]])]
        notes += ["dashed: real images"] * any(REAL in found[m] for m in shown)
        said = "; ".join(note for note in notes if note)
        figure.text(0.995, 0.02, said, ha="right", va="bottom", fontsize=6.5, color=FLOOR_COLOUR)
    return figure


def _values(cells: Sequence[Cell], metric: str) -> dict[str, Cell]:
    """The measured cell of each row; that of real images is called `REAL`."""
    found: dict[str, Cell] = {}
    for cell in sorted((c for c in cells if c.metric == metric and c.value is not None), key=lambda c: c.resolution):
        found[REAL if cell.system == REAL else cell.row] = cell
    return found


def _errors(cells: Sequence[Cell]) -> str:
    """What the error bars are, "" where there are none."""
    cell = max((c for c in cells if c.stderr), key=lambda c: c.blocks, default=None)
    if cell is None:
        return ""
    return f"mean ± standard error of {cell.blocks} {'trainings' if cell.trainings > 1 else 'ranges of samples'}"


def _panel(axes: Axes, plot: PlotSpec, found: dict[str, Cell]) -> None:
    places = plot.over or tuple(range(len(plot.rows)))
    drawn = [(at, found[row]) for at, row in zip(places, plot.rows, strict=True) if row in found]
    xs, ys = [at for at, _ in drawn], [cell.value or 0.0 for _, cell in drawn]
    errors = [cell.stderr or 0.0 for _, cell in drawn]
    low = min(y - e for y, e in zip(ys, errors, strict=True))
    high = max(y + e for y, e in zip(ys, errors, strict=True))
    real = found.get(REAL)
    if plot.over:
        systems = list(dict.fromkeys(cell.system for _, cell in drawn))
        for place, system in enumerate(systems):
            _line(axes, [(at, cell) for at, cell in drawn if cell.system == system], place)
        _numbers(axes, plot)
        room = high - low or abs(high) or 1.0
        axes.set_ylim(max(0.0, low - 0.2 * room), high + 0.25 * room)
        if len(systems) > 1:
            above = (0.0, 1.0)
            axes.legend(loc="lower left", bbox_to_anchor=above, ncols=len(systems), fontsize=7, frameon=False, borderaxespad=0)
        if real is not None:  # often far below: drawn where the axis reaches, never a reason to flatten the rest
            axes.axhline(real.value or 0.0, color=FLOOR_COLOUR, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
    else:
        axes.bar(
            xs, ys, width=0.62, yerr=errors if any(errors) else None, zorder=2,
            color=[PALETTE[plot.rows.index(cell.row) % len(PALETTE)] for _, cell in drawn],
            error_kw={"elinewidth": 1.0, "capsize": 3},
        )  # fmt: skip
        for x, y, error in zip(xs, ys, errors, strict=True):
            axes.annotate(number(y), (x, y + error), xytext=(0, 2), textcoords="offset points", ha="center", fontsize=7.5)
        axes.set_xlim(-0.6, len(plot.rows) - 0.4)
        axes.set_ylim(0, 1.15 * max(high, (real.value or 0.0) if real else 0.0) or 1.0)
        axes.xaxis.set_major_locator(FixedLocator(list(range(len(plot.rows)))))
        names = [_lines(found[row].label) if row in found else f"{row}\n(not made)" for row in plot.rows]
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: names[round(x)] if 0 <= round(x) < len(names) else ""))
        axes.tick_params(axis="x", labelsize=7, length=0)
        axes.grid(axis="x", visible=False)
        if real is not None:
            axes.axhline(real.value or 0.0, color=FLOOR_COLOUR, linewidth=1, linestyle=(0, (4, 2)), zorder=3)


def _line(axes: Axes, points: Sequence[tuple[float, Cell]], place: int) -> None:
    """One system's values over its numbers, in the colour and with the marker of its place."""
    points = sorted(points, key=lambda point: point[0])
    errors = [cell.stderr or 0.0 for _, cell in points]
    axes.errorbar(
        [at for at, _ in points], [cell.value or 0.0 for _, cell in points], yerr=errors if any(errors) else None,
        color=PALETTE[place % len(PALETTE)], marker=MARKERS[place % len(MARKERS)], markersize=6, linewidth=1.4, elinewidth=1.0,
        markeredgecolor="white", markeredgewidth=0.6, zorder=3, label=points[0][1].system,
    )  # fmt: skip


def _numbers(axes: Axes, plot: PlotSpec) -> None:
    """Ticks at the numbers themselves."""
    low, high = min(plot.over), max(plot.over)
    if plot.spacing == "log":
        axes.set_xscale("log")
        margin = max((high / low) ** 0.12, 1.1)
        axes.set_xlim(low / margin, high * margin)
    else:
        margin = 0.12 * (high - low) or 1.0
        axes.set_xlim(low - margin, high + margin)
    axes.xaxis.set_major_locator(FixedLocator(sorted(set(plot.over))))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.set_xlabel(plot.axis)


def _lines(text: str) -> str:
    """A label broken between words where it is long."""
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > LINE:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
