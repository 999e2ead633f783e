"""From an experiment file to the rows of a table."""

from __future__ import annotations

from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from pagoda_bench import resources
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.base import walk
from pagoda_bench.recipes.data import ImageData
from pagoda_bench.recipes.stages import EDM, Grow, Heun, OneStep, Upsampled
from pagoda_bench.recipes.work import Work
from pagoda_bench.tables import lines, methods, spec
from pagoda_bench.tables.assemble import trained_from

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
    assert direct.of.match == Work(of=top.of)
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


def test_another_judge_scores_the_same_models() -> None:
    plain, other = table(), table("embedded", "judged_by.seed=1")
    assert [row.generator for row in other.rows] == [row.generator for row in plain.rows]
    judges = (
        {score.reference.features.seed for score in plain.scores},
        {score.reference.features.seed for score in other.scores},
    )
    assert judges == ({0}, {1})
    with pytest.raises(UserError, match="scale 'embedded', judged_by: unknown key 'sed'"):
        table("embedded", "judged_by.sed=1")


def test_the_training_seed_changes_every_model_but_the_judge() -> None:
    plain, other = table(), table("embedded", "seed=1")
    assert {s.reference.key for s in plain.scores} == {s.reference.key for s in other.scores}
    trained = {recipe.key for score in plain.scores for recipe in walk(score) if recipe.kind in ("edm", "distill", "grow")}
    assert trained
    assert not trained & {recipe.key for score in other.scores for recipe in walk(score)}


def test_some_rows_of_a_table() -> None:
    whole = table()
    assert [row.id for row in whole.only(["pagoda-16", "edm"]).rows] == ["pagoda-16", "edm-64"]
    assert whole.only([]) == whole
    with pytest.raises(UserError, match="table 'table1': unknown row 'pagodas'; did you mean 'pagoda'"):
        whole.only(["pagodas"])


def test_set_reads_yaml_values_and_reaches_optional_keys() -> None:
    scale = spec.load_scale(SPEC, "embedded", ["teacher.net.attention=[4, 8]", "distill.loss.augment=false", "seed=3"])
    assert scale.teacher_model().net.attention == (4, 8)
    assert scale.distilled().loss.augment is False
    assert {r.seed for r in walk(scale.edm_model()) if hasattr(r, "seed")} == {3}


def test_set_changes_one_place_of_a_value_that_the_file_gives_to_several() -> None:
    before, after = (spec.load_scale(SPEC, "embedded", sets) for sets in ([], ["distill.loss.eps=0.7"]))
    assert after.distilled().loss.eps == 0.7
    levels = [[scale.pagoda_model(r).loss for r in scale.grown] for scale in (before, after)]
    assert levels[0] == levels[1]


@pytest.mark.parametrize(
    ("scale", "sets", "says"),
    [
        ("embeded", [], "did you mean 'embedded'"),
        ("imagenet", [], "needs prepared images: give --data FOLDER"),
        ("cifar10", [], "give --data PATH"),
        ("embedded", ["teacher.train.step=1"], "did you mean 'steps'"),
        ("embedded", ["teachr.train.steps=1"], "did you mean 'teacher'"),
        ("embedded", ["sead=1"], "did you mean 'seed'"),
        ("embedded", ["name=mine"], "unknown key 'name'"),
        ("embedded", ["grow.3.width=1"], "known: 0, 1, 2"),
        ("embedded", ["base.low=1"], "is a single value"),
        ("embedded", ["seed"], "write it as key=value"),
        ("embedded", ["seed=[1"], "not a YAML value"),
        ("embedded", ["seed=&a [*a]"], "--set seed=&a [*a]: a value contains itself"),
        ("embedded", ["grown=[16, 48, 64]"], "must double"),
        ("embedded", ["grown=[16]"], "3 entries for 1"),
        ("embedded", ["teacher.net.resolution=16"], "the scale needs 8"),
        ("embedded", ["score.n=1"], "greater than 1"),
        ("embedded", ["score.blocks=0"], "greater than or equal to 1"),
        ("embedded", ["data.kind=embeded"], "did you mean 'embedded'"),
        ("embedded", ["teacher.train.steps=-5"], "teacher: train.steps: Input should be greater than or equal to 0"),
        ("embedded", ["teacher.train.batch=0"], "teacher: train.batch: Input should be greater than or equal to 1"),
        ("embedded", ["teacher.train.lr=.nan"], "teacher: train.lr: Input should be a finite number"),
        ("embedded", ["grow.0.train.lr=-1"], "grow.0: train.lr: Input should be greater than or equal to 0"),
        ("embedded", ["distill.train.betas=[0.9, 1]"], "distill: train.betas.1: Input should be less than 1"),
        ("embedded", ["distill.loss.adversarial=-1"], "distill: loss.adversarial: Input should be greater than or equal to 0"),
        ("embedded", ["pairs.points=1"], "pairs: points: Input should be greater than or equal to 2"),
        ("embedded", ["features.train.keep=0"], "features: train.keep: Input should be greater than or equal to 1"),
        ("embedded", ["points=0"], "points: Input should be greater than or equal to 2"),
        ("embedded", ["points=1"], "points: Input should be greater than or equal to 2"),
        ("embedded", ["points_top=1"], "points_top: Input should be greater than or equal to 2"),
        ("embedded", ["data.master=-3"], "data.master: Input should be greater than or equal to 8"),
        ("embedded", ["seed=-1"], "seed: Input should be greater than or equal to 0"),
        ("embedded", ["data=5"], "scale 'embedded', data: write a group of values with a kind"),
        ("embedded", ["data="], "scale 'embedded', data: write a group of values with a kind"),
        ("embedded", ["teacher.net.channels=0"], "teacher: net.channels: Input should be greater than or equal to 1"),
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
        ("rows: &a [*a]", "a value contains itself"),
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


def test_a_scale_whose_data_are_no_group_is_refused_by_name() -> None:
    broken = SPEC.model_copy(update={"scales": {**SPEC.scales, "a": {"extends": "smoke", "data": ["embedded"]}}})
    for use in (spec.needs_data, spec.load_scale):
        with pytest.raises(UserError, match="scale 'a', data: write a group of values with a kind"):
            use(broken, "a")


def test_scales_that_extend_each_other_are_refused() -> None:
    loop = SPEC.model_copy(update={"scales": {"a": {"extends": "b"}, "b": {"extends": "a"}}})
    with pytest.raises(UserError, match="a -> b -> a"):
        spec.load_scale(loop, "a")


def row(**changes: Any) -> lines.RowSpec:
    return lines.RowSpec(**{"id": "r", "label": "R", "system": "s", "method": "pagoda", "at": "all", **changes})


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
