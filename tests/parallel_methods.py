"""One process of a training of every baseline's stages by two; run by test_data_parallel.py under RANK and WORLD_SIZE."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from pagoda_bench.artifacts.store import Store
from pagoda_bench.recipes.base import Recipe
from tests.test_conformance import NAMES, at_toy_scale, runner_of
from tests.toy_scale import context, everything, models

OURS = ("edm", "distill", "grow", "features", "pairs", "work")  # what tests of their own train in two processes


def all_models() -> list[Recipe]:
    return [recipe for name in NAMES for recipe in models(at_toy_scale(name))]


def stages() -> list[Recipe]:
    """The trained stages of all baselines, inputs first."""
    return [recipe for recipe in everything(all_models()) if recipe.kind not in OURS and "train" in type(recipe).model_fields]


def runs() -> list[tuple[Recipe, str]]:
    """Every stage and the folder of its results; those of greedy growing once more with sharded weights."""
    found = stages()
    greedy = [recipe for recipe in found if recipe.kind.startswith("greedy")]
    sharded = [r.model_copy(update={"train": r.train.model_copy(update={"shard": True})}) for r in greedy]  # type: ignore[attr-defined]
    return [*((r, r.key) for r in found), *((r, f"{r.key}-sharded") for r in sharded)]


def main(store: Path, out: Path, ports: list[str]) -> None:
    for (recipe, name), port in zip(runs(), ports, strict=True):
        os.environ["MASTER_PORT"] = port
        ctx = context(Store(store), recipe.inputs(), out / name)
        runner_of(recipe)(recipe, ctx)
        (out / name / "facts.json").write_text(json.dumps(ctx.facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] + os.environ["RANK"]), sys.argv[3:])
