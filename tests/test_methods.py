"""Methods as a user meets them: the list, options of a row, a third party's package as the documentation writes it, rows whose
weights are not here."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from test_imports import imports, loaded_by
from toy_scale import VALUES, models, toy_scale

from pagoda_bench import resources
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.cli.main import main
from pagoda_bench.errors import Unavailable, UserError
from pagoda_bench.recipes.base import KINDS
from pagoda_bench.recipes.methods import describe, facts_of
from pagoda_bench.recipes.samplers import Sampled
from pagoda_bench.recipes.stages import EDM, FeatureNet, Heun, OneStep
from pagoda_bench.recipes.trained import Trained, trained_upstream
from pagoda_bench.recipes.work import Work
from pagoda_bench.sampling.generators import load
from pagoda_bench.tables import lines, methods, spec
from pagoda_bench.tables.assemble import assemble
from pagoda_bench.tables.rows import method_rows

EXPERIMENTS = ("table1", "baselines", "growing", "augmentation")


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    code = main(["methods", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def test_every_method_says_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    code, rows = listed(capsys)
    assert code == 0
    assert {row["name"] for row in rows} == set(methods.known())
    for row in rows:
        for fact in ("title", "reference", "weights", "licence", "tested"):
            assert row[fact] not in ("", "not said"), f"{row['name']}: {fact}"
        for file in re.findall(r"\b(?:pagoda_bench|baselines)/[\w./]*\w", row["reference"]):
            assert (Path(__file__).parent.parent / file).exists(), file
    facts = {row["name"]: row for row in rows}
    assert facts["edm"]["trainable"]
    assert not facts["real"]["trainable"]
    assert "table1/embedded" in facts["pagoda"]["scales"]
    assert "growing/smoke" in facts["greedy"]["scales"]
    assert "table1/embedded" in facts["pagoda"]["measured"]


def test_the_list_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "edm", "greedy"]) == 0
    out = capsys.readouterr().out
    assert "table1/embedded*" in out
    assert "arXiv 2405.16759" in out
    assert "PaGoDA base" not in out
    assert main(["methods", "gredy"]) == 2
    assert "did you mean 'greedy'" in capsys.readouterr().err


def test_measured_is_what_a_committed_table_holds(tmp_path: Path) -> None:
    lines = [{"row": "pagoda", "status": "measured"}, {"row": "edm", "status": "not made: it was not run"}]
    (tmp_path / "smoke").mkdir()
    with (tmp_path / "smoke" / "table1.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["row", "status"])
        writer.writeheader()
        writer.writerows(lines)
    rows = {row.name: row for row in method_rows(resources.folder("experiments"), tmp_path)}
    assert rows["pagoda"].measured == ("table1/smoke",)
    assert rows["edm"].measured == ()
    assert "table1/smoke" in rows["edm"].scales


@pytest.mark.parametrize("name", EXPERIMENTS)
@pytest.mark.parametrize("scale", ["smoke", "embedded"])
def test_experiments_can_be_planned(name: str, scale: str) -> None:
    grid = spec.read(resources.folder("experiments") / f"{name}.yaml")
    table = spec.build(grid, spec.load_scale(grid, scale))
    assert not [row.unavailable for row in table.rows if row.unavailable]
    keys = {row.id: row.scores[0].key for row in table.rows}
    if scale == "embedded":  # the smoke scale has one level to grow: some ways of growing are the same there
        presets = ("depth-4-", "batch-8-")  # the presets' own values, named for the plots
        others = [key for row, key in keys.items() if not row.startswith(presets)]
        assert len(set(others)) == len(others), "two rows are the same"
    # Rows of table 1 are the same here: nothing is made twice.
    if name != "table1":
        first = spec.read(resources.folder("experiments") / "table1.yaml")
        old = {row.id: row.scores[0].key for row in spec.build(first, spec.load_scale(first, scale)).rows}
        shared = {row for row in old.keys() & keys.keys() if row.startswith(("pagoda", "real"))}
        assert shared
        assert all(old[row] == keys[row] for row in shared)


def test_trained_rows_of_baselines_match_the_chain() -> None:
    grid = spec.read(resources.folder("experiments") / "baselines.yaml")
    scale = spec.load_scale(grid, "embedded")
    chain = scale.work_of(scale.top).key
    for row in spec.build(grid, scale).rows:
        matched = chain if row.resolution == scale.top else scale.work_of(scale.base).key
        assert row.generator is not None
        for model in models(row.generator):
            for stage in [model, *trained_upstream(model)]:
                if isinstance(stage, Trained):
                    assert stage.match is not None, row.id
                    assert stage.match.key == matched, row.id


def test_options_of_a_row_reach_its_method() -> None:
    row = lines.RowSpec(id="e", label="E", system="E", method="edm", at="top", options={"solver": "ddim", "eta": 1})
    scale = toy_scale(edm={"points": 9, "solver": "heun"})
    found = methods.find("edm")(row.values(scale), 16)
    assert isinstance(found, Sampled)
    assert (found.sampler.solver, found.sampler.eta, found.sampler.points) == ("ddim", 1, 9)
    assert found.of == scale.edm_model()
    plain = methods.find("edm")(toy_scale(), 16)
    assert plain == Heun(of=scale.edm_model(), points=3)
    assert methods.find("teacher")(toy_scale(teacher={"solver": "euler"}), 8).sampler.points == 3  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"methods\.edm: unknown key 'chrun'"):
        methods.find("edm")(toy_scale(edm={"chrun": 1}), 16)


def test_what_is_upstream_leaves_measures_and_judges_out() -> None:
    scale = toy_scale()
    edm, grown = scale.edm_model(), scale.pagoda_model(16)
    assert edm.match == Work(of=grown)
    assert trained_upstream(edm) == []
    kinds = [recipe.kind for recipe in trained_upstream(grown)]
    assert kinds == ["edm", "pairs", "distill"]
    assert FeatureNet.kind not in kinds

    class Row(Trained, kind="upstream-test"):
        below: EDM

    try:
        row = Row(data=scale.data, train=edm.train, below=edm, match=grown)
        assert trained_upstream(row) == [edm]
    finally:
        KINDS.pop("upstream-test")


def code_of(page: Path, language: str, first_line: str) -> str:
    blocks = re.findall(rf"```{language}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (found,) = [block for block in blocks if block.startswith(first_line)]
    return found


def test_a_third_partys_method_as_documented(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The code of the documentation, installed as pip would: listed, planned as a row, sampled."""
    page = repository / "docs" / "baselines.md"
    package, info = tmp_path / "my_package", tmp_path / "my_package-1.0.dist-info"
    for folder in (package, info):
        folder.mkdir()
    (package / "__init__.py").touch()
    for module in ("recipes", "sampling"):
        (package / f"{module}.py").write_text(code_of(page, "python", f"# my_package/{module}.py"), encoding="utf-8")
    entry = code_of(page, "toml", "# pyproject.toml").replace("project.entry-points.", "").replace('"', "")
    (info / "entry_points.txt").write_text(entry.partition("\n")[2], encoding="utf-8")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-package\nVersion: 1.0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        code, (facts,) = listed(capsys, "mine")
        assert (code, facts["name"], facts["problem"], facts["trainable"]) == (0, "mine", "", False)
        rows = yaml.safe_load(code_of(page, "yaml", "rows:\n  - {id: mine"))
        toy = {k: v for k, v in VALUES.items() if k != "name"} | rows["scales"]["embedded"]
        grid = spec.TableSpec.load(
            {"table": "t", "title": "T", "default_scale": "toy", "rows": rows["rows"], "scales": {"toy": toy}}
        )
        (row,) = spec.build(grid, spec.load_scale(grid, "toy")).rows
        assert row.generator is not None
        assert row.generator.resolution == 16
        source = load(row.generator, StageContext.for_test(tmp_path / "out", tmp_path / "work"))
        images, nfe = source.sample(np.arange(4), np.arange(4))
        assert (images.shape, nfe, source.parameters) == ((4, 16, 16, 3), 1, 84)
    finally:
        KINDS.pop("my-generator", None)


