"""The figures of a table: distance against resolution, distance against training work, and uncurated samples.

Colours are Okabe and Ito's, which colour-blind readers can tell apart; every series is also labelled where it ends.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from pagoda_bench.tables.cells import DISTANCE, Cell, values
from pagoda_bench.tables.render import REAL
from pagoda_bench.tables.style import STYLE

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")  # one more than the markers
MARKERS = ("o", "s", "^", "D", "v", "P")
FLOOR_COLOUR = "#666666"
HEIGHT, TALL = 3.5, 0.825  # inches of a figure, and the part of them that its axes take
LETTER = 0.065  # inches
MANY = 8  # labels at the right edge; more of them have one line each


@dataclass(frozen=True, kw_only=True)
class Series:
    """One method: its measured distances by resolution, and how it is drawn."""

    label: str
    points: Sequence[Cell]
    colour: str
    marker: str


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
    """Fréchet distance of every method over resolution, logarithmic, above the noise floor; None without any distance, and
    when several methods stand at one resolution: that axis would tell nothing apart."""
    methods, real = series(cells)
    if not methods:
        return None
    resolutions = sorted({c.resolution for m in methods for c in m.points} | {c.resolution for c in real})
    if len(resolutions) == 1 and len(methods) > 1:
        return None
    ends = [(m.points[-1], m.label, m.colour) for m in methods]
    ends += [(real[-1], "Real images:\nnoise floor", FLOOR_COLOUR)] if real else []
    last = [(c, _named(t, c), colour) for c, t, colour in ends if c.resolution == resolutions[-1]]
    if len(last) > MANY:
        last = [(c, text.replace(":\n", ": ").replace("\n", ", "), colour) for c, text, colour in last]
    with matplotlib.rc_context(STYLE):
        figure, axes = _beside([text for _, text, _ in last])
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        axes.set_xlim(resolutions[0] / 1.25, resolutions[-1] * 1.12)
        axes.xaxis.set_major_locator(FixedLocator(resolutions))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:.0f}"))
        limits(axes, [c for m in methods for c in m.points] + real)
        if real:
            xs = [axes.get_xlim()[0], *(c.resolution for c in real), axes.get_xlim()[1]]
            ys = [c.value or 0 for c in real]
            ys = [ys[0], *ys, ys[-1]]
            axes.plot(xs, ys, color=FLOOR_COLOUR, linewidth=1, linestyle=(0, (4, 2)), zorder=1)
            axes.fill_between(xs, ys, [axes.get_ylim()[0]] * len(xs), color="#f0f0f0", linewidth=0, zorder=0.5)
        for method in methods:
            _line(axes, [c.resolution for c in method.points], method)
        _end_labels(axes, last)
        inner = [
            (c.resolution, c.value or 0.0, _named(t, c), colour) for c, t, colour in ends if c.resolution != resolutions[-1]
        ]
        lines = [[(c.resolution, c.value or 0.0) for c in method.points] for method in methods]
        _place(axes, inner, [*lines, [(c.resolution, c.value or 0.0) for c in real]])
        axes.set_xlabel("Resolution (px)")
        axes.set_ylabel(f"Fréchet distance, N = {n_of(cells):,}")
    return figure


def distance_by_work(cells: Sequence[Cell]) -> Figure | None:
    """Fréchet distance of every row over the floating-point work of its training; None when no row has both, and when
    all of several cost the same: that axis would tell nothing apart."""
    methods, _ = series([c for c in cells if c.system == REAL or c.training_flops])
    if not methods:
        return None
    points = [c for m in methods for c in m.points]
    work = [c.training_flops or 1.0 for c in points]
    low, high = min(work), max(work)
    if low == high and len(points) > 1:
        return None
    labels = []
    for method in methods:
        for cell in method.points:
            name = f"{method.label}, " if cell is method.points[-1] else ""
            labels.append((cell, f"{name}{cell.resolution} px", method.colour))
    # Rows of equal work stand above each other; too many for labels around them have these at the edge.
    dearest = [label for label in labels if (label[0].training_flops or 1.0) > 0.95 * high]
    edge = dearest if len(dearest) > MANY else []
    with matplotlib.rc_context(STYLE):
        figure, axes = _beside([text for _, text, _ in edge]) if edge else axes_of(5.6, HEIGHT, right=0.955)
        axes.set_xscale("log")
        axes.set_yscale("log")
        margin = max((high / low) ** 0.12, 1.15)
        axes.set_xlim(low / margin, high * margin ** (0.5 if edge else 2.4))
        limits(axes, points)
        for method in methods:
            _line(axes, [c.training_flops or 1.0 for c in method.points], method)
        axes.xaxis.set_major_locator(FixedLocator(ticks(*axes.get_xlim())))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(_power))
        axes.set_xlabel("Training work, upstream stages included (floating-point operations)")
        axes.set_ylabel(f"Fréchet distance, N = {n_of(cells):,}")
        if edge:
            _end_labels(axes, edge)
        inner = [
            (c.training_flops or 1.0, c.value or 0.0, text, colour)
            for c, text, colour in labels
            if (c, text, colour) not in edge
        ]
        _place(axes, inner, [[(c.training_flops or 1.0, c.value or 0.0) for c in method.points] for method in methods])
    return figure


def _beside(texts: Sequence[str]) -> tuple[Figure, Axes]:
    """A figure with room for these labels, one below the other, at its right."""
    letters = max((len(line) for text in texts for line in text.split("\n")), default=0)
    edge = max(1.57, 0.3 + LETTER * letters)
    width, height = 4.03 + edge, max(HEIGHT, sum(map(_tall, texts)) / (1.06 * TALL))
    return axes_of(width, height, right=4.03 / width)


def _tall(text: str) -> float:
    """Inches that a label takes, with a little space around it."""
    return 0.15 * (1 + text.count("\n")) + 0.046


def axes_of(width: float, height: float, right: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(width, height))
    left, low = 0.616 / width, 0.145 * HEIGHT / height  # room for the ticks, in inches the same
    axes = figure.add_axes((left, low, right - left, 1 - low - 0.03 * HEIGHT / height))
    return figure, axes


def limits(axes: Axes, cells: Sequence[Cell]) -> None:
    """Room around the values, with round ticks 1-2-5."""
    heights = [c.value for c in cells if c.value and c.value > 0] or [1.0]
    low, high = min(heights) / 1.5, max(heights) * 1.35
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator(ticks(low, high)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))


def ticks(low: float, high: float) -> list[float]:
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
        xs,
        ys,
        yerr=errors if any(errors) else None,
        color=method.colour,
        marker=method.marker,
        markersize=6,
        linewidth=1.4,
        capsize=0,
        elinewidth=1.0,
        markeredgecolor="white",
        markeredgewidth=0.6,
        zorder=3,
    )


def _end_labels(axes: Axes, ends: Sequence[tuple[Cell, str, str]]) -> None:
    """Labels right of the axes at the height of each series' end, moved apart where they would touch."""
    low, high = (math.log(v) for v in axes.get_ylim())
    wanted = sorted(((math.log(max(c.value or 0, 1e-12)) - low) / (high - low), t, colour) for c, t, colour in ends)
    heights = [h for h, _, _ in wanted]
    figure = axes.get_figure(root=True)
    assert figure is not None
    inches = axes.get_position().height * figure.get_figheight()
    halves = [_tall(t) / 2 / inches for _, t, _ in wanted]
    for _ in range(400):  # push neighbours apart, both by half, and back from the ends
        for i in range(1, len(heights)):
            short = halves[i] + halves[i - 1] - (heights[i] - heights[i - 1])
            if short > 1e-6:
                heights[i - 1] -= short / 2
                heights[i] += short / 2
        heights[0] = max(heights[0], halves[0] - 0.06)
        heights[-1] = min(heights[-1], 1.02 - halves[-1])
    for (at, text, colour), height in zip(wanted, heights, strict=True):
        axes.annotate(
            text, xy=(1.0, at), xytext=(1.05, height), xycoords="axes fraction", color=colour, va="center", linespacing=1.05,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1, "shrinkB": 0, "relpos": (0, 0.5)},
        )  # fmt: skip


