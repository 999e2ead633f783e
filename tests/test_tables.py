"""From an experiment file to a table: rows, cells, verdicts, rendering, and the command, with stages that only pretend."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from rich.console import Console
from scipy import stats

from pagoda_bench import resources
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.cli.main import main
from pagoda_bench.errors import UserError
from pagoda_bench.metrics.protocol import Protocol
from pagoda_bench.plan import inline
from pagoda_bench.recipes.base import Recipe, walk
from pagoda_bench.recipes.data import ImageData
from pagoda_bench.recipes.stages import EDM, Grow, Heun, OneStep, Score, Upsampled
from pagoda_bench.tables import latex, methods, render, report, spec, verdict
from pagoda_bench.tables.assemble import trained_from
from pagoda_bench.tables.cells import DIRECTIONS, Cell, differences, from_csv, to_csv, together
from pagoda_bench.tables.terminal import terminal

SPEC = spec.read(resources.folder("experiments") / "table1.yaml")
IMAGES = ImageData(digest="0" * 64, master=32, classes=tuple("abcdefghij"), name="cifar10")


def table(scale: str = "embedded", *sets: str, full: bool = False) -> spec.Table:
    describe = (lambda _section: IMAGES) if spec.needs_data(SPEC, scale) else None
    return spec.build(SPEC, spec.load_scale(SPEC, scale, sets, describe), full=full, changed=bool(sets))


# The grid


@pytest.mark.parametrize("scale", sorted(SPEC.scales))
@pytest.mark.parametrize("full", [False, True])
def test_every_scale_is_a_grid_of_valid_recipes(scale: str, full: bool) -> None:
    found = table(scale, full=full)
    assert len({row.id for row in found.rows}) == len(found.rows)
    assert len({score.key for score in found.scores}) == len(found.scores)
    for row in found.rows:
        assert row.generator.resolution == row.resolution
        assert {s.n for s in row.scores} == {found.sampling.n}
        ranges = [range(s.first, s.first + s.n) for s in row.scores]
        assert len(set().union(*ranges)) == found.sampling.n * found.sampling.blocks  # disjoint
        for recipe in (r for score in row.scores for r in walk(score)):
            assert type(recipe).load(recipe.to_dict()) == recipe


def test_the_rows_of_the_embedded_scale() -> None:
    rows = {row.id: row for row in table().rows}
    assert [*rows] == [
        "teacher-8", "pagoda-8", "pagoda-16", "pagoda-32", "pagoda-64", "edm-64", "nearest-64", "bicubic-64",
        "real-8", "real-16", "real-32", "real-64",
    ]  # fmt: skip
    top, direct, enlarged = (rows[i].generator for i in ("pagoda-64", "edm-64", "bicubic-64"))
    assert isinstance(top, OneStep)
    assert isinstance(top.of, Grow)
    assert isinstance(direct, Heun)
    assert direct.of.match == top.of
    assert isinstance(enlarged, Upsampled)
    assert enlarged.of == rows["pagoda-8"].generator
    assert isinstance(rows["teacher-8"].generator, Heun)
    assert rows["teacher-8"].generator.of == top.of.pairs.teacher


def test_the_full_table_draws_other_blocks_and_shares_the_rest() -> None:
    small, full = table(), table(full=True)
    assert small.sampling.n < full.sampling.n
    assert (small.sampling.blocks, full.sampling.blocks) == (1, 3)
    assert [r.generator for r in small.rows] == [r.generator for r in full.rows]


def test_a_changed_value_changes_what_depends_on_it_and_nothing_else() -> None:
    before = {r.id: r.scores[0].key for r in table().rows}
    after = {r.id: r.scores[0].key for r in table("embedded", "grow.2.train.steps=7").rows}
    assert {i for i in before if before[i] != after[i]} == {"pagoda-64", "edm-64"}


def test_set_reads_yaml_values_and_reaches_optional_keys() -> None:
    scale = spec.load_scale(SPEC, "embedded", ["teacher.net.attention=[4, 8]", "distill.loss.augment=false", "seed=3"])
    assert scale.teacher_model().net.attention == (4, 8)
    assert scale.distilled().loss.augment is False
    assert {r.seed for r in walk(scale.edm_model()) if hasattr(r, "seed")} == {3}


@pytest.mark.parametrize(
    ("scale", "sets", "says"),
    [
        ("embeded", [], "did you mean 'embedded'"),
        ("imagenet", [], "cannot be run"),
        ("cifar10", [], "give --data PATH"),
        ("embedded", ["teacher.train.step=1"], "did you mean 'steps'"),
        ("embedded", ["teachr.train.steps=1"], "did you mean 'teacher'"),
        ("embedded", ["sead=1"], "did you mean 'seed'"),
        ("embedded", ["name=mine"], "unknown key 'name'"),
        ("embedded", ["grow.3.width=1"], "known: 0, 1, 2"),
        ("embedded", ["base.low=1"], "is a single value"),
        ("embedded", ["seed"], "write it as key=value"),
        ("embedded", ["seed=[1"], "not a YAML value"),
        ("embedded", ["grown=[16, 48, 64]"], "must double"),
        ("embedded", ["grown=[16]"], "3 entries for 1"),
        ("embedded", ["teacher.net.resolution=16"], "the scale needs 8"),
        ("embedded", ["score.n=1"], "greater than 1"),
        ("embedded", ["score.blocks=0"], "greater than or equal to 1"),
        ("embedded", ["data.kind=embeded"], "did you mean 'embedded'"),
    ],
)
def test_bad_values_are_refused_in_one_line(scale: str, sets: list[str], says: str) -> None:
    with pytest.raises(UserError) as error:
        spec.build(SPEC, spec.load_scale(SPEC, scale, sets))
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("table: [", "not YAML"),
        ("tabel: x", "did you mean 'table'"),
        ("rows: []\nscales: {}\ntable: t\ntitle: t\ndefault_scale: s\nrow: 1", "did you mean 'rows'"),
        (
            "rows: [{id: a, label: A, system: s, method: m, at: all}, {id: a, label: A, system: s, method: m, at: all}]\n"
            "scales: {}\ntable: t\ntitle: t\ndefault_scale: s",
            "two rows are called 'a'",
        ),
    ],
)
def test_a_bad_experiment_file_is_refused_by_name(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        spec.read(path)
    assert says in str(error.value)
    assert "mine.yaml" in str(error.value)


def test_scales_that_extend_each_other_are_refused() -> None:
    loop = SPEC.model_copy(update={"scales": {"a": {"extends": "b"}, "b": {"extends": "a"}}})
    with pytest.raises(UserError, match="a -> b -> a"):
        spec.load_scale(loop, "a")


def row(**changes: Any) -> spec.RowSpec:
    return spec.RowSpec(**{"id": "r", "label": "R", "system": "s", "method": "pagoda", "at": "all", **changes})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "pagodas"}, "did you mean 'pagoda'"),
        ({"at": "tops"}, "did you mean 'top'"),
        ({"at": (8, 48)}, "is at 48 px"),
        ({"method": "edm", "at": "base"}, "makes 64 px, not 8"),
        ({"method": "teacher", "at": "top"}, "makes 8 px, not 64"),
    ],
)
def test_a_row_that_cannot_be_is_refused(changes: dict[str, Any], says: str) -> None:
    scale = spec.load_scale(SPEC, "embedded")
    with pytest.raises(UserError) as error:
        spec.build(SPEC.model_copy(update={"rows": (row(**changes),)}), scale)
    assert says in str(error.value)


def third_party(scale: Any, resolution: int) -> Any:
    return Heun(of=scale.teacher_model(), points=scale.methods["mine"]["points"])


def test_a_method_of_another_package_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = EntryPoint(name="mine", value=f"{__name__}:third_party", group="pagoda_bench.methods")
    monkeypatch.setattr(methods, "registered", lambda: [entry])
    scale = spec.load_scale(SPEC, "embedded", ["methods={mine: {points: 5}}"])
    built = spec.build(SPEC.model_copy(update={"rows": (row(method="mine", at="base"),)}), scale)
    assert built.rows[0].generator == Heun(of=scale.teacher_model(), points=5)
    assert "mine" in methods.known()
    monkeypatch.setattr(methods, "registered", lambda: [entry, EntryPoint("mine", "other:f", "pagoda_bench.methods")])
    with pytest.raises(UserError, match="claimed by"):
        methods.find("mine")
    monkeypatch.setattr(methods, "registered", lambda: [EntryPoint("mine", "no_such_module:f", "pagoda_bench.methods")])
    with pytest.raises(UserError, match="cannot be loaded"):
        methods.find("mine")


def test_the_work_that_is_matched_is_not_counted_twice() -> None:
    rows = {r.id: r for r in table().rows}
    chain = {(r.kind, r.key) for r in trained_from(rows["pagoda-64"].scores[0])}
    assert {kind for kind, _ in chain} == {"grow", "distill", "pairs", "edm"}
    assert sum(kind == "grow" for kind, _ in chain) == 3
    direct = trained_from(rows["edm-64"].scores[0])
    assert [type(r) for r in direct] == [EDM]
    assert trained_from(rows["real-64"].scores[0]) == []
    assert trained_from(rows["bicubic-64"].scores[0]) == trained_from(rows["pagoda-8"].scores[0])


# Cells


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


# The command, with stages that pretend


WORK = {"features": 100.0, "edm": 1000.0, "pairs": 10.0, "distill": 200.0, "grow": 300.0, "reference": 0.0, "score": 0.0}


def pretend(recipe: Recipe, ctx: StageContext) -> None:
    ctx.record(training_flops=WORK[recipe.kind])
    if not isinstance(recipe, Score):
        (ctx.out / "weights.txt").write_text(recipe.key, encoding="ascii")
        return
    real = recipe.generator.kind == "real"
    fd = 0.1 if real else 0.5 + (int(recipe.key[:4], 16) % 100) / 1000
    scores = {"fd": fd, "precision": 0.5, "recall": 0.25, "is": 7.0, "nfe": 0 if real else 1, "parameters": 0 if real else 1234}
    protocol = Protocol(
        extractor="pretended", weights="f" * 64, resize="none", resolution=recipe.generator.resolution,
        reference=recipe.reference.key, reference_n=recipe.reference.n, n=recipe.n, labels="balanced", rounding="to nearest",
        frechet="eigenvalues", k=3, rim="<=", splits=10,
    )  # fmt: skip
    (ctx.out / "score.json").write_text(json.dumps({"scores": scores, "protocol": protocol.to_dict()}), encoding="ascii")
    side = recipe.generator.resolution
    Image.fromarray(np.full((5 * side, 10 * side, 3), 90, np.uint8)).save(ctx.out / "samples.png")
    ctx.record(images_per_second=50.0)


@pytest.fixture
def command(whole_command: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command without figures, which take most of its time."""
    monkeypatch.setattr(report, "_figures", lambda _report: {})
    return whole_command


