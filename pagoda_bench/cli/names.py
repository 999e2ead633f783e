"""What NAME means on the command line: a file, an artifact, released weights, or a row of a table."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pagoda_bench.errors import UserError, nearest

if TYPE_CHECKING:
    from pagoda_bench.artifacts.store import Artifact, Store
    from pagoda_bench.recipes.base import Recipe
    from pagoda_bench.recipes.stages import Generator


def generator_named(name: str, points: int | None, store: Store, places: Mapping[str, Path] | None = None) -> Generator:
    """The generator that NAME means, with so many noise levels where `points` says so; `UserError` when it means none, or
    several, or has no noise levels."""
    from pagoda_bench.recipes.imported import generator_of, with_points
    from pagoda_bench.recipes.stages import Generator

    found = meant(name, store, places)
    if not isinstance(found, Generator):
        return generator_of(found, points)
    return found if points is None else with_points(found, points)


def meant(name: str, store: Store, places: Mapping[str, Path] | None = None) -> Generator | Recipe:
    """The recipe or the generator's config that NAME means. `places` are those of `--data`, for tables on your images."""
    from pagoda_bench.recipes.registry import load_all

    load_all()
    if name.endswith(".json"):
        return _in_file(Path(name))
    table, colon, row = name.partition(":")
    if colon:
        return _in_table(table, row, places or {})
    whole = (artifact for artifact in store.artifacts() if artifact.lacks is None)
    recipes = {artifact.name: artifact.recipe for artifact in whole if _means(name, artifact)}
    if len(recipes) == 1:
        return next(iter(recipes.values()))
    if not recipes:
        raise UserError(
            f"no artifact '{name}': 'pagoda-bench artifacts ls' lists them, 'pagoda-bench import' adds released weights"
        )
    raise UserError(f"'{name}' means {len(recipes)} artifacts ({', '.join(sorted(recipes)[:4])}): give one of these names")


def places_of(recipes: Sequence[Recipe], name: str, store: Store) -> dict[str, Path]:
    """The folders of the artifacts of `recipes`, by key; `UserError` when one is not in the store."""
    inputs = {}
    for recipe in recipes:
        if (artifact := store.find(recipe)) is None:
            raise UserError(
                f"{name} needs {recipe.title} ({recipe.kind}/{recipe.key}), which is not in the store: make it first"
            )
        inputs[recipe.key] = artifact.path
    return inputs


def _in_file(path: Path) -> Generator | Recipe:
    from pagoda_bench.recipes.base import KINDS
    from pagoda_bench.recipes.registry import read_recipe
    from pagoda_bench.recipes.stages import Generator

    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise UserError(f"{path} is no JSON") from None
    kind = KINDS.get(str(value.get("kind"))) if isinstance(value, dict) else None
    if kind is not None and issubclass(kind, Generator):
        return Generator.load(value, where=str(path))
    return read_recipe(path)


def _in_table(name: str, wanted: str, places: Mapping[str, Path]) -> Generator:
    from pagoda_bench.cli.reproduce import read_table, table_of

    table, _, scale = name.partition("/")
    built = table_of(read_table(table), scale or None, False, (), places)
    rows = {row.id: row for row in built.rows}
    if wanted not in rows:
        raise UserError(f"table '{table}' has no row '{wanted}'{nearest(wanted, rows)}")
    if (generator := rows[wanted].generator) is None:
        raise UserError(f"{name}:{wanted}: {rows[wanted].unavailable}")
    return generator


def _means(name: str, artifact: Artifact) -> bool:
    from pagoda_bench.recipes.imported import Imported

    kind, _, key = name.rpartition("/")
    if artifact.key.startswith(key) and kind in ("", artifact.kind):
        return True
    return artifact.kind == Imported.kind and isinstance(artifact.recipe, Imported) and artifact.recipe.format == name
