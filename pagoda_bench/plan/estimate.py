"""How long a stage will take, judged by what its like took before."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, fields
from functools import cached_property, partial
from pathlib import Path

from pagoda_bench.artifacts.checkpoint import read_json, save_atomic
from pagoda_bench.artifacts.provenance import FLOPS, counted_work
from pagoda_bench.artifacts.store import Artifact, Store
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.base import Recipe, walk
from pagoda_bench.recipes.data import DataConfig
from pagoda_bench.recipes.trained import trained_upstream
from pagoda_bench.recipes.work import Work

TIMES = "times.json"
"""In a released store: what all stages took where it was made, those included whose artifacts are not given away."""


@dataclass(frozen=True)
class Estimate:
    """Seconds and training work (floating-point operations; None where unknown). `exact`: measured on the same recipe."""

    seconds: float
    flops: float | None
    exact: bool


@dataclass(frozen=True)
class Measure:
    """What one stage took."""

    kind: str
    key: str
    what: str
    size: float
    seconds: float
    flops: float | None


FIELDS = {field.name for field in fields(Measure)}


def measures(artifacts: Iterable[Artifact]) -> Iterator[Measure]:
    """Of artifacts, each once: of one that is there locally and released, the first."""
    seen: set[str] = set()
    for artifact in artifacts:
        if artifact.name in seen:
            continue
        seen.add(artifact.name)
        seconds = artifact.provenance.get("wall_seconds")
        try:
            recipe = artifact.recipe
        except UserError:  # of another release, or of a package that is gone: no measure then
            continue
        if isinstance(seconds, (int, float)):
            flops = artifact.provenance.get(FLOPS)
            yield Measure(recipe.kind, recipe.key, what(recipe), size(recipe), float(seconds), flops)


def save_measures(found: list[Measure], path: Path) -> None:
    """Writes `times.json`, which estimates start from where nothing was measured yet."""
    text = json.dumps([asdict(m) for m in sorted(found, key=lambda m: (m.kind, m.what, m.key))], indent=1) + "\n"
    save_atomic(path, partial(_put, text))


def saved_measures(root: Path) -> list[Measure]:
    """What `save_measures` left in a store that was given away."""
    noted = read_json(root / TIMES)
    return [Measure(**m) for m in noted if m.keys() == FIELDS] if isinstance(noted, list) else []


def _put(text: str, path: Path) -> None:
    path.write_text(text, encoding="utf-8")


class Estimator:
    """Looks through a store's provenance, local and released, once."""

    def __init__(self, store: Store) -> None:
        self._store = store

    @cached_property
    def _measured(self) -> list[Measure]:
        found = list(measures(self._store.artifacts()))
        for root in self._store.released:
            found += saved_measures(root)
        return found

    def estimate(self, recipe: Recipe) -> Estimate | None:
        """What the same recipe took; else what the nearest in size took that does the same on the same kind of data, scaled by
        size; None where nothing of the kind was measured. The size of a training that is held to the work of a chain is its
        part of that work, once it is counted."""
        wanted, does = size(recipe), what(recipe)
        alike = [m for m in self._measured if m.kind == recipe.kind and m.what == does]
        for measure in alike:
            if measure.key == recipe.key:
                return Estimate(measure.seconds, measure.flops, exact=True)
        if not alike:
            return None
        counted = [m for m in alike if m.flops]
        if counted and (flops := self._matched(recipe)):
            like = min(counted, key=lambda m: abs((m.flops or 0) - flops))
            return Estimate(like.seconds * flops / (like.flops or 1), flops, exact=False)
        nearest = min(alike, key=lambda m: abs(m.size - wanted))
        scale = wanted / nearest.size
        return Estimate(nearest.seconds * scale, None if nearest.flops is None else nearest.flops * scale, exact=False)

    def _matched(self, recipe: Recipe) -> float | None:
        """Operations that are left for a training with `match`: its share of the chain's less what comes before it. None where
        one of these is not known."""
        match = getattr(recipe, "match", None)
        found = self._store.find(match) if isinstance(match, Work) else None
        if found is None:
            return None
        try:
            left = float(getattr(recipe, "share", 1.0)) * counted_work(found.path)
        except UserError:  # the stage that needs it will say so; a plan can do without
            return None
        for parent in trained_upstream(recipe):
            before = self.estimate(parent)
            if before is None or before.flops is None:
                return None
            left -= before.flops
        return max(0.0, left)


def what(recipe: Recipe) -> str:
    """What a stage does, e.g. "score heun 64px of embedded": its title without how many images and which, and its data."""
    title = re.sub(r" (N=|from )\d+", "", recipe.title)
    data = next((d for r in walk(recipe) if isinstance(d := getattr(r, "data", None), DataConfig)), None)
    return title if data is None else f"{title} of {data.describe()}"


def size(recipe: Recipe) -> float:
    """What a stage's time is taken to be proportional to: images trained on, or images made or measured; else 1."""
    train = getattr(recipe, "train", None)
    if train is not None:
        return max(1.0, float(getattr(train, "steps", 1)) * float(getattr(train, "batch", 1)))
    return max(1.0, float(getattr(recipe, "n", getattr(recipe, "count", 1))))
