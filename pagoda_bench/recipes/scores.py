"""What is measured: the reference that a score is held against, and the score."""

from __future__ import annotations

from typing import ClassVar

from pydantic import Field

from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.data import DataConfig, Split
from pagoda_bench.recipes.features import Features
from pagoda_bench.recipes.stages import Generator


class Reference(Recipe, kind="reference"):
    """Features of `n` real images of a split at one resolution: what a score is measured against.

    The images are balanced over the classes; all of the split where `n` is its size. Of `keep` of them, balanced, the features
    themselves are kept, which neighbourhoods need; moments are of all.
    """

    runner: ClassVar[str] = "pagoda_bench.metrics.stages:reference"

    data: DataConfig
    features: Features
    resolution: int = Field(ge=1)
    n: int = Field(ge=1)
    split: Split = "val"
    keep: int | None = Field(None, gt=1)  # None: all

    @property
    def title(self) -> str:
        return f"reference {self.resolution}px N={self.n}"


class Score(Recipe, kind="score"):
    """A generator's samples `first` ... `first + n - 1` against a reference. Labels are balanced: index mod classes."""

    runner: ClassVar[str] = "pagoda_bench.metrics.stages:score"
    sharder: ClassVar[str] = "pagoda_bench.metrics.stages:shard"

    generator: Generator
    reference: Reference
    n: int = Field(ge=1)
    first: int = Field(0, ge=0)
    neighbours: int = Field(3, ge=1)  # k of precision and recall (Kynkaanniemi et al. 2019)

    def inputs(self) -> list[Recipe]:
        return [*super().inputs(), self.reference.features]

    @property
    def title(self) -> str:
        return f"score {self.generator.kind} {self.generator.resolution}px N={self.n} from {self.first}"
