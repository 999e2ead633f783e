"""The published values: every number has one source, everything untraced is an empty slot."""

from __future__ import annotations

import pytest

from pagoda_bench import resources
from pagoda_bench.errors import UserError
from pagoda_bench.tables import published
from pagoda_bench.tables.published import COLUMNS, Published, find, load, parse

HEAD = ",".join(COLUMNS)


@pytest.fixture(scope="module")
def cells() -> list[Published]:
    return load(resources.folder("paper_tables") / "table1.csv")


def test_every_value_has_a_source_and_every_slot_a_pointer(cells: list[Published]) -> None:
    assert len(cells) > 200
    for cell in cells:
        assert bool(cell.value) == bool(cell.source) == (cell.trust != "missing")
        assert cell.value or cell.pointer


def test_the_headline_of_the_paper(cells: list[Published]) -> None:
    best = {c.resolution: c for r in (64, 128, 256, 512) for c in find(cells, "PaGoDA", r)}
    assert {r: float(c.value) for r, c in best.items()} == {64: 1.21, 128: 1.48, 256: 1.56, 512: 1.80}


@pytest.mark.parametrize(("metric", "guidance"), [("is", "none"), ("recall", "none"), ("fid", "cfg"), ("fd-dinov2", "none")])
def test_what_could_not_be_traced_is_blank(cells: list[Published], metric: str, guidance: str) -> None:
    found = find(cells, "PaGoDA", 512, metric, guidance)
    assert [c.value for c in found] == [""]
    assert "p. 8" in found[0].pointer or "pp. 24" in found[0].pointer


def test_values_known_from_memory_only_are_absent(cells: list[Published]) -> None:
    remembered = {("StyleGAN-XL", 64, "is"), ("StyleGAN-XL", 128, "is"), ("VDM++", 128, "fid"), ("CTM", 64, "is"),
                  ("CTM", 64, "recall"), ("CM (trained)", 64, "fid")}  # fmt: skip
    slots = [c for c in cells if (c.system, c.resolution, c.metric) in remembered]
    assert {(c.system, c.resolution, c.metric) for c in slots} == remembered
    assert {c.value for c in slots} == {""}


def test_sources_that_disagree_have_a_row_each(cells: list[Published]) -> None:
    assert {c.value for c in find(cells, "EDM, deterministic", 64)} == {"2.44", "2.36"}
    assert {c.value for c in find(cells, "StyleGAN-XL", 64)} == {"1.52", "1.97"}


def test_the_most_trusted_source_comes_first(cells: list[Published]) -> None:
    assert [c.trust for c in find(cells, "StyleGAN-XL", 64)] == ["repository", "thread"]
    assert [c.trust for c in find(cells, "PaGoDA", 64)] == ["checkpoint", "aggregator"]


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("X,64,fid,1.5,1,none,,paper,,", "needs its source"),
        ("X,64,fid,1.5,1,none,A paper,missing,,", "needs its source"),
        ("X,64,fid,,1,none,A paper,paper,p. 8,", "an empty slot has"),
        ("X,64,fid,,1,none,,missing,,", "an empty slot has"),
        ("X,64,fid,about 2,1,none,A paper,paper,,", "is not a number"),
        ("X,64,fdi,1.5,1,none,A paper,paper,,", "did you mean 'fid'"),
        ("X,64,fid,1.5,1,cgf,A paper,paper,,", "did you mean 'cfg'"),
        ("X,64,fid,1.5,1,none,A paper,papper,,", "did you mean 'paper'"),
        ("X,64 px,fid,1.5,1,none,A paper,paper,,", "a resolution in pixels"),
        ("X,64,fid,1.5,many,none,A paper,paper,,", "63x2 or 250+250"),
        ("X,64,fid,1.5,1,none,A paper", "columns"),
        ("X,64,fid,1.5,1,none,A, paper,paper,,", "columns"),
    ],
)
def test_a_row_that_breaks_a_rule_is_refused_by_its_line(row: str, says: str) -> None:
    with pytest.raises(UserError, match=r"values\.csv, line 2.*") as error:
        parse(f"{HEAD}\n{row}\n", "values.csv")
    assert says in str(error.value)


def test_the_same_row_twice_is_refused() -> None:
    row = "X,64,fid,1.5,1,none,A paper,paper,,"
    with pytest.raises(UserError, match="line 3: says the same as line 2"):
        parse(f"{HEAD}\n{row}\n{row}\n", "values.csv")


def test_another_head_is_refused() -> None:
    with pytest.raises(UserError, match="the first line must be"):
        parse("system,value\nX,1\n", "values.csv")


def test_the_readme_explains_every_tag() -> None:
    text = (resources.folder("paper_tables") / "README.md").read_text(encoding="utf-8")
    for word in (*published.TRUST, *published.GUIDANCE, *published.METRICS, *COLUMNS):
        assert f"`{word}`" in text, word
