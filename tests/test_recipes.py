"""Recipes: identity, errors, and the defaults of every version.

After a deliberate change of recipes (a new kind, a new field, or another default together with a raised `version`), write
the pinned defaults anew and look at the difference:

    python tests/test_recipes.py
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, ClassVar, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field

from pagoda_bench.errors import UserError
from pagoda_bench.recipes import registry
from pagoda_bench.recipes.base import KINDS, Config, Recipe, canonical, result_neutral, walk
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.recipes.imported import ReleasedOneStep
from pagoda_bench.recipes.stages import EDM, Distill, FeatureNet, Grow, Pairs, TrainConfig, UNetConfig

BASES = f"distill, grow, {ReleasedOneStep.kind}"  # what a level can grow on: kinds are known when their modules are imported
GOLDEN = Path(__file__).with_name("golden_defaults.json")


class Inner(Config):
    a: int = 1
    workers: int = result_neutral(4)


class Probe(Recipe, kind="test-probe"):
    runner: ClassVar[str] = "nowhere:run"
    number: float = 0.5
    flag: bool | int = True
    words: dict[str, float] = Field(default_factory=dict)
    inner: Inner = Inner()
    of: Recipe | None = None
    chunk: int = result_neutral(16)


def chain() -> Grow:
    data, train = EmbeddedData(), TrainConfig(steps=10)
    teacher = EDM(data=data, net=UNetConfig(resolution=8), train=train)
    distilled = Distill(pairs=Pairs(teacher=teacher, count=4), features=FeatureNet(data=data, train=train), train=train)
    return Grow(base=Grow(base=distilled, width=1, train=train), width=0.5, train=train)


# Identity

plain_words = st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False))


@given(plain_words, st.randoms())
def test_key_does_not_depend_on_dict_order(words: dict[str, float], random: Any) -> None:
    items = list(words.items())
    random.shuffle(items)
    assert Probe(words=words).key == Probe(words=dict(items)).key
    assert Probe(words=words).key == Recipe.load(json.loads(json.dumps(Probe(words=dict(items)).to_dict()))).key


@given(plain_words, plain_words)
def test_different_values_have_different_keys(one: dict[str, float], other: dict[str, float]) -> None:
    assert (Probe(words=one).key == Probe(words=other).key) == (one == other)


def test_key_is_the_same_in_every_process() -> None:
    program = (
        "import json,sys; from pagoda_bench.recipes.registry import load_all; load_all()\n"
        "from pagoda_bench.recipes.base import Recipe; print(Recipe.load(json.loads(sys.argv[1])).key)"
    )
    value = chain().to_dict()
    turned = json.dumps(dict(reversed(value.items())))
    for seed in ("1", "4711"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program, turned]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True, cwd=GOLDEN.parents[1])
        assert done.stdout.strip() == chain().key


def test_key_is_pinned() -> None:
    """The released artifacts are found by such keys: whatever changes this one orphans them."""
    assert canonical(EDM(data=EmbeddedData(), net=UNetConfig(resolution=8), train=TrainConfig(steps=10))) == (
        '{"data":{"kind":"embedded","version":1},"kind":"edm","net":{"resolution":8},"train":{"steps":10},"version":1}'
    )
    assert chain().key == "e6cf0a38fe5be944f903"


def test_defaults_and_neutral_values_stay_out_of_the_identity() -> None:
    assert canonical(Probe()) == '{"kind":"test-probe","version":1}'
    assert Probe(chunk=3, inner=Inner(workers=9)).key == Probe().key
    assert Probe(chunk=3).to_dict()["chunk"] == 3
    assert Probe(number=1).key == Probe(number=1.0).key
    assert Probe(flag=1).key != Probe(flag=True).key  # equal in Python, not in JSON
    assert len({Probe().key, Probe(inner=Inner(a=2)).key, Probe(of=Probe()).key, Probe(number=-0.5).key}) == 4


def test_a_copy_has_its_own_key() -> None:
    probe = Probe()
    assert probe.key == "".join(probe.key)
    changed = probe.model_copy(update={"number": 2.0})
    assert changed.key == Probe(number=2.0).key != probe.key


def test_not_a_number_is_refused() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(UserError, match=r"^recipe: number: Input should be a finite number$"):
            Probe.load({"number": value})
        with pytest.raises(UserError, match=r"^recipe: words\.a: Input should be a finite number"):
            Probe.load({"words": {"a": value}})
        with pytest.raises(UserError, match=f"cannot hold {value}"):  # in a value that no type describes
            canonical(Probe().model_copy(update={"number": value}))


def test_walk_yields_inputs_first_and_each_once() -> None:
    kinds = [recipe.kind for recipe in walk(chain())]
    assert sorted(kinds) == ["distill", "edm", "features", "grow", "grow", "pairs"]
    assert kinds.index("edm") < kinds.index("pairs") < kinds.index("distill") < kinds.index("grow")


# Errors: one line that names the path of the key and the nearest right word


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widht": 1}, r"^r.json: unknown key 'widht' in 'grow'; did you mean 'width'\?"),
        (
            {"base": {"kind": "distil"}},
            rf"^r.json: base: unknown kind 'distil'; did you mean 'distill'\? \(known: {BASES}\)$",
        ),
        ({"base": {"kind": "edm"}}, rf"^r.json: base: unknown kind 'edm' \(known: {BASES}\)$"),
        ({"train": {"stepz": 1}}, r"^r.json: train: unknown key 'stepz'; did you mean 'steps'\?"),
        ({"seed": "x"}, r"^r.json: seed: Input should be a valid integer"),
        ({"version": 9}, r"^r.json: recipe 'grow' has version 9, this program makes version 1"),
        ({"kind": "gorw"}, r"^r.json: unknown kind 'gorw'; did you mean 'grow'\?"),
    ],
)
def test_errors_name_key_and_nearest(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        Recipe.load({**chain().to_dict(), **change}, where="r.json")
    assert "\n" not in str(caught.value)


def test_errors_deep_inside_name_the_branch_that_was_meant() -> None:
    value = chain().to_dict()
    value["base"]["base"]["sed"] = 1
    with pytest.raises(UserError, match=r"^recipe: base\.base: unknown key 'sed' in 'distill'; did you mean 'seed'\?"):
        Recipe.load(value)


@pytest.mark.parametrize("value", [[], "x", 3, None])
def test_what_is_no_recipe(value: Any) -> None:
    with pytest.raises(UserError, match="valid dictionary"):
        Recipe.load(value)


def test_a_recipe_without_kind() -> None:
    with pytest.raises(UserError, match="a 'kind' is missing"):
        Recipe.load({})


def test_two_configs_of_one_kind_and_unfit_kinds_are_refused() -> None:
    with pytest.raises(TypeError, match="two configs are called 'test-probe'"):

        class Other(Config, kind="test-probe"):
            pass

    with pytest.raises(TypeError, match="a kind names a folder"):

        class Unfit(Config, kind="../up"):
            pass


# Files and other packages


def test_read_recipe(tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    for text, message in (
        ("{", "is no JSON"),
        (json.dumps({**chain().to_dict(), "key": "0" * 20}), "the file was edited"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            registry.read_recipe(path)
    with pytest.raises(UserError, match="cannot read the recipe"):
        registry.read_recipe(tmp_path / "absent.json")
    path.write_text(json.dumps({**chain().to_dict(), "key": chain().key}))
    assert registry.read_recipe(path) == chain()


class Entry:
    dist = None

    def __init__(self, name: str) -> None:
        self.name = self.module = name


def test_packages_register_kinds_and_a_broken_one_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    good = "from pagoda_bench.recipes.base import Recipe\nclass Theirs(Recipe, kind='test-theirs'):\n    seed: int = 0\n"
    (tmp_path / "registers_well.py").write_text(good)
    (tmp_path / "fails_to_import.py").write_text("import a_module_that_is_not_there\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(registry, "registered", lambda: [Entry("fails_to_import"), Entry("registers_well")])
    registry.load_all.cache_clear()
    try:
        registry.load_all()
        assert Recipe.load({"kind": "test-theirs"}).kind == "test-theirs"
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        assert "fails_to_import" in lines[0]
        assert "No module named 'a_module_that_is_not_there'" in lines[0]
    finally:
        KINDS.pop("test-theirs", None)
        registry.load_all.cache_clear()


# The defaults of every version


def pinned(cls: type[Config]) -> dict[str, Any]:
    """The defaults of a config's fields, with those of the untagged configs that its fields hold; "required" for none."""
    defaults = {}
    for name, field in cls.model_fields.items():
        plain = "required" if field.is_required() else field.get_default(call_default_factory=True)
        if isinstance(plain, Config):
            plain = plain.to_dict()
        defaults[name] = json.loads(json.dumps(plain))
        for held in _classes(field.annotation):
            if issubclass(held, Config) and not held.kind and held.model_fields:
                defaults[f"{name}: {held.__name__}"] = pinned(held)
    return defaults