@pytest.fixture
def whole_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setattr(inline, "load_runner", lambda _recipe: pretend)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        return main(["reproduce", "table1", "--scale", "smoke", "--store", str(tmp_path / "store"), *arguments])

    return run


FILES = {
    f"{name}.{kind}" for name in ("fd-vs-resolution", "fd-vs-work", "samples") for kind in ("png", "svg")
} | {f"table1.{kind}" for kind in ("csv", "md", "tex", "provenance.json")}  # fmt: skip


def test_the_command_writes_every_file_and_a_second_run_writes_the_same(
    whole_command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert whole_command("--out", "made") == 0
    out = tmp_path / "made" / "smoke"
    assert {path.name for path in out.iterdir()} == FILES
    printed = capsys.readouterr().out
    assert "PaGoDA base, bicubic" in printed
    assert "not comparable" in printed
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert whole_command("--out", "made") == 0
    for path in out.iterdir():
        if path.name != "table1.provenance.json":
            assert path.read_bytes() == first[path.name], path.name
    cells = from_csv((out / "table1.csv").read_text(encoding="utf-8"), "table1.csv")
    by_id = {(c.id, c.metric): c for c in cells}
    top = by_id["pagoda-16", "fd"]
    assert top.training_flops == 1000 + 10 + 200 + 300
    assert by_id["edm-16", "fd"].training_flops == 1000
    assert by_id["real-16", "fd"].training_flops == 0
    assert by_id["bicubic-16", "fd"].training_flops == 1000 + 10 + 200
    assert top.value is not None
    assert by_id["pagoda-16", "fd_over_floor"].value == pytest.approx(top.value / 0.1)
    assert by_id["real-16", "fd_over_floor"].value == 1
    assert (top.images_per_second, top.parameters, top.nfe, top.stderr) == (50.0, 1234, 1.0, None)
    assert top.protocol["frechet"] == "eigenvalues"
    assert "frechet" not in by_id["pagoda-16", "recall"].protocol or not by_id["pagoda-16", "recall"].protocol["frechet"]
    assert by_id["real-16", "fd"].weights == ""
    assert top.weights != by_id["pagoda-8", "fd"].weights
    about = json.loads((out / "table1.provenance.json").read_text(encoding="utf-8"))
    assert about["scale"]["name"] == "smoke"
    assert set(about["files"]) == FILES - {"table1.provenance.json"}
    assert len(about["artifacts"]) >= 8


def test_full_has_blocks_and_errors_and_files_of_its_own(command: Callable[..., int], tmp_path: Path) -> None:
    assert command("--full") == 0
    cells = from_csv((tmp_path / "results/smoke/table1-full.csv").read_text(encoding="utf-8"), "x")
    top = next(c for c in cells if (c.id, c.metric) == ("pagoda-16", "fd"))
    assert (top.blocks, len(top.scores.split())) == (2, 2)
    assert top.std is not None
    assert top.stderr == pytest.approx(top.std / 2**0.5)
    assert top.value == pytest.approx(((top.min or 0) + (top.max or 0)) / 2)


def test_a_stage_that_fails_leaves_its_rows_visible_and_the_exit_code_one(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(recipe: Recipe, ctx: StageContext) -> None:
        if recipe.kind == "grow":
            raise UserError("the discriminator ran away")
        pretend(recipe, ctx)

    monkeypatch.setattr(inline, "load_runner", lambda _recipe: fail)
    assert command() == 1
    cells = from_csv((tmp_path / "results/smoke/table1.csv").read_text(encoding="utf-8"), "x")
    status = {c.id: c.status for c in cells}
    assert status["pagoda-8"] == "measured"
    assert status["pagoda-16"] == "not made: grow 16px failed: the discriminator ran away"
    assert status["edm-16"].endswith("the discriminator ran away")  # its work is that of what could not be made
    monkeypatch.setattr(inline, "load_runner", lambda _recipe: pretend)
    assert command() == 0


def test_committed_values_are_compared_with_and_not_written_over(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command() == 0  # not the package's own results folder: written there
    real = resources.folder
    monkeypatch.setattr(resources, "folder", lambda name: tmp_path / "results" if name == "results" else real(name))
    committed = (tmp_path / "results/smoke/table1.csv").read_bytes()
    capsys.readouterr()
    assert command("--set", "score.neighbours=3") == 0
    printed = capsys.readouterr()
    assert "writing to out/" in printed.err
    assert ", same" in printed.out
    assert (tmp_path / "out/smoke/table1.csv").is_file()
    assert main(["reproduce", "table1", "--scale", "smoke", "--out", "results"]) == 2
    assert "--publish" in capsys.readouterr().err
    assert (tmp_path / "results/smoke/table1.csv").read_bytes() == committed
    assert command("--publish") == 0
    verdicts = json.loads((tmp_path / "results/smoke/table1.provenance.json").read_text(encoding="utf-8"))["verdicts"]
    assert {v["verdict"] for v in verdicts} == {verdict.SAME}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tabel1"], "did you mean 'table1'"),
        (["table1", "--scale", "smok"], "did you mean 'smoke'"),
        (["table1", "--executor", "inlin"], "did you mean 'inline'"),
        (["table1", "--scale", "cifar10"], "--data PATH"),
        (["table1", "--data", "."], "makes its own images"),
        (["table1", "--data", "nowhere"], "no such file"),
        (["table1", "--set", "teacher.train.stepz=1"], "did you mean 'steps'"),
    ],
)
def test_what_a_user_may_get_wrong(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments, "--store", "store"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_dry_run_shows_the_plan_and_makes_nothing(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--dry-run") == 0
    assert "to make" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_a_cached_run_is_quick_and_never_imports_torch(command: Callable[..., int], tmp_path: Path) -> None:
    assert command() == 0
    script = (
        "import sys; from pagoda_bench.cli.main import main\n"
        f"code = main(['reproduce', 'table1', '--scale', 'smoke', '--store', {str(tmp_path / 'store')!r}])\n"
        "sys.exit(code or (3 if 'torch' in sys.modules else 0))"
    )
    root = Path(resources.__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 5  # of processor time, so that a busy machine does not count
