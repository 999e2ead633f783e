"""A table over several training seeds, the agreement of samples with their classes, and the figures that answer a question."""

from __future__ import annotations

import hashlib
import json
import statistics
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.text import Text

from pagoda_bench import resources
from pagoda_bench.artifacts.provenance import UPSTREAM_FLOPS
from pagoda_bench.artifacts.store import Artifact
from pagoda_bench.errors import UserError
from pagoda_bench.metrics.protocol import Protocol
from pagoda_bench.metrics.stages import alignment
from pagoda_bench.recipes.base import walk
from pagoda_bench.recipes.features import Pretrained
from pagoda_bench.tables import panels, render, spec, style, verdict
from pagoda_bench.tables.assemble import assemble, trained_from, weights
from pagoda_bench.tables.cells import ALIGNMENT, DISTANCE, Cell, from_csv, to_csv
from pagoda_bench.tables.lines import PlotSpec

GRID = spec.read(resources.folder("experiments") / "growing.yaml")
SEEDS = (0, 1, 2)
PROTOCOL = Protocol(
    extractor="x", weights="w", resize="r", resolution=16, reference="f", reference_n=9, n=200, labels="l", rounding="n"
)


def growing(*sets: str, full: bool = False, rows: tuple[str, ...] = ()) -> spec.Table:
    return spec.build(GRID, spec.load_scale(GRID, "smoke", sets), full=full).only(rows)


def artifacts_of(table: spec.Table, folder: Path, value: Any) -> dict[str, Artifact]:
    """Scores that were never made: `value(row, number of the score)` is the distance of each."""
    found = {}
    for row in table.rows:
        for number, score in enumerate(row.scores):
            path = folder / "score" / score.key
            path.mkdir(parents=True)
            scores = {DISTANCE: value(row, number), ALIGNMENT: 0.5 + number / 10, "precision": 0.5, "nfe": 7, "parameters": 9}
            (path / "score.json").write_text(json.dumps({"scores": scores, "protocol": PROTOCOL.to_dict()}))
            (path / "provenance.json").write_text(json.dumps({UPSTREAM_FLOPS: {}, "images_per_second": 1.0}))
            found[score.key] = Artifact(path)
    return found


@pytest.mark.parametrize("scale", ["smoke", "embedded"])
def test_every_row_of_the_questions_can_be_planned_at_every_seed(scale: str) -> None:
    table = spec.build(GRID, spec.load_scale(GRID, scale, ["seeds=[0,1,2]"]))
    for row in table.rows:
        trained = row.row != "real"
        assert row.trainings == len(row.scores) == (3 if trained else 1)
        assert len({score.key for score in row.scores}) == len(row.scores)
        assert len({score.reference.features.key for score in row.scores}) == 1, "one judge"
        for seed, score in zip(SEEDS, row.scores, strict=False):
            seeds = {r.seed for r in walk(score) if hasattr(r, "seed") and r.kind != "features"}
            assert seeds == ({seed} if trained else set())
    alone = {row.id: row.scores[0].key for row in spec.build(GRID, spec.load_scale(GRID, scale)).rows}
    assert alone == {row.id: row.scores[0].key for row in table.rows}, "seed 0 is the table without seeds"


def test_errors_are_over_trainings_not_over_ranges_of_samples(tmp_path: Path) -> None:
    table = growing("seeds=[0,1,2]", full=True, rows=("frozen", "real"))  # two ranges of indices each
    distances = [10.0, 12.0, 20.0, 22.0, 33.0, 35.0]
    found = artifacts_of(table, tmp_path, lambda row, number: distances[number])
    cells = assemble(table, found, {})
    frozen = {c.metric: c for c in cells if c.row == "frozen"}
    means = [11.0, 21.0, 34.0]
    assert (frozen[DISTANCE].value, frozen[DISTANCE].trainings, frozen[DISTANCE].blocks) == (22.0, 3, 3)
    assert frozen[DISTANCE].std == pytest.approx(statistics.stdev(means))
    assert frozen[DISTANCE].stderr == pytest.approx(statistics.stdev(means) / 3**0.5)
    assert (frozen[DISTANCE].min, frozen[DISTANCE].max) == (11.0, 34.0)
    real = next(c for c in cells if c.row == "real" and c.metric == DISTANCE)
    assert (real.value, real.trainings, real.blocks) == (11.0, 1, 2)
    text = render.markdown(render.sheets(cells, "T"))
    assert "3 trainings with seeds of their own, ± standard error over these" in text
    assert "22.0 ± 6.7" in text
    assert "| Alignment ↑ |" in text
    assert from_csv(to_csv(cells), "t") == cells


