"""From score artifacts to cells: means over the blocks, standard errors, noise floors, training work, provenance.

A score artifact holds `score.json` (`scores` by name, and their `protocol`). Its provenance tells what was timed, the inputs'
digests and the training work of everything upstream, so that the generator itself need not be there.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from pagoda_bench.artifacts.checkpoint import read_json
from pagoda_bench.artifacts.provenance import UPSTREAM_FLOPS
from pagoda_bench.artifacts.store import Artifact
from pagoda_bench.errors import UserError
from pagoda_bench.metrics.protocol import Protocol
from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.features import Features
from pagoda_bench.recipes.scores import Reference, Score
from pagoda_bench.recipes.trained import trained_upstream
from pagoda_bench.tables.cells import DIRECTIONS, DISTANCE, LOWER, OVER_FLOOR, Cell, differences
from pagoda_bench.tables.render import REAL
from pagoda_bench.tables.spec import Row, Table

SCORE = "score.json"


def assemble(table: Table, artifacts: Mapping[str, Artifact], failures: Mapping[str, str]) -> list[Cell]:
    """The cells of all rows in order. `artifacts` and `failures` (why not) are by key, as the launcher returns them."""
    cells: list[Cell] = []
    for row in table.rows:
        head = _head(table, row)
        lost = [score for score in row.scores if score.key not in artifacts]
        if row.unavailable:
            cells.append(replace(head, status=_unavailable(row.unavailable)))
        elif lost:
            cells.append(replace(head, status=f"not made: {_why(lost[0], failures)}"))
        else:
            cells += _measured(head, row, [artifacts[score.key] for score in row.scores], table.columns)
    return [*with_floor(cells)]


def _head(table: Table, row: Row) -> Cell:
    return Cell(
        table=table.name,
        scale=table.scale.name,
        row=row.row,
        label=row.label,
        system=row.system,
        resolution=row.resolution,
        scores=" ".join(score.key for score in row.scores),
    )


def _why(score: Score, failures: Mapping[str, str]) -> str:
    """The failure itself rather than that of what only waited for it."""
    for recipe in [*_upstream(score), score]:
        if recipe.key in failures:
            return f"{recipe.title} failed: {failures[recipe.key]}"
    return "it was not run"


def _unavailable(reason: str) -> str:
    return reason if reason.startswith("not available") else f"not available: {reason}"


def _upstream(recipe: Recipe) -> Iterator[Recipe]:
    for parent in recipe.inputs():
        yield from _upstream(parent)
        yield parent


def _measured(head: Cell, row: Row, blocks: Sequence[Artifact], columns: Sequence[str]) -> list[Cell]:
    found = [read_score(artifact) for artifact in blocks]
    each = len(found) // row.trainings  # ranges of sample indices of one training
    trainings = range(0, len(found), each)  # the first of each
    parameters = _mean([score["scores"].get("parameters") for score in found])
    protocol = Protocol.load(found[0]["protocol"], f"{blocks[0].path / SCORE}, protocol")
    common = replace(
        head,
        blocks=row.trainings if row.trainings > 1 else len(blocks),
        trainings=row.trainings,
        n=row.scores[0].n,
        nfe=_mean([score["scores"].get("nfe") for score in found]),
        images_per_second=_mean([artifact.provenance.get("images_per_second") for artifact in blocks]),
        parameters=None if parameters is None else round(parameters),
        training_flops=_mean([training_flops(row.scores[i], blocks[i]) for i in trainings]),
        weights=weights(row.scores, blocks),
        git_revision=_revision(blocks[0]),
    )
    cells = []
    for name in (m for m in DIRECTIONS if m in columns and all(m in score["scores"] for score in found)):
        values = [float(score["scores"][name]) for score in found]
        if row.trainings > 1:
            values = [statistics.fmean(values[i : i + each]) for i in trainings]
        std = statistics.stdev(values) if len(values) > 1 else None
        cells.append(
            replace(
                common,
                metric=name,
                direction=DIRECTIONS[name],
                value=statistics.fmean(values),
                std=std,
                stderr=None if std is None else std / math.sqrt(len(values)),
                min=min(values),
                max=max(values),
                protocol=protocol.of(name).to_dict(),
            )
        )
    return cells


def read_score(artifact: Artifact) -> dict[str, Any]:
    """The `score.json` of an artifact; `UserError` names the artifact when it holds none."""
    value = read_json(artifact.path / SCORE)
    if not isinstance(value, dict) or not {"scores", "protocol"} <= value.keys():
        raise UserError(f"{artifact.path} holds no readable {SCORE}: remove that folder and run again")
    return value


def with_floor(cells: Sequence[Cell]) -> Iterator[Cell]:
    """After each distance the same in units of the noise floor, where that is not there yet: the distance of real images at
    that resolution, by the same protocol."""
    floors = {c.resolution: c for c in cells if c.system == REAL and c.metric == DISTANCE and c.value}
    there = {c.id for c in cells if c.metric == OVER_FLOOR}
    for cell in cells:
        yield cell
        real = floors.get(cell.resolution)
        if cell.metric != DISTANCE or cell.value is None or real is None or cell.id in there:
            continue
        if (floor := real.value) and not differences(cell, real):
            yield replace(
                cell,
                metric=OVER_FLOOR,
                direction=LOWER,
                value=cell.value / floor,
                stderr=_over(cell.stderr, floor),
                std=_over(cell.std, floor),
                min=_over(cell.min, floor),
                max=_over(cell.max, floor),
            )


def _over(value: float | None, floor: float) -> float | None:
    return None if value is None else value / floor


def trained_from(score: Score) -> list[Recipe]:
    """Every stage that the scored generator comes from, less the feature network, which judges all rows alike (as networks
    trained on ImageNet do in the paper), and less the model whose work another one matches."""
    found: dict[str, Recipe] = {}
    for parent in score.inputs():
        if not isinstance(parent, Reference | Features):
            found |= {recipe.key: recipe for recipe in (parent, *trained_upstream(parent))}
    return list(found.values())


def training_flops(score: Score, artifact: Artifact) -> float | None:
    """Floating-point operations of training all of `trained_from`, each stage once; 0 for real images, None when a stage
    recorded none. Read from the score's provenance, which carries them."""
    recorded = artifact.provenance.get(UPSTREAM_FLOPS, {})
    work = [recorded.get(f"{recipe.kind}/{recipe.key}") for recipe in trained_from(score)]
    return None if None in work else float(sum(work))


def weights(scores: Sequence[Score], artifacts: Sequence[Artifact]) -> str:
    """A digest of the weights behind the samples, all trainings together: those of the scores' inputs, less the reference and
    its features."""
    digests: set[tuple[str, str]] = set()
    for score, artifact in zip(scores, artifacts, strict=True):
        judge = {f"{r.kind}/{r.key}" for r in (score.reference, score.reference.features)}
        digests |= {(name, value) for name, value in artifact.provenance.get("inputs", {}).items() if name not in judge}
    lines = "".join(f"{name} {digest}\n" for name, digest in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()[:20] if lines else ""


def _revision(artifact: Artifact) -> str:
    package = artifact.provenance.get("package", {})
    revision = package.get("revision") or ""
    return f"{revision}+changes" if revision and package.get("dirty") else revision


def _mean(values: Sequence[float | None]) -> float | None:
    known = [float(v) for v in values if v is not None]
    return statistics.fmean(known) if len(known) == len(values) else None