DIRECTIONS = ((1, 0), (0, 1), (0, -1), (-1, 0), (0.8, 0.8), (0.8, -0.8), (-0.8, 0.8), (-0.8, -0.8))
REACHES = (7, 15, 25, 38, 54)  # points from a point to its label; from the second on with a thin line
Box = tuple[float, float, float, float]


def _place(axes: Axes, labels: Sequence[tuple[float, float, str, str]], lines: Sequence[Sequence[tuple[float, float]]]) -> None:
    """Each label (x, y, text, colour) as near to its point as can be without meeting a label, a point, a line or an edge."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    scale = figure.dpi / 72
    marks = [point for line in lines for point in _along([tuple(axes.transData.transform(p)) for p in line])]
    edge = axes.get_window_extent()
    taken: list[Box] = []
    for x, y, text, colour in labels:
        note = axes.annotate(text, (x, y), xytext=(0, 0), textcoords="offset points", color=colour, fontsize=8)
        size = note.get_window_extent()
        px, py = axes.transData.transform((x, y))
        found: list[tuple[float, int, Box]] = []
        for reach in REACHES:
            for right, up in DIRECTIONS:
                left = px + right * reach * scale - size.width * (1 - right / max(abs(right), 1e-9)) / 2
                low = py + up * reach * scale - size.height * (1 - up / max(abs(up), 1e-9)) / 2
                box = (left, low, left + size.width, low + size.height)
                cost = reach / 20 + 10.0 * sum(_overlap(box, other) for other in taken)
                cost += sum(_overlap(box, (mx, my, mx, my), 2 * scale) for mx, my in marks)
                outside = box[0] < edge.x0 + 2 or box[2] > edge.x1 or box[1] < edge.y0 + 2 or box[3] > edge.y1
                found.append((cost + 50.0 * outside, reach, box))
        _, distance, box = min(found, key=lambda place: place[0])
        taken.append(box)
        note.set_position(((box[0] - px) / scale, (box[1] - py) / scale))
        note.set_verticalalignment("bottom")
        if distance > REACHES[0]:
            near = (min(max(px, box[0]), box[2]), min(max(py, box[1]), box[3]))
            ends = axes.transData.inverted().transform([(px, py), near])
            axes.plot(*zip(*ends, strict=True), color=colour, linewidth=0.6, zorder=1.5, label="_leader")


def _along(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points of a line and 40 between each two, so that a label that avoids them avoids the line."""
    between = [(x0 + (x1 - x0) * i / 40, y0 + (y1 - y0) * i / 40) for (x0, y0), (x1, y1) in pairwise(points) for i in range(40)]
    return [*between, *points[-1:]]


def _overlap(a: Box, b: Box, margin: float = 0.0) -> bool:
    return a[0] - margin < b[2] and b[0] - margin < a[2] and a[1] - margin < b[3] and b[1] - margin < a[3]


def _named(text: str, cell: Cell) -> str:
    return f"{text}\n{evaluations(cell)}".strip()


def _longest_first(rows: Sequence[list[Cell]]) -> list[list[Cell]]:
    """The row with most resolutions gets the first colour: it is the one that the table is about."""
    return sorted(rows, key=lambda row: -len(row))


def evaluations(cell: Cell) -> str:
    """E.g. "35 evaluations", from the counted ones; "" for real images."""
    return "" if cell.system == REAL or not cell.nfe else f"{cell.nfe:g} evaluation{'s' if cell.nfe != 1 else ''}"


def n_of(cells: Sequence[Cell]) -> int:
    return max((c.n for c in cells), default=0)
