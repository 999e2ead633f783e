"""L_rec beside L_dstl for worse and worse teachers: the rows, their figure, and the whole command at the smallest size."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from pagoda_bench import resources
from pagoda_bench.cli.main import cli
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.stages import EDM, Distill, Heun, OneStep, Pairs, TeacherPairs
from pagoda_bench.tables.cells import DISTANCE, Cell
from pagoda_bench.tables.relation import distance_against
from pagoda_bench.tables.spec import Row, build, load_scale, read

EXPERIMENTS = resources.folder("experiments")


def rows(scale: str) -> dict[str, Row]:
    spec = read(EXPERIMENTS / "imperfect-teacher.yaml")
    return {row.row: row for row in build(spec, load_scale(spec, scale, planned=True)).rows}


def student(row: Row) -> Distill:
    assert isinstance(row.generator, OneStep)
    assert isinstance(row.generator.of, Distill)
    return row.generator.of


@pytest.mark.parametrize(("scale", "steps"), [("embedded", 2500), ("smoke", 30), ("imagenet", 600_000)])
def test_students_differ_from_each_other_in_teacher_and_target_alone(scale: str, steps: int) -> None:
    found = rows(scale)
    assert {row.scores[0].reference.key for row in found.values()} == {found["real"].scores[0].reference.key}
    taught = [steps, round(steps / 4), round(steps / 16)]
    for number, expected in enumerate(taught, 1):
        teacher, rec, dstl = (found[f"{kind}-{number}"] for kind in ("teacher", "rec", "dstl"))
        assert isinstance(teacher.generator, Heun)
        assert isinstance(teacher.generator.of, EDM)
        assert teacher.generator.of.train.steps == expected
        assert rec.against == dstl.against == f"teacher-{number}"
        a, b = student(rec), student(dstl)
        assert a.pairs.teacher == b.pairs.teacher == teacher.generator.of
        assert (type(a.pairs), type(b.pairs)) == (Pairs, TeacherPairs)
        assert b.model_copy(update={"pairs": a.pairs}) == a
        fields = b.pairs.to_dict()
        assert fields.pop("guidance") is None
        assert a.pairs == Pairs.load({**fields, "kind": "pairs", "flip": a.pairs.flip}, "the pairs of L_dstl")
        assert not b.pairs.flip
    models = [student(found[f"rec-{number}"]).pairs.teacher for number in (1, 2, 3)]
    assert len({model.model_copy(update={"train": models[0].train}).key for model in models}) == 1


def test_the_first_student_is_that_of_table_one() -> None:
    spec = read(EXPERIMENTS / "table1.yaml")
    table = {row.id: row for row in build(spec, load_scale(spec, "embedded")).rows}
    found = rows("embedded")
    assert found["rec-1"].scores == table["pagoda-8"].scores
    assert found["teacher-1"].scores == table["teacher-8"].scores


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("method: pagoda, at: base, options: {tought: 0.5}", "did you mean 'taught'"),
        ("method: pagoda, at: base, options: {taught: 2}", "less than or equal to 1"),
        ("method: teacher, at: base, options: {taught: 0}", "greater than 0"),
        ("method: pagoda, at: base, against: teachr", "did you mean 'teacher'"),
    ],
)
def test_a_wrong_row_is_refused(line: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "table1.yaml").write_text((EXPERIMENTS / "table1.yaml").read_text(encoding="utf-8"), encoding="utf-8")
    other = "{id: teacher, label: Teacher, system: EDM, method: teacher, at: base}"
    text = "table: t\ntitle: t\ndefault_scale: smoke\nscales_of: table1\nscales: {}\n"
    path = tmp_path / "t.yaml"
    (tmp_path / "scales").mkdir()
    (tmp_path / "scales" / "imagenet.yaml").write_text((EXPERIMENTS / "scales" / "imagenet.yaml").read_text(encoding="utf-8"))
    path.write_text(f"{text}rows:\n  - {other}\n  - {{id: a, label: A, system: S, {line}}}\n", encoding="utf-8")

    def built() -> None:
        spec = read(path)
        build(spec, load_scale(spec, "smoke"))

    with pytest.raises(UserError, match=words):
        built()


# The figure


def cell(row: str, value: float, system: str) -> Cell:
    return Cell(
        table="t", scale="s", row=row, label=row, system=system, resolution=8, metric=DISTANCE, direction="lower",
        value=value, n=100, blocks=1, nfe=1.0, training_flops=1.0,
    )  # fmt: skip


CELLS = [
    cell("t1", 3.0, "EDM"), cell("t2", 30.0, "EDM"), cell("a2", 6.0, "L_rec"), cell("a1", 2.0, "L_rec"),
    cell("b1", 2.5, "L_dstl"), cell("b2", 20.0, "L_dstl"), cell("real", 1.0, "data"),
]  # fmt: skip
AGAINST = {"a1": "t1", "a2": "t2", "b1": "t1", "b2": "t2"}


def test_each_student_stands_over_its_teacher() -> None:
    figure = distance_against(CELLS, AGAINST, "the teacher")
    assert figure is not None
    (axes,) = figure.axes
    drawn = {str(c.get_label()): list(zip(*c.lines[0].get_data(), strict=True)) for c in axes.containers}  # type: ignore[attr-defined]
    assert drawn == {"L_rec": [(3.0, 2.0), (30.0, 6.0)], "L_dstl": [(3.0, 2.5), (30.0, 20.0)]}
    assert "the teacher" in axes.get_xlabel()
    low, high = axes.get_ylim()
    assert low < 1 < 20 < high


def test_no_figure_without_two_rows() -> None:
    assert distance_against(CELLS, {}, "x") is None
    assert distance_against([CELLS[2], replace(CELLS[0], value=None)], AGAINST, "x") is None


def test_the_command_at_the_smallest_size(tmp_path: Path) -> None:
    values = ("teacher.train.steps=16", "distill.train.steps=2", "distill.train.batch=4", "features.train.steps=2",
              "pairs.count=20", "points=2", "pairs.points=2", "score.n=20", "score.reference=40")  # fmt: skip
    words = [word for value in values for word in ("--set", value)]
    command = ["reproduce", "imperfect-teacher", "--scale", "smoke", "--rows", "teacher-3,rec-3,dstl-3,real", *words]
    done = CliRunner().invoke(cli, [*command, "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")])
    assert done.exit_code == 0, done.output
    out = tmp_path / "out" / "smoke"
    with (out / "imperfect-teacher.csv").open() as file:
        found = {line["row"]: line for line in csv.DictReader(file) if line["metric"] == DISTANCE}
    assert found.keys() == {"teacher-3", "rec-3", "dstl-3", "real"}
    assert all(line["value"] for line in found.values())
    assert float(found["rec-3"]["nfe"]) == float(found["dstl-3"]["nfe"]) == 1
    assert (out / "imperfect-teacher-fd-vs-fd.png").is_file()
