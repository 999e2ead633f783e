"""How long a stage will take, judged by what its like took before."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pagoda_bench.artifacts.provenance import FLOPS
from pagoda_bench.artifacts.store import Store
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.base import Recipe


@dataclass(frozen=True)
class Estimate:
    """Seconds and training work (floating-point operations; None where unknown). `exact`: measured on the same recipe."""

    seconds: float
    flops: float | None
    exact: bool


class Estimator:
    """Looks through a store's provenance, local and released, once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @cached_property
    def _measured(self) -> list[tuple[Recipe, float, float | None]]:
        found = []
        for artifact in self._store.artifacts():
            seconds = artifact.provenance.get("wall_seconds")
            try:
                recipe = artifact.recipe
            except UserError:  # of another release, or of a package that is gone: no measure then
                continue
            if isinstance(seconds, (int, float)):
                found.append((recipe, float(seconds), artifact.provenance.get(FLOPS)))
        return found

    def estimate(self, recipe: Recipe) -> Estimate | None:
        """What the same recipe took; else what the nearest one of its kind took (same title before others, then nearest in
        size), scaled by size; None where nothing of the kind was measured."""
        alike = [(r, s, f) for r, s, f in self._measured if r.kind == recipe.kind]
        for other, seconds, flops in alike:
            if other.key == recipe.key:
                return Estimate(seconds, flops, exact=True)
        if not alike:
            return None
        wanted = size(recipe)
        other, seconds, flops = min(alike, key=lambda m: (m[0].title != recipe.title, abs(size(m[0]) - wanted)))
        scale = wanted / size(other)
        return Estimate(seconds * scale, None if flops is None else flops * scale, exact=False)


def size(recipe: Recipe) -> float:
    """What a stage's time is taken to be proportional to: images trained on, or images made or measured; else 1."""
    train = getattr(recipe, "train", None)
    if train is not None:
        return max(1.0, float(getattr(train, "steps", 1)) * float(getattr(train, "batch", 1)))
    return max(1.0, float(getattr(recipe, "n", getattr(recipe, "count", 1))))