def _classes(annotation: Any) -> list[type]:
    if isinstance(annotation, type) and not get_args(annotation):
        return [annotation]
    return [cls for argument in get_args(annotation) for cls in _classes(argument)]


def all_pinned() -> dict[str, Any]:
    registry.load_all()
    ours = {k: c for k, c in KINDS.items() if c.__module__.startswith(("pagoda_bench.", "baselines."))}
    return {kind: {"version": cls.version, "defaults": pinned(cls)} for kind, cls in sorted(ours.items())}


def test_defaults_are_pinned() -> None:
    """A default that changes its value without a raised version would give old artifacts the key of new ones."""
    golden, current = json.loads(GOLDEN.read_text()), all_pinned()
    for kind, now in current.items():
        assert kind in golden, f"'{kind}' is new: run 'python tests/test_recipes.py'"
        then = golden[kind]
        if then["version"] == now["version"]:
            assert now["defaults"] == then["defaults"], f"'{kind}' changed: raise its version unless only fields were added"
        else:
            pytest.fail(f"'{kind}' has another version: run 'python tests/test_recipes.py'")
    assert golden.keys() <= current.keys(), "a kind is gone"


def test_pinning_sees_a_changed_default() -> None:
    before = pinned(Probe)
    assert before["inner: Inner"] == {"a": 1, "workers": 4}

    class Changed(Recipe):
        number: float = 0.25

    assert pinned(Changed)["number"] != before["number"]


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(all_pinned(), indent=1, sort_keys=True) + "\n")
