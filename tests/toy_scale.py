"""A scale at which every method trains in seconds, and a store in which the plan makes what a method needs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.artifacts.store import Store
from pagoda_bench.plan.dag import Plan
from pagoda_bench.plan.inline import run_plan
from pagoda_bench.recipes.base import Recipe, walk
from pagoda_bench.recipes.stages import Generator
from pagoda_bench.tables.scales import Scale

TRAIN = {"steps": 4, "batch": 8, "warmup": 1}
VALUES: dict[str, Any] = {
    "name": "toy",
    "data": {"kind": "embedded", "master": 16},
    "base": 8,
    "grown": [16],
    "features": {"width": 8, "resolution": 16, "train": TRAIN},
    "teacher": {
        "net": {"resolution": 8, "channels": 16, "encoder": [1, 2], "attention": [4], "grown_blocks": 1},
        "train": TRAIN,
    },
    "points": 3,
    "pairs": {"count": 80, "points": 3},
    "distill": {"train": TRAIN},
    "grow": [{"width": 1, "train": TRAIN}],
    "edm": {"net": {"resolution": 16, "channels": 16, "encoder": [1, 2], "attention": [8]}, "train": {"batch": 8}},
    "score": {"n": 40, "reference": 60},
    "full": {"n": 40, "reference": 60},
}


def toy_scale(**methods: Mapping[str, Any]) -> Scale:
    """The toy scale with sections `methods.<name>`."""
    return Scale.load({**VALUES, "methods": {name: dict(values) for name, values in methods.items()}}, "toy scale")


def models(generator: Generator) -> list[Recipe]:
    """The recipes that a generator reads."""
    holder = _Holder(of=generator)
    return holder.inputs()


class _Holder(Recipe, kind="toy-holder"):
    of: Generator


def context(store: Store, recipes: list[Recipe], folder: Path) -> StageContext:
    """A context with the artifacts of `recipes` as inputs, all made before."""
    inputs = {}
    for recipe in recipes:
        artifact = store.find(recipe)
        assert artifact is not None, recipe.title
        inputs[recipe.key] = artifact.path
    return StageContext.for_test(folder / "out", folder / "work", inputs)


def make(store: Store, recipes: list[Recipe]) -> None:
    """Makes what is missing; a stage that fails fails the test with its own words."""
    outcome = run_plan(Plan(recipes, store))
    assert not outcome.failures, outcome.failures


def everything(recipes: list[Recipe]) -> list[Recipe]:
    """`recipes` and all upstream of them, inputs first, each once."""
    found = {stage.key: stage for recipe in recipes for stage in walk(recipe)}
    return list(found.values())
