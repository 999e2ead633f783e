"""The images of a generator as a stream: sampled while they are measured, never written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.artifacts.store import Store
from pagoda_bench.errors import UserError
from pagoda_bench.metrics.inputs import WHOLE, Batch, Part, Stream
from pagoda_bench.recipes.base import Config, Recipe, canonical
from pagoda_bench.recipes.registry import load_all
from pagoda_bench.recipes.scores import Score
from pagoda_bench.recipes.stages import Generator
from pagoda_bench.sampling.generators import Sampler, load


class Generated(Stream):
    """Samples `first` ... `first + n - 1`, labels in turn (index mod classes)."""

    def __init__(
        self, where: str, config: Generator, sampler: Sampler, n: int, first: int = 0, context: StageContext | None = None
    ) -> None:
        """`context` is what the sampler was loaded with: with it, another process can load it again."""
        if n < 1 or first < 0:
            raise UserError(f"{where}: samples {first} to {first + n - 1} are none: give --n and a first index of 0 or more")
        self.where, self.n = where, n
        self._config, self._sampler, self.first, self._context = config, sampler, first, context
        self.labels, self.guidance = f"balanced over {sampler.classes} classes", config.guided_by

    def __reduce__(self) -> tuple[Any, ...]:
        if self._context is None:
            raise UserError(f"{self.where}: its networks are in memory alone, where other processes have none: use one process")
        return _again, (self.where, self._config, self.n, self.first, self._context)

    def digest(self) -> str:
        """Of the recipe and the indices: they determine the images."""
        return hashlib.sha256(f"{canonical(self._config)} {self.first} {self.n}".encode()).hexdigest()

    def batches(self, size: int, part: Part = WHOLE) -> Iterator[Batch]:
        end = self.first + self.n
        for start in range(self.first + part.first * size, end, part.of * size):
            indices = np.arange(start, min(start + size, end), dtype=np.int64)
            labels = indices % self._sampler.classes
            images, _ = self._sampler.sample(indices, labels)
            if images.dtype != np.uint8 or images.shape[0] != len(indices) or images.shape[3:] != (3,):
                raise UserError(f"{self.where}: the generator gave {images.dtype} {images.shape}, not uint8 (N, H, W, 3)")
            yield Batch(images, labels)


def open_generator(path: Path, store: Store, n: int, first: int = 0, data: dict[str, Path] | None = None) -> Generated:
    """The stream of a JSON file that holds a generator, or the recipe of a score, whose generator it is.

    What the generator needs must be in `store`. Raises `UserError`.
    """
    config = _config(path)
    inputs = {}
    for recipe in _inputs(config):
        artifact = store.find(recipe)
        if artifact is None:
            raise UserError(
                f"{path} needs {recipe.title} ({recipe.kind}/{recipe.key}), which is not in the store: make it first"
            )
        inputs[recipe.key] = artifact.path
    nowhere = Path("/nonexistent")  # loading writes nothing
    context = StageContext(nowhere, nowhere, inputs, dict(data or {}))
    return _again(str(path), config, n, first, context)


def _again(where: str, config: Generator, n: int, first: int, context: StageContext) -> Generated:
    return Generated(where, config, load(config, context), n, first, context)


def _config(path: Path) -> Generator:
    load_all()
    try:
        value: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read as a recipe ({' '.join(str(error).split())[:80]})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path} is no recipe: give a JSON object with a 'kind'")
    value.pop("key", None)
    found = Score.load(value, str(path)).generator if value.get("kind") == Score.kind else Generator.load(value, str(path))
    return found


def _inputs(config: Config) -> Iterator[Recipe]:
    """The recipes that a generator holds, through generators within it."""
    for name in type(config).model_fields:
        value = getattr(config, name)
        if isinstance(value, Recipe):
            yield value
        elif isinstance(value, Config):
            yield from _inputs(value)
