"""From an experiment file and a scale to rows of recipes.

An experiment file (experiments/*.yaml) is a grid: `rows` says which method stands at which resolutions, `scales` holds the
values. Everything is checked before anything runs: an unknown key, scale, method or table is refused with the nearest
known one. `--set key=value` changes a value of the scale by its dotted path (`teacher.train.steps=100`, `grow.0.width=1`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field, model_validator

from pagoda_bench.errors import Unavailable, UserError, nearest
from pagoda_bench.recipes.base import Config
from pagoda_bench.recipes.data import DataConfig, ImageData, PreparedData
from pagoda_bench.recipes.scores import Score
from pagoda_bench.recipes.stages import Generator
from pagoda_bench.recipes.values import merged, parse_yaml, read_yaml
from pagoda_bench.tables import methods
from pagoda_bench.tables.cells import DIRECTIONS
from pagoda_bench.tables.lines import COLUMNS, PlotSpec, RowSpec
from pagoda_bench.tables.scales import Sampling, Scale

YOURS = (ImageData.kind, PreparedData.kind)  # kinds of data that the user brings
Describe = Callable[[Mapping[str, Any]], DataConfig]  # the data section of a scale that needs --data -> what lies there


class TableSpec(Config):
    """An experiment file. `scales` stay plain values until one is chosen; `extends` in a scale names one that it changes."""

    table: str
    title: str
    default_scale: str
    scales_of: str | None = None  # another experiment file, whose scales stand below those of this one
    published: str | None = None  # a file in paper_tables/
    published_base: int = 64  # the base resolution of the published chain: twice the base here stands beside twice that
    columns: tuple[str, ...] = COLUMNS  # the scores that are shown
    plots: tuple[PlotSpec, ...] = ()
    rows: tuple[RowSpec, ...]
    scales: dict[str, dict[str, Any]]
    unavailable: dict[str, str] = Field(default_factory=dict)  # scale -> why it cannot be run

    @model_validator(mode="after")
    def _known(self) -> TableSpec:
        for name in self.columns:
            if name not in DIRECTIONS:
                raise ValueError(f"unknown column '{name}'{nearest(name, DIRECTIONS)}")
        ids = [row.id for row in self.rows]
        for plot in self.plots:
            if lost := [name for name in plot.rows if name not in ids]:
                raise ValueError(f"plot '{plot.name}': unknown row '{lost[0]}'{nearest(lost[0], ids)}")
        return self


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a table at one resolution: a generator and one score for each block of sample indices, those of one training
    after another; neither where what it needs is not here. `generator` is that of the first training."""

    id: str  # "pagoda-64"
    row: str  # "pagoda"
    label: str
    system: str
    resolution: int
    generator: Generator | None
    scores: tuple[Score, ...]
    published: str | None = None
    against: str | None = None  # another row
    unavailable: str = ""  # why there is no generator, and what to do
    trainings: int = 1  # with seeds of their own


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table whose every cell is a recipe."""

    name: str
    title: str
    scale: Scale
    sampling: Sampling
    full: bool
    rows: tuple[Row, ...]
    published: str | None
    published_base: int
    changed: bool  # by --set: what is committed for this scale says nothing about it
    columns: tuple[str, ...] = COLUMNS
    plots: tuple[PlotSpec, ...] = ()

    @property
    def scores(self) -> list[Score]:
        return [score for row in self.rows for score in row.scores]

    def only(self, names: Collection[str]) -> Table:
        """The table with the rows of these names, "pagoda" or "pagoda-16"; all of them if there are none."""
        known = {name for row in self.rows for name in (row.row, row.id)}
        if unknown := [name for name in names if name not in known]:
            raise UserError(f"table '{self.name}': unknown row '{unknown[0]}'{nearest(unknown[0], known)}")
        return replace(self, rows=tuple(row for row in self.rows if not names or {row.row, row.id} & set(names)))

    def published_resolution(self, resolution: int) -> int:
        return resolution * self.published_base // self.scale.base


def read(path: Path) -> TableSpec:
    """The experiment file at `path`."""
    value = read_yaml(path, "the experiment")
    if isinstance(value, dict) and isinstance(other := value.get("scales_of"), str):
        below = read(path.with_name(f"{other}.yaml"))
        value = {**value, "scales": merged(below.scales, value.get("scales") or {})}
        value = {**value, "unavailable": {**below.unavailable, **value.get("unavailable", {})}}
    if isinstance(value, dict) and isinstance(scales := value.get("scales"), dict):
        value = {**value, "scales": {name: _read_scale(path, name, scale) for name, scale in scales.items()}}
    spec = TableSpec.load(value, path.name)
    ids = [row.id for row in spec.rows]
    if twice := sorted({i for i in ids if ids.count(i) > 1}):
        raise UserError(f"{path.name}: two rows are called '{twice[0]}'")
    for row in spec.rows:
        if row.against is not None and row.against not in ids:
            raise UserError(
                f"{path.name}: row '{row.id}' is drawn against an unknown row '{row.against}'{nearest(row.against, ids)}"
            )
    return spec


def _read_scale(path: Path, name: str, scale: Any) -> Any:
    """A scale that is the name of a file beside the experiment is read from there; its own `name` gives way."""
    if not isinstance(scale, str):
        return scale
    found = read_yaml(path.parent / scale, "the scale")
    return {k: v for k, v in found.items() if k != "name"} if isinstance(found, dict) else found


def scale_names(spec: TableSpec) -> list[str]:
    return sorted({*spec.scales, *spec.unavailable})


def needs_data(spec: TableSpec, name: str) -> bool:
    """Whether scale `name` measures images that the user brings."""
    return _data(_values(spec, name), name).get("kind") in YOURS


def _data(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    data = values.get("data", {})
    if not isinstance(data, Mapping):
        raise UserError(f"scale '{name}', data: write a group of values with a kind, e.g. {{kind: embedded}}")
    return data


def load_scale(
    spec: TableSpec, name: str, sets: Iterable[str] = (), describe: Describe | None = None, *, planned: bool = False
) -> Scale:
    """The values of scale `name` with `sets` ("key=value") applied. `describe` says what the user's images are; `planned`:
    prepared images may be absent, and the keys of the recipes are then of no images at all."""
    values = _values(spec, name)
    for text in sets:
        _assign(values, text, name)
    data = _data(values, name)
    if data.get("kind") in YOURS:
        if describe is not None:
            values["data"] = describe(data).to_dict()
        elif planned and data["kind"] == PreparedData.kind:
            values["data"] = {"digest": "0" * 64, **data}
        elif "digest" not in data and data["kind"] == PreparedData.kind:
            raise UserError(f"scale '{name}' needs prepared images: give --data FOLDER, made by 'pagoda-bench data prepare'")
        elif "digest" not in data:
            raise UserError(f"scale '{name}' measures your images: give --data PATH, a folder or a zip of them")
    return Scale.load({**values, "name": name}, f"scale '{name}'")


def build(spec: TableSpec, scale: Scale, *, full: bool = False, changed: bool = False) -> Table:
    """The table of `spec` at `scale`: every row a generator and its scores."""
    sampling = scale.full if full else scale.score
    rows = [_row(line, scale, at, sampling) for line in spec.rows for at in line.resolutions(scale)]
    return Table(
        name=spec.table,
        title=spec.title,
        scale=scale,
        sampling=sampling,
        full=full,
        rows=tuple(rows),
        published=spec.published,
        published_base=spec.published_base,
        changed=changed,
        columns=spec.columns,
        plots=spec.plots,
    )


def _row(line: RowSpec, scale: Scale, resolution: int, sampling: Sampling) -> Row:
    head: dict[str, Any] = {
        "id": f"{line.id}-{resolution}",
        "row": line.id,
        "label": line.label,
        "system": line.system,
        "resolution": resolution,
        "published": line.published,
        "against": line.against,
    }
    try:
        generators: list[Generator] = []
        for training in scale.trainings():
            generator = methods.find(line.method)(line.values(training), resolution)
            generators += [] if generator in generators else [generator]  # one where nothing is trained
    except Unavailable as error:
        return Row(**head, generator=None, scores=(), unavailable=str(error))
    if generator.resolution != resolution:
        raise UserError(
            f"row '{line.id}': method '{line.method}' makes {generator.resolution} px where the row asks for {resolution}"
        )
    reference = scale.reference(resolution, sampling)
    scores = tuple(
        Score(
            generator=generator,
            reference=reference,
            n=sampling.n,
            first=block * sampling.n,
            neighbours=sampling.neighbours,
        )
        for generator in generators
        for block in range(sampling.blocks)
    )
    return Row(**head, generator=generators[0], scores=scores, trainings=len(generators))


def _values(spec: TableSpec, name: str, chain: tuple[str, ...] = ()) -> dict[str, Any]:
    """The plain values of a scale, over those of the scale that it extends."""
    if name in spec.unavailable:
        raise UserError(f"scale '{name}' cannot be run: {spec.unavailable[name]}")
    if name not in spec.scales:
        raise UserError(f"unknown scale '{name}' of {spec.table}{nearest(name, scale_names(spec))}")
    if name in chain:
        raise UserError(f"scale '{name}' extends itself: {' -> '.join((*chain, name))}")
    values = copy.deepcopy(spec.scales[name])
    below = values.pop("extends", None)
    return values if below is None else merged(_values(spec, below, (*chain, name)), values)


def _assign(values: dict[str, Any], text: str, name: str) -> None:
    """Applies "a.b.0.c=value", the value read as YAML. What the last key may be is checked when the recipe is made."""
    path, sign, raw = text.partition("=")
    if not sign or not path:
        raise UserError(f"--set {text}: write it as key=value, e.g. --set teacher.train.steps=100")
    try:
        value = parse_yaml(raw, f"--set {text}")
    except yaml.YAMLError:
        raise UserError(f"--set {text}: '{raw}' is not a YAML value") from None
    *parents, last = path.strip().split(".")
    settable = [key for key in Scale.model_fields if key != "name"]
    if (section := [*parents, last][0]) not in settable:
        raise UserError(f"--set {text}: unknown key '{section}'{nearest(section, settable)}")
    node: Any = values
    for part in parents:
        node = _child(node, part, text, name)
    if isinstance(node, list):
        node[_index(node, last, text, name)] = value
    elif isinstance(node, dict):
        node[last] = value
    else:
        raise UserError(f"--set {text}: '{'.'.join(parents)}' of scale '{name}' is a single value")


def _child(node: Any, part: str, text: str, name: str) -> Any:
    """What `part` names in a group, a new group if there is none yet: the recipe knows whether it may be there."""
    if isinstance(node, dict):
        return node.setdefault(part, {})
    if isinstance(node, list):
        return node[_index(node, part, text, name)]
    raise UserError(f"--set {text}: there is nothing below a single value of scale '{name}' for '{part}' to name")


def _index(node: list[Any], part: str, text: str, name: str) -> int:
    known = [str(i) for i in range(len(node))]
    if part not in known:
        raise UserError(f"--set {text}: scale '{name}' has no '{part}' there{nearest(part, known)}")
    return int(part)
