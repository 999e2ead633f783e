"""The figures: what is drawn, where labels lie, and that the same numbers give the same bytes."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from pagoda_bench.tables import grids, plots, style
from pagoda_bench.tables.cells import DISTANCE, Cell
from pagoda_bench.tables.grids import Samples


def cell(row: str, resolution: int, value: float, work: float | None = 1e15, system: str = "x") -> Cell:
    return Cell(
        table="t", scale="s", row=row, label=row.capitalize(), system=system, resolution=resolution, metric=DISTANCE,
        direction="lower", value=value, n=1000, blocks=1, nfe=1.0, training_flops=work,
    )  # fmt: skip


CELLS = [
    *(cell("grown", r, 0.2 + r / 300, 1e15 + r * 2e13) for r in (8, 16, 32, 64)),
    cell("teacher", 8, 0.9, 9e14),
    cell("direct", 64, 1.9, 2e15),
    *(cell("enlarged", 64, v, 1e15) for v in (4.0,)),
    *(cell("real", r, 0.1, None, "data") for r in (8, 16, 32, 64)),
]
FIGURES = pytest.mark.parametrize("draw", [plots.distance_by_resolution, plots.distance_by_work])


def axes_of(figure: Figure | None) -> Axes:
    assert figure is not None
    return figure.axes[0]


@FIGURES
def test_the_same_cells_give_the_same_bytes(draw: Callable[[list[Cell]], Figure | None]) -> None:
    first, second = draw(CELLS), draw(CELLS)
    assert first is not None
    assert second is not None
    assert style.files(first) == style.files(second)
    assert b"<dc:date>" not in style.files(first)["svg"]


CROWDED = [
    *(replace(c, value=0.5 + i / 300, training_flops=1e15 * (1 + i / 40)) for i, c in enumerate(CELLS) if c.row != "real"),
    *(c for c in CELLS if c.row == "real"),
]


MANY = [
    *CELLS,
    *(cell(f"a row with a long name {i}", 64, 1.0 + 0.1 * i, 4e15) for i in range(16)),
]


@FIGURES
@pytest.mark.parametrize("cells", [CELLS, CROWDED, MANY], ids=["spread", "crowded", "many"])
def test_labels_do_not_touch_and_stay_on_the_page(draw: Callable[[list[Cell]], Figure | None], cells: list[Cell]) -> None:
    figure = draw(cells)
    assert figure is not None
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(text) for text in figure.axes[0].texts]
    assert len(boxes) >= 4
    page = figure.bbox
    for i, box in enumerate(boxes):
        assert page.x0 <= box.x0
        assert box.x1 <= page.x1
        assert page.y0 <= box.y0
        assert box.y1 <= page.y1
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])


def test_every_method_is_drawn_at_its_values_above_the_noise_floor() -> None:
    axes = axes_of(plots.distance_by_resolution(CELLS))
    drawn = [np.column_stack([line.get_xdata(), line.get_ydata()]).tolist() for line in axes.lines]
    assert [[float(r), 0.2 + r / 300] for r in (8, 16, 32, 64)] in drawn
    assert [[8.0, 0.9]] in drawn
    assert [[64.0, 1.9]] in drawn
    floor = next(line for line in axes.lines if line.get_color() == plots.FLOOR_COLOUR)
    assert np.unique(np.asarray(floor.get_ydata())).tolist() == [0.1]
    assert axes.get_yscale() == "log"
    assert [t.get_text().split("\n")[0] for t in axes.texts if "Real" in t.get_text()] == ["Real images:"]


def test_rows_without_known_work_are_left_out_of_the_plot_of_work() -> None:
    axes = axes_of(plots.distance_by_work([*CELLS, cell("unknown", 64, 1.0, None)]))
    assert not any("Unknown" in text.get_text() for text in axes.texts)
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")


def test_rows_that_all_cost_the_same_have_no_plot_of_work() -> None:
    same = [cell("one", 64, 3.0, 1e14), cell("other", 64, 4.0, 1e14), cell("real", 64, 0.1, None, "data")]
    assert plots.distance_by_work(same) is None
    assert plots.distance_by_work(same[1:]) is not None
    assert plots.distance_by_work([*same, cell("dear", 64, 2.0, 1.01e14)]) is not None


def test_nothing_measured_draws_nothing() -> None:
    lost = Cell(table="t", scale="s", row="r", label="R", system="x", resolution=8, status="not made: no disk")
    assert plots.distance_by_resolution([lost]) is None
    assert plots.distance_by_work([lost]) is None
    assert grids.sample_grid([], [], "") is None


def test_colours_are_told_apart_and_the_longest_row_gets_the_first() -> None:
    methods, real = plots.series(CELLS)
    assert methods[0].label == "Grown"
    assert methods[0].colour == plots.PALETTE[0]
    assert len({m.colour for m in methods}) == len(methods) == 4
    assert [c.resolution for c in real] == [8, 16, 32, 64]


@pytest.mark.parametrize(("low", "high"), [(0.05, 9.0), (1e14, 3e15), (0.9, 1.3), (1e-3, 1e4)])
def test_ticks_are_round_few_and_inside(low: float, high: float) -> None:
    ticks = plots.ticks(low, high)
    assert 1 <= len(ticks) <= 8
    assert all(low <= t <= high for t in ticks)
    assert ticks == sorted(ticks)


def test_the_grid_shows_pixels_as_they_are() -> None:
    """A 2 px image is enlarged by repetition: the rendered tile holds its colours only, white gaps aside."""
    small = np.array([[[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [0, 0, 0]]]] * 3, dtype=np.uint8)
    large = np.zeros((3, 8, 8, 3), np.uint8) + np.uint8(64)
    strip = grids._strip(small, 3, 8)
    assert strip.shape == (10, 30, 3)
    assert (strip[1, 1] == [255, 0, 0]).all()
    assert (strip[1:5, 1:5] == [255, 0, 0]).all()
    assert (strip[0] == 255).all()
    assert {tuple(p) for p in strip.reshape(-1, 3).tolist()} == {(255, 0, 0), (0, 255, 0), (0, 0, 255), (0, 0, 0), (255,) * 3}
    rows = [Samples(label="A", images=small, group="a"), Samples(label="B", images=large, group="b", note="1 evaluation")]
    figure = grids.sample_grid(rows, ["disc on dark", "a_very_long_class_name", "c"], "caption")
    assert figure is not None
    texts = [text.get_text() for text in figure.texts]
    assert texts == ["A", "2 px", "B", "8 px, 1 evaluation", "disc\non dark", "a\nvery long …", "c", "caption"]
    with Image.open(io.BytesIO(style.files(figure)["png"])) as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or []}
    assert {(255, 0, 0), (0, 255, 0), (0, 0, 255), (64, 64, 64)} <= colours


def test_many_rows_are_shown_on_several_pages_below_the_real_images_of_their_sizes() -> None:
    def row(label: str, side: int, real: bool = False) -> Samples:
        return Samples(label=label, images=np.zeros((2, side, side, 3), np.uint8), group=label, real=real)

    real = [row("real 8", 8, True), row("real 64", 64, True)]
    few = real + [row(str(i), 8) for i in range(10)]
    assert grids.pages(few) == [few]
    pages = grids.pages([*few, *(row(str(i), 64) for i in range(10, 20))])
    assert [[r.label for r in page] for page in pages] == [
        ["real 8", *"01234567"],
        ["real 8", "real 64", *"89", *map(str, range(10, 16))],
        ["real 64", *map(str, range(16, 20))],
    ]


@pytest.mark.parametrize("noise", [255, 24])
def test_no_page_of_a_long_table_is_larger_than_a_repository_keeps_and_none_is_shorter_than_need_be(noise: int) -> None:
    """Noisy images can hardly be compressed: a page has fewer of them, and yet as many as fit."""
    random = np.random.default_rng(0)

    def row(label: str, side: int, strength: int, real: bool = False) -> Samples:
        images = random.integers(0, strength, (10, side, side, 3), np.uint8, endpoint=True)
        return Samples(label=label, images=images, group=label, real=real, note="8 evaluations")

    real = [row("Real images", 8, noise, True), row("Real images", 64, noise, True)]
    methods = [row(f"Method {i}", 8 if i < 4 else 64, noise) for i in range(14)]
    pages = grids.pages([*real, *methods])
    assert [id(r) for page in pages for r in page if not r.real] == [id(m) for m in methods]

    def size(page: list[Samples]) -> int:
        figure = grids.sample_grid(page, ["disc on dark"] * 10, "Uncurated: the first sample of each class.")
        assert figure is not None
        return len(style.files(figure)["png"])

    lengths = [sum(not r.real for r in page) for page in pages]
    assert len(set(lengths[1:-1])) == 1
    assert lengths[1] < grids.MANY
    for page, after in pairwise(pages):
        assert size(page) < 460_000
        assert size([*page, next(r for r in after if not r.real)]) > 440_000
    assert size(pages[-1]) < 460_000
