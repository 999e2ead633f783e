"""A figure for tables whose rows are worth comparing with another row each: one distance over another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from pagoda_bench.tables.cells import DISTANCE, Cell, values
from pagoda_bench.tables.plots import FLOOR_COLOUR, MARKERS, PALETTE, axes_of, limits, n_of, ticks
from pagoda_bench.tables.render import REAL
from pagoda_bench.tables.style import STYLE


def distance_against(cells: Sequence[Cell], against: Mapping[str, str], label: str) -> Figure | None:
    """The Fréchet distance of each row over that of the row which `against` names, at the same resolution: one line a system.
    On the dashed diagonal both are alike. None where no pair of rows was measured. `label` says what the other rows are."""
    measured = {(c.row, c.resolution): c for c in values(cells, DISTANCE).values()}
    lines: dict[str, list[tuple[float, Cell]]] = {}
    for (row, resolution), cell in measured.items():
        other = measured.get((against.get(row, ""), resolution))
        if other is not None and other.value and cell.value:
            lines.setdefault(cell.system, []).append((other.value, cell))
    if not lines:
        return None
    real = [c.value for c in measured.values() if c.system == REAL and c.value]
    everything = [cell for line in lines.values() for _, cell in line]
    xs = [x for line in lines.values() for x, _ in line]
    with matplotlib.rc_context(STYLE):
        figure, axes = axes_of(4.6, 3.6, right=0.97)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlim(min(xs) / 1.2, max(xs) * 1.2)
        limits(axes, [*everything, *(c for c in measured.values() if c.system == REAL)])
        axes.xaxis.set_major_locator(FixedLocator(ticks(*axes.get_xlim())))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
        span = axes.get_xlim()
        axes.plot(span, span, color=FLOOR_COLOUR, linewidth=0.8, linestyle=(0, (4, 2)), zorder=1, label=f"as the {label}")
        for floor in real[:1]:
            axes.axhline(floor, color=FLOOR_COLOUR, linewidth=0.8, zorder=1, label="Real images")
        for i, (system, line) in enumerate(lines.items()):
            at = sorted(line, key=lambda point: point[0])
            axes.errorbar(
                [x for x, _ in at],
                [c.value or 0 for _, c in at],
                yerr=[c.stderr or 0 for _, c in at] if any(c.stderr for _, c in at) else None,
                color=PALETTE[i % len(PALETTE)],
                marker=MARKERS[i % len(MARKERS)],
                linewidth=1.4,
                markeredgecolor="white",
                markeredgewidth=0.6,
                zorder=3,
                label=system,
            )
        axes.legend(frameon=False, loc="best")
        axes.set_xlabel(f"Fréchet distance of {label}")
        axes.set_ylabel(f"Fréchet distance, N = {n_of(cells):,}")
    return figure
