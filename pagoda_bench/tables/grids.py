"""The grid of uncurated samples: one row for each method and resolution, one column for each class."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from pagoda_bench.artifacts.store import Artifact
from pagoda_bench.data import open_dataset
from pagoda_bench.recipes.data import DataConfig, ImageData, PreparedData
from pagoda_bench.tables.cells import Cell
from pagoda_bench.tables.plots import evaluations
from pagoda_bench.tables.render import REAL
from pagoda_bench.tables.spec import Table
from pagoda_bench.tables.style import DPI, STYLE

TILE = 0.58  # inches that one sample takes, whatever its resolution
GREY = "#666666"
PAGE = 12  # rows in a figure; of more, every figure has at most MANY below the real images, and about BYTES as a PNG
MANY = 8
BYTES = 450_000  # a file of a repository should stay below 500 KB, and what a page takes is known to some percent
TEXT = 4_000  # bytes of a row's words, of the classes, or of the caption
LABEL, LETTER = 1.75, 0.07  # inches for the labels at the left, at least; of a letter of theirs


@dataclass(frozen=True, kw_only=True)
class Samples:
    """The first samples of a row, one a class in the order of the classes: uint8 (K, R, R, 3). `group` parts the figure
    into blocks with a little space between them; `real` images stand above those of a method."""

    label: str
    images: NDArray[np.uint8]
    group: str
    note: str = ""
    real: bool = False


def pages(rows: Sequence[Samples]) -> list[list[Samples]]:
    """The rows of each figure: all in one where that can be read at a glance; else as many in each as the limits allow, and at
    least one, below the real images of their resolutions."""
    if len(rows) <= PAGE:
        return [list(rows)]
    real, methods = [r for r in rows if r.real], [r for r in rows if not r.real]
    side = max(row.images.shape[1] for row in rows)
    weights = {id(row): _weight(row, side) for row in rows}

    def page(part: Sequence[Samples]) -> list[Samples]:
        return [r for r in real if r.images.shape[1] in {m.images.shape[1] for m in part}] + list(part)

    parts = [[methods[0]]] if methods else []
    for method in methods[1:]:
        longer = [*parts[-1], method]
        if len(longer) <= MANY and sum(weights[id(r)] for r in page(longer)) + 2 * TEXT <= BYTES:
            parts[-1] = longer
        else:
            parts.append([method])
    return [page(part) for part in parts]


def _weight(row: Samples, side: int) -> int:
    """Bytes of a PNG that a row takes in a figure whose largest images have `side` px: noisy images are not compressed much."""
    strip = _strip(row.images, len(row.images), side)
    times = _times(side)
    buffer = io.BytesIO()
    Image.fromarray(strip.repeat(times, axis=0).repeat(times, axis=1)).save(buffer, format="PNG")
    return len(buffer.getvalue()) + TEXT


def sample_grid(rows: Sequence[Samples], classes: Sequence[str], caption: str) -> Figure | None:
    """Every row at the same display size, pixels enlarged without smoothing; None when there are no rows."""
    if not rows:
        return None
    columns = max(len(row.images) for row in rows)
    side = max(row.images.shape[1] for row in rows)
    gaps = [0.16 * (i > 0 and rows[i - 1].group != row.group) for i, row in enumerate(rows)]
    top, bottom, between = 0.32, 0.3, 0.05
    label = max(LABEL, LETTER * max(len(row.label) for row in rows) + 0.15)
    width = label + columns * TILE + 0.08
    height = top + bottom + len(rows) * TILE + (len(rows) - 1) * between + sum(gaps)
    dots = (side + 2 * _edge(side)) * _times(side)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure = Figure(figsize=(width, height), dpi=dots / TILE)
        y = height - top
        for row, gap in zip(rows, gaps, strict=True):
            y -= gap + TILE
            axes = figure.add_axes((label / width, y / height, columns * TILE / width, TILE / height))
            axes.imshow(_strip(row.images, columns, side), interpolation="nearest", aspect="auto", resample=False)
            axes.set_axis_off()
            resolution = row.images.shape[1]
            second = f"{resolution} px{', ' + row.note if row.note else ''}"
            for at, text, size, colour in ((0.62, row.label, 8.5, "black"), (0.33, second, 7, GREY)):
                x, up = (label - 0.1) / width, (y + TILE * at) / height
                figure.text(x, up, text, ha="right", va="center", fontsize=size, color=colour)
            y -= between
        for i, name in enumerate(classes[:columns]):
            at = (label + (i + 0.5) * TILE) / width
            figure.text(at, (height - top + 0.07) / height, _short(name), ha="center", va="bottom", fontsize=6.8)
        figure.text(label / width, 0.1 / height, caption, ha="left", va="bottom", fontsize=7, color=GREY)
    return figure


def _strip(images: NDArray[np.uint8], columns: int, side: int) -> NDArray[np.uint8]:
    """(K, R, R, 3) -> one strip of `columns` square tiles of about `side` px, each pixel repeated, white in between."""
    repeat = max(1, side // images.shape[1])
    big = images.repeat(repeat, axis=1).repeat(repeat, axis=2)
    tile = big.shape[1]
    edge = _edge(tile)
    strip = np.full((tile + 2 * edge, columns * (tile + 2 * edge), 3), 255, dtype=np.uint8)
    for i, image in enumerate(big):
        left = i * (tile + 2 * edge) + edge
        strip[edge : edge + tile, left : left + tile] = image
    return strip


def _times(side: int) -> int:
    """How often a figure repeats each pixel of its largest tiles, whole times so that nothing is resampled."""
    return max(1, round(DPI * TILE / (side + 2 * _edge(side))))


def _edge(tile: int) -> int:
    """White pixels at each side of a tile."""
    return max(1, tile // 32)


def _short(name: str) -> str:
    """A class name that fits above a column, on two lines if it has two words."""
    words = name.replace("_", " ").split(" ", 1)
    return "\n".join(word if len(word) <= 11 else word[:10] + "…" for word in words)


def rows_of(table: Table, artifacts: Mapping[str, Artifact], cells: Sequence[Cell]) -> list[Samples]:
    """The samples of every row that was made, real images first: the top line of the `samples.png` of its first block,
    which holds one sample a class in each line."""
    known = {c.id: c for c in cells if c.value is not None}
    rows = []
    for row in sorted(table.rows, key=lambda row: row.system != REAL):
        artifact = artifacts.get(row.scores[0].key) if row.scores else None
        if artifact is None or row.id not in known or not (path := artifact.path / "samples.png").is_file():
            continue
        with Image.open(path) as picture:
            line = np.asarray(picture.convert("RGB"))[: row.resolution]
        images = np.stack(np.split(line, line.shape[1] // row.resolution, axis=1))
        note = evaluations(known[row.id])
        rows.append(Samples(label=row.label, images=images, group=row.row, note=note, real=row.system == REAL))
    return rows


def class_names(data: DataConfig) -> tuple[str, ...]:
    """The classes in the order of their labels, without opening images; of prepared images their numbers."""
    if isinstance(data, PreparedData):
        return tuple(map(str, range(data.classes)))
    return data.classes if isinstance(data, ImageData) else open_dataset(data).classes
