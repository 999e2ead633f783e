"""The regression gate: what leaves its budget fails, and so does what is missing."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from pagoda_bench import resources
from pagoda_bench.budgets.limits import Budget, Limit, check, load
from pagoda_bench.cli.gate import gate
from pagoda_bench.errors import UserError
from pagoda_bench.tables import cells as long_form
from pagoda_bench.tables.cells import Cell


def cell(row: str, value: float | None, metric: str = "fd", speed: float = 10.0, **more: object) -> Cell:
    first = Cell(table="table1", scale="small", row=row, label=row, system=row, resolution=8, metric=metric, value=value, n=100)
    return replace(first, images_per_second=speed, nfe=1.0, **more)  # type: ignore[arg-type]


def budget(*limits: dict[str, object]) -> Budget:
    full = [{"row": "a", "resolution": 8, "metric": "fd", **limit} for limit in limits]
    return Budget.load({"table": "table1", "scales": {"small": {"n": 100, "limits": full}}}, "test")


def whys(cells: list[Cell], *limits: dict[str, object]) -> list[str]:
    return [f.why for f in check(cells, budget(*limits))]


@given(value=st.floats(0, 1e6), bound=st.floats(0, 1e6))
def test_a_limit_holds_up_to_its_bound(value: float, bound: float) -> None:
    upper = Limit(row="a", resolution=8, metric="fd", at_most=bound)
    lower = Limit(row="a", resolution=8, metric="fd", at_least=bound)
    assert upper.holds(value) == (value <= bound)
    assert lower.holds(value) == (value >= bound)
    assert upper.holds(bound)
    assert lower.holds(bound)
    assert not upper.holds(math.nan)
    assert not lower.holds(math.nan)


def test_values_ratios_and_columns() -> None:
    cells = [cell("a", 2.0, speed=40.0), cell("a", 0.5, "recall", speed=40.0), cell("b", 8.0, speed=10.0)]
    assert whys(cells, {"at_most": 2}, {"at_most": 1.9}) == ["", "2 is not at most 1.9"]
    assert whys(cells, {"metric": "recall", "at_least": 0.6}) == ["0.5 is not at least 0.6"]
    assert whys(cells, {"at_most": 0.25, "of": {"row": "b"}}, {"at_most": 0.2, "of": {"row": "b", "resolution": 8}}) == [
        "",
        "0.25 is not at most 0.2",
    ]
    speed = {"metric": "images_per_second", "of": {"row": "b"}}
    assert whys(cells, {**speed, "at_least": 4}, {**speed, "at_least": 4.1}) == ["", "4 is not at least 4.1"]
    assert whys(cells, {"metric": "nfe", "at_most": 1}) == [""]


def test_what_is_missing_leaves_its_budget() -> None:
    lost = replace(cell("b", None, ""), status="not made: out of memory")
    cells = [cell("a", 2.0), lost, cell("c", 2.0, n=50), cell("d", math.nan), cell("e", 0.0)]
    assert whys(cells, {"row": "x", "at_most": 1}) == ["the table has no row x-8"]
    assert whys(cells, {"row": "b", "at_most": 1}) == ["b-8: not made: out of memory"]
    assert whys(cells, {"at_most": 1, "of": {"row": "b"}}) == ["b-8: not made: out of memory"]
    assert whys(cells, {"row": "c", "at_most": 3}) == ["c-8 was measured with N=50, the budget is for N=100"]
    assert whys(cells, {"metric": "is", "at_least": 3}) == ["a-8 has no is"]
    assert whys(cells, {"row": "d", "at_most": 3}) == ["nan is not at most 3"]
    assert whys(cells, {"at_most": 3, "of": {"row": "e"}}) == ["fd of e is 0: there is no ratio to it"]


def test_what_is_no_measurement_leaves_its_budget() -> None:
    ratio = {"at_most": 1, "of": {"row": "b"}}
    assert whys([cell("a", -math.inf)], {"at_most": 1}) == ["fd of a-8 is -inf"]
    assert whys([cell("a", math.inf)], {"at_least": 1}) == ["fd of a-8 is inf"]
    assert whys([cell("a", 2.0), cell("b", math.inf)], ratio) == ["fd of b-8 is inf"]
    assert whys([cell("a", 2.0), cell("b", math.nan)], ratio) == ["nan is not at most 1"]
    assert whys([cell("a", 2.0), cell("b", -1.0)], ratio) == ["fd of b is -1: there is no ratio to it"]
    assert whys([cell("a", 0.5), cell("a", 50.0)], {"at_most": 1}) == ["the table has fd of a-8 2 times"]


def test_there_is_no_ratio_over_two_protocols() -> None:
    ratio = {"at_most": 1, "of": {"row": "b"}}
    cells = [cell("a", 2.0, protocol={"extractor": "x"}), cell("b", 4.0, protocol={"extractor": "y"})]
    assert whys(cells, ratio) == ["a-8 and b-8 were measured differently: extractor x and y"]
    assert whys(cells, {**ratio, "metric": "images_per_second"}) == [""]
    guided = [replace(c, protocol={"guidance": c.row}) for c in cells]  # a part of the row, as its evaluations are
    assert whys(guided, ratio) == [""]


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ({}, "give either at_most or at_least"),
        ({"at_most": 1, "at_least": 1}, "give either at_most or at_least"),
        ({"at_most": 1, "metric": "fid"}, "unknown metric 'fid'; did you mean 'fd'?"),
        (
            {"at_most": 1, "metric": "x"},
            "(known: alignment, fd, fd_over_floor, images_per_second, is, nfe, parameters, precision, recall, training_flops)",
        ),
        ({"at_most": 1, "resolutoin": 8}, "did you mean 'resolution'"),
    ],
)
def test_a_wrong_budget_is_refused(limit: dict[str, object], says: str) -> None:
    with pytest.raises(UserError) as caught:
        budget(limit)
    assert says in str(caught.value)


def test_another_table_or_scale_is_refused() -> None:
    with pytest.raises(UserError, match="the budget is for 'table1', the table is 'other'"):
        check([replace(cell("a", 1.0), table="other")], budget({"at_most": 1}))
    with pytest.raises(UserError, match="no budget for scale 'smal' of table1; did you mean 'small'"):
        check([replace(cell("a", 1.0), scale="smal")], budget({"at_most": 1}))
    with pytest.raises(UserError, match="has no rows"):
        check([], budget({"at_most": 1}))


def test_the_command_holds_the_committed_table(tmp_path: Path) -> None:
    """The committed table is within the committed budget; the same table with a worse distance is not."""
    committed = resources.folder("results") / "embedded" / "table1.csv"
    done = CliRunner().invoke(gate, [str(committed)], standalone_mode=False)
    assert (done.exception, done.return_value) == (None, 0), done.output
    limits = load(resources.folder("experiments") / "budgets" / "table1.yaml").scales["embedded"].limits
    assert f"{len(limits)} of {len(limits)} limits hold" in done.output

    cells = long_form.load(committed)
    worse = [replace(c, value=30.0) if (c.id, c.metric) == ("pagoda-64", "fd") else c for c in cells]
    (tmp_path / "table1.csv").write_text(long_form.to_csv(worse))
    done = CliRunner().invoke(gate, [str(tmp_path / "table1.csv"), "--json"], standalone_mode=False)
    assert done.return_value == 1
    left = [f["limit"] for f in json.loads(done.output) if not f["within"]]
    assert [(f["row"], f["metric"]) for f in left] == 3 * [("pagoda", "fd")]  # of itself, beside the base, beside EDM


def test_bad_input_is_one_line(tmp_path: Path) -> None:
    def refusal(*arguments: str) -> str:
        done = CliRunner().invoke(gate, arguments, standalone_mode=False)
        assert isinstance(done.exception, UserError)
        return str(done.exception)

    def budget_of(bound: str) -> list[str]:
        limit = f"{{row: a, resolution: 8, metric: fd, at_most: {bound}}}"
        (tmp_path / "b.yaml").write_text(f"{{table: table1, scales: {{small: {{n: 100, limits: [{limit}]}}}}}}")
        return [str(table), "--budget", str(tmp_path / "b.yaml")]

    table = tmp_path / "mine.csv"
    assert refusal(str(table)).endswith("no such file; 'pagoda-bench reproduce' writes it")
    table.write_text(long_form.to_csv([replace(cell("a", 1.0), table="mine")]))
    assert refusal(str(table)) == "there is no budget for 'mine': give one with --budget FILE"
    (tmp_path / "b.yaml").write_text("[")
    assert "not YAML" in refusal(str(table), "--budget", str(tmp_path / "b.yaml"))
    assert refusal(str(tmp_path)).startswith(f"{tmp_path} is a folder: give a table in it")
    table.write_text(long_form.to_csv([]))
    assert refusal(str(table)) == f"{table} has no rows: measure it again with 'pagoda-bench reproduce'"
    table.write_bytes(long_form.to_csv([cell("a", 1.0)]).encode().replace(b"measured", b"m\xe9asur\xe9"))
    assert refusal(str(table)) == f"{table} is not UTF-8; is it a table of this program?"
    table.write_text(long_form.to_csv([replace(cell("a", 1.0), label="x" * 140_000)]))
    assert refusal(str(table)).startswith("mine.csv, line 2: field larger than field limit")
    table.write_text(long_form.to_csv([cell("a", 1.0)]).replace("{}", "5"))
    assert refusal(str(table)) == "mine.csv, line 2: '5' is no JSON object"
    table.write_text(long_form.to_csv([cell("a", math.nan)]))
    for bound in (".nan", ".inf"):
        for more in ([], ["--json"]):
            said = refusal(*budget_of(bound), *more)
            assert said == f"{tmp_path / 'b.yaml'}: scales.small.limits.0.at_most: Input should be a finite number"
    done = CliRunner().invoke(gate, [*budget_of("3"), "--json"], standalone_mode=False)
    assert (done.exception, done.return_value) == (None, 1)
    (found,) = json.loads(done.output)
    assert (found["value"], found["why"]) == (None, "nan is not at most 3")