def test_what_is_not_available_costs_its_row_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def gated(scale: Any, resolution: int) -> OneStep:
        raise Unavailable("weights of X: accept the licence at their page, then download them")

    monkeypatch.setitem(methods.BUILT_IN, "gated", gated)
    rows = [
        {"id": "gated", "label": "Gated", "system": "X", "method": "gated", "at": "top"},
        {"id": "theirs", "label": "Theirs", "system": "Y", "samples": "nowhere.npz", "at": "top"},
        {"id": "real", "label": "Real", "system": "data", "method": "real", "at": "top"},
    ]
    toy = {k: v for k, v in VALUES.items() if k != "name"}
    grid = spec.TableSpec.load({"table": "t", "title": "T", "default_scale": "toy", "rows": rows, "scales": {"toy": toy}})
    table = spec.build(grid, spec.load_scale(grid, "toy"))
    assert [len(row.scores) for row in table.rows] == [0, 0, 1]
    assert len(table.scores) == 1
    cells = {cell.row: cell for cell in assemble(table, {}, {})}
    assert cells["gated"].status == "not available: weights of X: accept the licence at their page, then download them"
    assert cells["theirs"].status.startswith("not available: nowhere.npz: no such file")
    assert cells["gated"].value is None


def test_facts_are_attached_and_optional() -> None:
    @describe(title="T", toy={"a": 1})
    def method(scale: Any, resolution: int) -> None:
        return None

    assert (facts_of(method).title, facts_of(method).toy) == ("T", {"a": 1})
    assert facts_of(len).title == "len"
    with pytest.raises(TypeError, match="titel"):
        describe(titel="T")(method)


def test_baselines_plan_without_torch(repository: Path) -> None:
    """As the harness: recipes are light, and the tables above the methods are known to type checkers only."""
    recipes = sorted((repository / "baselines").glob("*/recipes.py"))
    assert len(recipes) >= 2
    assert "torch" not in loaded_by(*(f"baselines.{path.parent.name}.recipes" for path in recipes))
    above = ("pagoda_bench.cli", "pagoda_bench.tables", "pagoda_bench.plan", "pagoda_bench.budgets")
    for path in sorted((repository / "baselines").rglob("*.py")):
        lines = path.read_text(encoding="utf-8").splitlines()
        for line, name in imports(path):
            guarded = lines[line - 2].strip() == "if TYPE_CHECKING:"
            assert guarded or not name.startswith(above), f"{path}:{line} imports {name}"
