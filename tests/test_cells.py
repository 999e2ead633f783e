"""Cells of a table: their CSV, their verdicts, and how they are shown."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from scipy import stats

from pagoda_bench.errors import UserError
from pagoda_bench.tables import latex, render, verdict
from pagoda_bench.tables.cells import DIRECTIONS, Cell, differences, from_csv, to_csv, together
from pagoda_bench.tables.terminal import terminal


def cell(value: float | None = 1.0, row: str = "a", resolution: int = 8, metric: str = "fd", **changes: Any) -> Cell:
    fields: dict[str, Any] = {
        "table": "t", "scale": "s", "row": row, "label": row.upper(), "system": "x", "resolution": resolution, "metric": metric,
        "direction": DIRECTIONS[metric], "value": value, "n": 1000, "blocks": 1, "scores": "k1", "weights": "w1",
        "protocol": {"extractor": "e", "resolution": resolution, "reference": f"r{resolution}"},
    }  # fmt: skip
    return Cell(**{**fields, **changes})


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    st.none() | st.floats(0, 1e9),
    st.none() | st.integers(0, 10**12),
    st.text("abc,\"'\n é", max_size=8),
)
def test_cells_survive_csv(value: float, stderr: float | None, parameters: int | None, label: str) -> None:
    cells = [cell(value, stderr=stderr, parameters=parameters, label=label), cell(None, metric="fd", status="not made: x")]
    assert from_csv(to_csv(cells), "x") == cells


def test_a_foreign_csv_is_refused() -> None:
    with pytest.raises(UserError, match="no column 'table'"):
        from_csv("a,b\n1,2\n", "x.csv")
    with pytest.raises(UserError, match=r"x\.csv, line 2"):
        from_csv(to_csv([cell()]).replace(",1000,", ",many,"), "x.csv")


def test_scores_of_another_n_or_protocol_get_a_table_of_their_own() -> None:
    other = cell(row="b", protocol={"extractor": "another", "resolution": 8, "reference": "r8"})
    few = cell(row="c", n=100)
    base = [cell(row="a"), cell(row="a", metric="is", protocol={"extractor": "e"}), cell(row="d", resolution=16)]
    groups = together([*base, other, few])
    assert [{c.row for c in g} for g in groups] == [{"a", "d"}, {"b"}, {"c"}]
    sheets = render.sheets([*base, other, few], "T")
    assert [s.title for s in sheets] == [
        "T",
        "Under another protocol, not comparable with the table above (extractor e and another)",
        "Under another protocol, not comparable with the table above (n 1000 and 100)",
    ]
    assert differences(base[0], base[2]) == []  # each resolution has its own real images
    assert differences(base[0], replace(base[0], protocol={**base[0].protocol, "reference": "x"})) == ["reference r8 and x"]


# Verdicts


def judged(value: float, committed: float, **changes: Any) -> str:
    ours = {k[5:]: v for k, v in changes.items() if k.startswith("ours_")}
    theirs = {k: v for k, v in changes.items() if not k.startswith("ours_")}
    return verdict.judge([cell(value, **ours)], [cell(committed, **theirs)])[0].verdict


def test_the_same_weights_and_samples_agree_within_two_percent() -> None:
    assert judged(1.0, 1.0) == verdict.SAME
    assert judged(1.02, 1.0) == verdict.SAME
    assert judged(1.021, 1.0) == verdict.DIFFERS
    assert judged(0.97, 1.0) == verdict.DIFFERS


def test_counted_scores_may_differ_by_a_few_samples() -> None:
    few = {"metric": "recall", "ours_metric": "recall"}
    assert judged(0.013, 0.010, **few) == verdict.SAME
    assert judged(0.014, 0.010, **few) == verdict.DIFFERS


def test_other_weights_are_judged_by_the_spread_of_their_blocks() -> None:
    blocks = {"blocks": 3, "std": 0.1, "ours_blocks": 3, "ours_std": 0.1, "weights": "other"}
    reach = stats.t.ppf(0.975, 4) * 0.1 * (2 / 3) ** 0.5  # Welch's degrees of freedom for equal variances: 4
    assert judged(1.0 + reach * 0.99, 1.0, **blocks) == verdict.SAME
    assert judged(1.0 + reach * 1.01, 1.0, **blocks) == verdict.DIFFERS
    tiny = {**blocks, "std": 1e-9, "ours_std": 1e-9}
    assert judged(1.019, 1.0, **tiny) == verdict.SAME  # never below what training again moves
    one_sided = {"blocks": 3, "std": 0.1, "weights": "other"}
    assert judged(1.0 + stats.t.ppf(0.975, 2) * 0.1 * (4 / 3) ** 0.5 * 0.99, 1.0, **one_sided) == verdict.SAME


def test_welch_agrees_with_scipy() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(1.0, 0.2, 6), rng.normal(1.1, 0.5, 4)
    interval = stats.ttest_ind(a, b, equal_var=False).confidence_interval(0.95)
    ours = verdict._welch(
        cell(a.mean(), blocks=6, std=float(a.std(ddof=1))), cell(b.mean(), blocks=4, std=float(b.std(ddof=1)))
    )
    exact = (interval.high - interval.low) / 2
    assert ours is not None
    assert exact * 0.999 <= ours <= exact * 1.15  # degrees of freedom below 5 are rounded down: never too narrow


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 7.5, 20, 1000])
def test_the_quantile_of_student(freedom: float) -> None:
    assert verdict.t_quantile(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), rel=2e-3)


def test_no_verdict_without_a_comparable_committed_value() -> None:
    assert verdict.judge([cell()], [])[0].verdict == verdict.NONE
    assert judged(1.0, 1.0, n=10000) == verdict.NONE
    found = verdict.judge([cell()], [cell(protocol={"extractor": "z", "resolution": 8, "reference": "r8"})])[0]
    assert found.verdict == verdict.NONE
    assert "extractor" in found.why
    assert "another recipe" in verdict.judge([cell()], [cell(scores="k2")])[0].why
    assert "n=1" in verdict.judge([cell()], [cell(weights="w2")])[0].why
    assert verdict.judge([cell(None)], [cell()]) == []


# Rendering


def test_numbers_keep_three_digits_and_errors_two() -> None:
    assert [render.number(v) for v in (0.0812345, 1.256, 12.34, 123.4, 1520.0, 1.0, 0.0, 0.00001, None)] == [
        "0.0812", "1.26", "12.3", "123", "1520", "1.00", "0.00", "0.0000", "–",
    ]  # fmt: skip
    assert render.with_error(0.86, 0.0074) == "0.8600 ± 0.0074"
    assert render.with_error(7.1, 0.034) == "7.100 ± 0.034"
    assert render.with_error(120.4, 12.3) == "120 ± 12"
    assert render.with_error(0.5, None) == "0.500"
    assert [render.count(v) for v in (999, 1.46e6, 2.1e15)] == ["999", "1.46M", "2.10P"]


def lines(**changes: Any) -> list[Cell]:
    return [
        cell(0.5, "good", 8, nfe=1.0), cell(0.9, "bad", 8, nfe=35.0), cell(0.1, "real", 8, system="data"),
        cell(0.8, "good", 8, "precision"), cell(0.9, "bad", 8, "precision"),
        Cell(table="t", scale="s", row="lost", label="LOST", system="x", resolution=16, status="not made: 50 % of the disk"),
    ]  # fmt: skip


def test_the_best_of_each_resolution_is_bold_real_images_aside() -> None:
    sheet = render.sheets(lines(), "T")[0]
    best = {(line.id, metric) for line in sheet.lines for metric in line.best}
    assert best == {("good-8", "fd"), ("bad-8", "precision")}
    text = render.markdown([sheet])
    assert "**0.500**" in text
    assert "**0.900**" in text
    assert "**0.100**" not in text
    assert "FD ↓" in text
    assert "Precision ↑" in text


def test_a_row_that_was_not_made_stays_visible_with_its_reason() -> None:
    sheet = render.sheets(lines(), "T")[0]
    for text in (render.markdown([sheet]), latex.latex([sheet]), shown(sheet, 200)):
        assert "not made" in text
        assert "LOST" in text
        assert "of the disk" in text


def shown(sheet: render.Sheet, width: int) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(terminal(sheet, width))
    return capture.get()


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_no_width_of_the_terminal_cuts_a_value(width: int) -> None:
    cells = [replace(c, stderr=0.01, blocks=3) if c.value else c for c in lines()]
    sheet = render.sheets(cells, "T", published={"good-8": "1.21 at 64 px"})[0]
    text = shown(sheet, width)
    assert "…" not in text
    assert max(len(line) for line in text.splitlines()) <= width
    for said in ("0.500 ± 0.010", "0.900 ± 0.010", "1.21 at 64 px", "not comparable", "NFE", "35"):
        assert said in text, said


def test_published_values_say_whether_they_may_be_compared() -> None:
    published = {"good-8": "1.21 at 64 px"}
    apart, beside = (render.sheets(lines(), "T", published=published, comparable=c)[0] for c in (False, True))
    assert "not comparable" in render.markdown([apart])
    assert "not comparable" in latex.latex([apart])
    assert "not comparable" not in render.markdown([beside])
    assert render.sheets(lines(), "T")[0].published == ""


def test_committed_values_and_verdicts_stand_in_the_table() -> None:
    cells = lines()
    moved = [replace(c, value=c.value * 2) if c.row == "bad" and c.value else c for c in cells]
    sheet = render.sheets(cells, "T", verdicts=verdict.judge(cells, moved))[0]
    committed = {line.id: (line.committed, line.same) for line in sheet.lines}
    assert committed["good-8"] == ("0.500, same", True)
    assert committed["bad-8"] == ("1.80, differs in FD and 1 more", False)


def test_latex_escapes_text_and_is_balanced() -> None:
    assert latex.escape("50 % & a_b {±} Fréchet ↓") == r"50 \% \& a\_b \{$\pm$\} Fr\'echet $\downarrow$"
    text = latex.latex(render.sheets(lines(), "T_1 & 50 %", published={"good-8": "1.21 at 64 px"}))
    assert text.isascii()
    for name in ("table", "tabular"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}") == 1
    body = text.split(r"\midrule")[1].split(r"\bottomrule")[0]
    head = text.split(r"\toprule")[1].split(r"\midrule")[0]
    rows = [line for line in body.splitlines() if line.endswith(r"\\")]
    assert {line.replace(r"\&", "").count("&") for line in rows} == {head.count("&")}
    assert text.count("{") == text.count("}")
