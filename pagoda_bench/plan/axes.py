"""A sweep file: a table, and axes along which values of its scale are changed.

The points of a sweep are the product of its blocks: every axis of `product`, the axes of `zip` side by side, the explicit
`points`, the `seeds`. `only` keeps and `exclude` drops the points that agree with one of their entries in all its values.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from pagoda_bench.errors import UserError, nearest
from pagoda_bench.recipes.base import Config
from pagoda_bench.recipes.values import read_yaml

Point = dict[str, Any]


class SweepSpec(Config):
    """A sweep file. Axes are dotted paths into the scale, as `--set` of `reproduce` takes them."""

    sweep: str  # names the file of its values
    table: str = "table1"
    scale: str | None = None
    full: bool = False
    rows: tuple[str, ...] = ()  # names of the table's rows, or "name-resolution"; empty: all
    values: dict[str, Any] = Field(default_factory=dict)  # changed in every point
    product: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    zip: dict[str, tuple[Any, ...]] = Field(default_factory=dict)
    points: tuple[Point, ...] = ()
    seeds: tuple[int, ...] = ()
    only: tuple[Point, ...] = ()
    exclude: tuple[Point, ...] = ()
    stages: dict[str, dict[str, Any]] = Field(default_factory=dict)  # requests by kind, before those of the cluster

    @model_validator(mode="after")
    def _writable(self) -> SweepSpec:
        if not re.fullmatch(r"\w[\w.-]*", self.sweep):
            raise ValueError(f"sweep: '{self.sweep}' cannot name a file: use letters, digits, '.', '-' and '_'")
        for entry in (self.values, self.product, self.zip, *self.points, *self.only, *self.exclude):
            for name, value in entry.items():
                if (odd := _odd(value)) is not None:
                    raise ValueError(
                        f"'{name}': {odd!s} ({type(odd).__name__}) is no value of a recipe; is it a text? Quote it"
                    )
        return self

    @property
    def axes(self) -> list[str]:
        """The names of all that varies, in order of appearance."""
        explicit = [name for point in self.points for name in point]
        return list(dict.fromkeys([*self.product, *self.zip, *explicit, *(["seed"] if self.seeds else [])]))


def read_sweep(path: Path) -> SweepSpec:
    """The sweep file at `path`."""
    value = read_yaml(path, "the sweep")
    if isinstance(value, dict) and "sweep" not in value and "rows" in value:
        raise UserError(f"{path} is a table, not a sweep: 'pagoda-bench reproduce {path.stem}' makes it")
    return SweepSpec.load(value, str(path))


def expand(spec: SweepSpec) -> list[Point]:
    """All points of a sweep, each once, in a fixed order; a `UserError` when there is none."""
    blocks: list[list[Point]] = [[{name: value} for value in values] for name, values in spec.product.items()]
    if spec.zip:
        lengths = {name: len(values) for name, values in spec.zip.items()}
        if len(set(lengths.values())) > 1:
            said = ", ".join(f"{name} has {length}" for name, length in lengths.items())
            raise UserError(f"sweep '{spec.sweep}': the axes of zip go side by side and need equally many values: {said}")
        blocks.append([dict(zip(spec.zip, values, strict=True)) for values in zip(*spec.zip.values(), strict=True)])
    if spec.points:
        blocks.append(list(spec.points))
    if spec.seeds:
        blocks.append([{"seed": seed} for seed in spec.seeds])
    if names := _twice([name for block in blocks for name in {name for point in block for name in point}]):
        raise UserError(f"sweep '{spec.sweep}': '{names[0]}' varies in two places: leave one of them out")
    for entry in (*spec.only, *spec.exclude):
        for name in entry:
            if name not in spec.axes:
                raise UserError(f"sweep '{spec.sweep}': a filter names '{name}', no axis{nearest(name, spec.axes)}")
    found: dict[str, Point] = {}
    for parts in itertools.product(*blocks):
        point = {name: value for part in parts for name, value in part.items()}
        if (not spec.only or _agrees(point, spec.only)) and not _agrees(point, spec.exclude):
            found.setdefault(json.dumps(point, sort_keys=True), point)
    if not found:
        raise UserError(f"sweep '{spec.sweep}' has no points: an axis without values, or filters that drop all of them")
    return list(found.values())


def settings(spec: SweepSpec, point: Mapping[str, Any], sets: Sequence[str] = ()) -> list[str]:
    """A point as `--set` arguments: the file's `values`, those of the command line, then the point's own."""
    for text in sets:
        if (name := text.partition("=")[0].strip()) in spec.axes:
            raise UserError(f"--set {text}: '{name}' is an axis of the sweep; change it in the file")
    return [*_written(spec.values), *sets, *_written(point)]


def _odd(value: Any) -> Any:
    """What in a value of a YAML file JSON has no word for: a date, a number that is not finite; None where all is plain."""
    if isinstance(value, Mapping):
        return next((odd for part in (*value, *value.values()) if (odd := _odd(part)) is not None), None)
    if isinstance(value, (list, tuple)):
        return next((odd for part in value if (odd := _odd(part)) is not None), None)
    if isinstance(value, float):
        return None if math.isfinite(value) else value
    return None if value is None or isinstance(value, (str, int)) else value


def _written(values: Mapping[str, Any]) -> list[str]:
    return [f"{name}={json.dumps(value)}" for name, value in values.items()]


def _agrees(point: Point, entries: Iterable[Point]) -> bool:
    return any(all(name in point and point[name] == value for name, value in entry.items()) for entry in entries)


def _twice(names: list[str]) -> list[str]:
    return [name for i, name in enumerate(names) if name in names[:i]]