def test_weights_and_work_are_those_of_all_trainings(tmp_path: Path) -> None:
    table = growing("seeds=[0,1,2]", full=True, rows=("frozen",))  # two ranges of indices each
    (row,) = table.rows

    def assembled(weights: list[str], work: list[float]) -> Cell:
        """With those weights and that work of each training."""
        found = artifacts_of(table, tmp_path / "-".join([*weights, *map(str, work)]), lambda row, number: 10.0 + number)
        for number, score in enumerate(row.scores):
            recipes = trained_from(score)
            inputs = {f"{r.kind}/{r.key}": "judge" for r in (score.reference, score.reference.features)}
            inputs[f"{recipes[-1].kind}/{recipes[-1].key}"] = weights[number // 2]
            flops = {f"{r.kind}/{r.key}": work[number // 2] / len(recipes) for r in recipes}
            path = found[score.key].path / "provenance.json"
            path.write_text(json.dumps({UPSTREAM_FLOPS: flops, "inputs": inputs, "images_per_second": 1.0}))
        return next(c for c in assemble(table, {k: Artifact(a.path) for k, a in found.items()}, {}) if c.metric == DISTANCE)

    one, other = assembled(["a", "b", "c"], [6.0, 6.0, 12.0]), assembled(["a", "b", "d"], [6.0, 6.0, 6.0])
    assert one.training_flops == pytest.approx(8.0)
    assert other.training_flops == pytest.approx(6.0)
    assert (one.parameters, one.scores) == (9, other.scores)
    assert one.weights != other.weights, "only the first training has the same weights"
    assert one.weights == assembled(["a", "b", "c"], [6.0, 6.0, 6.0]).weights
    (found,) = verdict.judge([one], [other])
    assert found.why == "t-test over 3 and 3 blocks, or 2 %"
    alone = row.scores[0]  # the digest of one training is as it was: of names and digests, the judge left out
    made = trained_from(alone)[-1]
    artifact = Artifact(tmp_path / "a-b-c-6.0-6.0-12.0" / "score" / alone.key)
    expected = hashlib.sha256(f"{made.kind}/{made.key} a\n".encode()).hexdigest()[:20]
    assert weights([alone], [artifact]) == expected


def test_a_table_shows_the_columns_that_it_names_and_old_tables_are_still_read(tmp_path: Path) -> None:
    table = growing(rows=("frozen", "real"))
    cells = assemble(table, artifacts_of(table, tmp_path, lambda row, number: 3.0), {})
    assert {c.metric for c in cells} == {DISTANCE, "fd_over_floor", ALIGNMENT, "precision"}
    plain = assemble(replace(table, columns=(DISTANCE,)), artifacts_of(table, tmp_path / "again", lambda *_: 3.0), {})
    assert {c.metric for c in plain} == {DISTANCE, "fd_over_floor"}
    head, *lines = to_csv(plain).splitlines()
    assert head.endswith(",trainings")
    older = "\n".join(line.rpartition(",")[0] for line in (head, *lines)) + "\n"
    assert from_csv(older, "older") == plain


def test_alignment_is_the_share_of_samples_of_the_class_that_was_asked_for() -> None:
    score = growing(rows=("frozen",)).rows[0].scores[0].model_copy(update={"n": 20, "first": 7})
    logits = np.zeros((20, 10), np.float32)
    logits[np.arange(20), (np.arange(20) + 7) % 10] = 1.0
    assert alignment(score, logits, 10) == {"alignment": 1.0}
    logits[:5] = np.roll(logits[:5], 1, axis=1)
    assert alignment(score, logits, 10) == {"alignment": 0.75}
    assert alignment(score, logits[:, :9], 10) == {}, "a judge of other classes says nothing"
    published = score.reference.model_copy(update={"features": Pretrained(network="inception")})
    assert alignment(score.model_copy(update={"reference": published}), logits, 10) == {}
    assert PROTOCOL.of("alignment").reference is None


def cell(row: str, value: float, metric: str = DISTANCE, **more: Any) -> Cell:
    fields = {"label": row.capitalize(), "system": "x", "stderr": 0.1 * value, "blocks": 3, "trainings": 3, **more}
    return Cell(table="t", scale="s", row=row, resolution=64, metric=metric, direction="lower", value=value, n=1000, **fields)


DEPTHS = PlotSpec(name="depth", title="Depth", rows=("a", "b", "c"), over=(1, 2, 8), axis="Blocks")
BARS = PlotSpec(name="core", title="What becomes of the core in phase 2", rows=("a", "b", "c", "d"))
LABELS = {"a": "Frozen core", "b": "Frozen, then thawed", "c": "Core fine-tuned", "d": "End to end, from scratch"}
TWO = PlotSpec(name="two", title="T", rows=("a", "b", "c", "d"), over=(0.1, 0.4, 0.1, 0.4), axis="Level")
SWEPT = [  # values close to each other: long numbers at the axis
    cell(row, value, system=system, stderr=None)
    for row, value, system in zip(
        "abcd", (5.221, 5.234, 5.212, 5.201), ("noise", "noise", "truncated", "truncated"), strict=True
    )
]
CELLS = [
    *(cell(row, value, label=LABELS[row]) for row, value in zip("abcd", (21.0, 34.5, 18.2, 140.0), strict=True)),
    *(cell(row, value, ALIGNMENT, label=LABELS[row]) for row, value in zip("abcd", (0.92, 0.95, 0.97, 0.7), strict=True)),
    cell("real", 2.0, system="data", stderr=None, blocks=1, trainings=1),
    cell("real", 0.99, ALIGNMENT, system="data", stderr=None, blocks=1, trainings=1),
]


def test_points_stand_at_their_numbers_with_their_errors() -> None:
    figure = panels.panels(DEPTHS, CELLS[::-1])
    assert figure is not None
    for axes, values in zip(figure.axes, ((21.0, 34.5, 18.2), (0.92, 0.95, 0.97)), strict=True):
        line = next(line for line in axes.lines if len(line.get_xdata()) == 3)  # type: ignore[arg-type]
        assert np.column_stack([line.get_xdata(), line.get_ydata()]).tolist() == [
            [x, y] for x, y in zip((1, 2, 8), values, strict=True)
        ]
        bars = [np.ptp(segment[:, 1]) for segment in axes.collections[0].get_segments()]  # type: ignore[attr-defined]
        assert bars == pytest.approx([0.2 * v for v in values])
        assert axes.get_xscale() == "log"
    assert any("mean ± standard error of 3 trainings" in text.get_text() for text in figure.texts)


def test_each_system_has_a_line_of_its_own_and_they_are_named() -> None:
    figure = panels.panels(TWO, SWEPT[::-1])
    assert figure is not None
    (axes,) = figure.axes
    drawn = {str(c.get_label()): np.column_stack(c.lines[0].get_data()).tolist() for c in axes.containers}  # type: ignore[attr-defined]
    assert drawn == {"noise": [[0.1, 5.221], [0.4, 5.234]], "truncated": [[0.1, 5.212], [0.4, 5.201]]}
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["noise", "truncated"]
    figure.draw_without_rendering()
    assert not any(legend.get_window_extent().contains(*axes.transData.transform(p)) for line in drawn.values() for p in line)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["0.1", "0.4"]
    alone = panels.panels(DEPTHS, CELLS)
    assert alone is not None
    assert all(axes.get_legend() is None for axes in alone.axes)


def test_bars_stand_for_rows_and_a_row_that_was_not_made_leaves_its_place() -> None:
    figure = panels.panels(BARS, [c for c in CELLS if c.row != "b"])
    assert figure is not None
    left, right = figure.axes
    places = [p.get_x() + p.get_width() / 2 for p in left.patches]  # type: ignore[attr-defined]
    heights = [p.get_height() for p in left.patches]  # type: ignore[attr-defined]
    assert (places, heights) == (pytest.approx([0, 2, 3]), [21.0, 18.2, 140.0])
    figure.draw_without_rendering()
    assert [t.get_text() for t in right.get_xticklabels()][1] == "b\n(not made)"
    assert panels.panels(BARS, [c for c in CELLS if c.row == "real"]) is None
    alone = panels.panels(BARS, [c for c in CELLS if c.metric == DISTANCE])
    assert alone is not None
    assert len(alone.axes) == 1


@pytest.mark.parametrize(
    ("plot", "cells"), [(DEPTHS, CELLS), (BARS, CELLS), (TWO, SWEPT)], ids=["points", "bars", "two systems"]
)
def test_nothing_is_clipped_and_labels_do_not_touch(plot: PlotSpec, cells: list[Cell]) -> None:
    figure = panels.panels(plot, cells)
    assert figure is not None
    figure.draw_without_rendering()
    page = figure.bbox
    for axes in figure.axes:
        ticks = [Text.get_window_extent(t) for t in axes.get_xticklabels() if t.get_text()]
        others = [axes.xaxis.label, axes.yaxis.label, *axes.texts, *figure.texts]
        shown = [*ticks, *(Text.get_window_extent(t) for t in others if t.get_text())]
        for box in shown:
            assert page.x0 <= box.x0
            assert box.x1 <= page.x1
            assert page.y0 <= box.y0
            assert box.y1 <= page.y1
        for first, second in pairwise(ticks):
            assert not first.overlaps(second)
    assert style.files(figure) == style.files(panels.panels(plot, cells))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"columns": ["fd", "alignmnt"]}, "unknown column 'alignmnt'; did you mean 'alignment'"),
        ({"plots": [{"name": "p", "title": "P", "rows": ["frozn"]}]}, "plot 'p': unknown row 'frozn'; did you mean 'frozen'"),
        ({"plots": [{"name": "p", "title": "P", "rows": ["frozen"], "over": [1, 2], "axis": "x"}]}, "1 rows and 2 numbers"),
        ({"plots": [{"name": "p", "title": "P", "rows": ["frozen"], "over": [1]}]}, "give both or neither"),
        ({"plots": [{"name": "p", "title": "P", "rows": ["frozen"], "over": [0], "axis": "x"}]}, "use spacing 'even'"),
    ],
)
def test_wrong_figures_and_columns_are_refused_in_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        spec.TableSpec.load({**GRID.to_dict(), **change}, "growing.yaml")
    assert "\n" not in str(refused.value)
