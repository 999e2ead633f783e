"""YAML as plain values: aliases are copies, and a text that names too much by them is refused at once."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pagoda_bench.errors import UserError
from pagoda_bench.plan.requests import Request
from pagoda_bench.recipes import values
from pagoda_bench.recipes.values import parse_yaml, read_yaml
from pagoda_bench.resources import folder

SCALARS = st.none() | st.booleans() | st.integers(-9, 9) | st.text("ab", max_size=3)


def bomb(levels: int, width: int, each: str) -> str:
    """Each level names the one before `width` times: width ** levels values in a text of `levels` lines."""
    names = [f"l{i}" for i in range(levels)]
    lines = [f"{names[0]}: &{names[0]} {{k: 1}}"]
    for before, name in pairwise(names):
        lines.append(f"{name}: &{name} " + each.format(", ".join([f"*{before}"] * width)))
    return "\n".join(lines)


@pytest.mark.parametrize("each", ["[{}]", "{{a: [{}]}}", "{{<<: [{}]}}"], ids=["lists", "groups", "merged keys"])
@pytest.mark.parametrize(("levels", "width"), [(10, 9), (300, 2)])
def test_a_text_that_names_billions_of_values_is_refused_at_once(tmp_path: Path, each: str, levels: int, width: int) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(bomb(levels, width, each), encoding="utf-8")
    before = time.process_time()
    with pytest.raises(UserError) as error:
        read_yaml(path, "the sweep")
    assert time.process_time() - before < 1
    assert str(error.value) == (
        f"{path}: more than 100,000 values once every alias is written out: use fewer aliases, or say less"
    )


@st.composite
def shared(draw: st.DrawFn) -> Any:
    """Lists and groups that stand in several places, each made of scalars and of those before it."""
    made: list[Any] = []
    for _ in range(draw(st.integers(1, 6))):
        part = st.sampled_from(made) | SCALARS if made else SCALARS
        made.append(
            draw(st.lists(part, max_size=4) | st.dictionaries(st.text("xyz", min_size=1, max_size=2), part, max_size=4))
        )
    return made[-1]


def count(value: Any) -> int:
    """Values in a value, those of another place counted again."""
    if isinstance(value, dict):
        return 1 + sum(1 + count(part) for part in value.values())
    return 1 + sum(map(count, value)) if isinstance(value, list) else 1


def parts(value: Any) -> list[Any]:
    """Every list and group in a value."""
    below = value.values() if isinstance(value, dict) else value
    return [value, *(p for part in below for p in parts(part))] if isinstance(value, (dict, list)) else []


@given(shared())
def test_an_alias_is_a_copy_and_the_limit_counts_each(value: Any) -> None:
    text = yaml.safe_dump(value)  # writes what stands in several places once, with an anchor
    found = parse_yaml(text, "here")
    assert found == value
    assert len({id(part) for part in parts(found)}) == len(parts(value))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(values, "LIMIT", count(value))
        assert parse_yaml(text, "here") == value
        patch.setattr(values, "LIMIT", count(value) - 1)
        with pytest.raises(UserError, match=r"^here: more than"):
            parse_yaml(text, "here")


def test_aliases_may_be_used_often_and_merged() -> None:
    text = "a: &a {x: 1, y: [1, 2]}\nb: {<<: *a, x: 2}\nc: [" + ", ".join(["*a"] * 5000) + "]"
    found = parse_yaml(text, "here")
    assert found["b"] == {"x": 2, "y": [1, 2]}
    assert found["c"] == [{"x": 1, "y": [1, 2]}] * 5000
    found["a"]["y"].append(3)
    assert found["b"]["y"] == found["c"][0]["y"] == [1, 2]


@pytest.mark.parametrize("text", ["a: &a [*a]", "a: &a {b: {c: *a}}", "[" * 5000], ids=["list", "group", "deep"])
def test_what_has_no_end_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"^here: a value contains itself, or is nested too deeply"):
        parse_yaml(text, "here")


def test_an_empty_text_is_nothing_and_two_are_no_value() -> None:
    assert parse_yaml("", "here") is None
    with pytest.raises(yaml.YAMLError):
        parse_yaml("a: 1\n---\nb: 2", "here")


def test_a_key_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("scales:\n  small: {n: 1}\n  small: {n: 2}\n")
    with pytest.raises(UserError, match=r"mine.yaml: not YAML: the key 'small' is there twice .*line 3") as error:
        read_yaml(path, "the budget")
    assert "\n" not in str(error.value)
    assert parse_yaml("{a: &a {x: 1}, b: {<<: *a, x: 2}, 1: 0, '1': 0}", "here")["b"] == {"x": 2}


def test_a_time_is_a_text() -> None:
    found = parse_yaml("{a: 4:00:00, b: 10:00, c: 1:30.5, d: 90, e: 1.5, f: !!int '1:30'}", "here")
    assert found == {"a": "4:00:00", "b": "10:00", "c": "1:30.5", "d": 90, "e": 1.5, "f": 90}
    stages = parse_yaml("stages: {default: {time: 4:00:00}}", "here")["stages"]
    assert Request.load(stages["default"], "here").minutes == 240


def test_our_own_files_are_far_below_the_limit() -> None:
    paths = sorted(folder("experiments").rglob("*.yaml"))
    assert paths
    for path in paths:
        found = read_yaml(path, "the file")
        assert found == yaml.safe_load(path.read_text(encoding="utf-8"))
        assert count(found) < values.LIMIT / 10
