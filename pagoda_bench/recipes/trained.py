"""Recipes of models trained by the one loop for a given amount of counted work, and what counts as a model's own work."""

from __future__ import annotations

from pydantic import Field

from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.data import DataConfig
from pagoda_bench.recipes.features import Features
from pagoda_bench.recipes.stages import TrainConfig


class Trained(Recipe):
    """A model trained on `data`. With `match`, `train.steps` is ignored: the training takes as many steps as bring the
    counted work of this recipe and of its own upstream (each stage once, without the feature network) to `share` times the
    work of `match` and all of *its* upstream. A row of several stages that follow from each other so rises to 1 in its last
    stage; stages side by side take shares that sum to 1.
    """

    data: DataConfig
    train: TrainConfig
    seed: int = Field(0, ge=0)
    match: Recipe | None = None
    share: float = Field(1.0, gt=0)


def trained_upstream(recipe: Recipe) -> list[Recipe]:
    """Every stage that `recipe` is made from, itself left out, inputs first: less the feature network, which judges all rows
    alike, and less the recipe whose work a `match` names, which is a measure and no ingredient."""
    found: dict[str, Recipe] = {}

    def visit(node: Recipe) -> None:
        matched = getattr(node, "match", None)
        for parent in node.inputs():
            measure = matched is not None and parent.key == matched.key
            if not measure and not isinstance(parent, Features) and parent.key not in found:
                visit(parent)
                found[parent.key] = parent

    visit(recipe)
    return list(found.values())
