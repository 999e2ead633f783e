"""Every kind of recipe that this installation knows: the built-in stages, and what installed packages register.

A package registers by an entry point of the group `pagoda_bench.methods` whose value names the module (or an object in the
module) that defines its recipes; importing the module is the registration.
"""

from __future__ import annotations

import importlib
import json
import sys
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path

from pagoda_bench.errors import UserError
from pagoda_bench.recipes.base import Recipe

GROUP = "pagoda_bench.methods"
BUILT_IN = tuple(f"pagoda_bench.recipes.{name}" for name in ("stages", "scores", "imported", "samplers", "work"))
# What a module of somebody else's may raise while it is imported.
IMPORT_FAILURES = (ImportError, SyntaxError, NameError, AttributeError, TypeError, ValueError, OSError, RuntimeError)


def registered() -> list[EntryPoint]:
    """The entry points of the group, by name."""
    return sorted(entry_points(group=GROUP), key=lambda entry: entry.name)


@cache
def load_all() -> None:
    """Imports all modules that define recipes, once a process. A package that fails to import is named in one line on
    stderr and left out: only recipes of its own kinds are lost by that."""
    for module in BUILT_IN:
        importlib.import_module(module)
    for entry in registered():
        try:
            importlib.import_module(entry.module)
        except IMPORT_FAILURES as error:
            reason = str(error).partition("\n")[0]
            package = f" of {entry.dist.name}" if entry.dist else ""
            line = f"method '{entry.name}'{package} is left out: {entry.module}: {type(error).__name__}: {reason}"
            print(f"pagoda-bench: warning: {line}", file=sys.stderr)


def read_recipe(path: Path) -> Recipe:
    """The recipe in a JSON file, as `to_dict` wrote it; a `key` beside it, as in an artifact, must agree.

    Raises:
        UserError: no such file, no JSON, or no recipe that this installation knows.
    """
    load_all()
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the recipe {path}: {error.strerror}") from None
    except ValueError as error:  # also bytes that are no UTF-8
        raise UserError(f"{path} is no JSON: {str(error).partition(chr(10))[0]}") from None
    said = value.pop("key", None) if isinstance(value, dict) else None
    recipe = Recipe.load(value, where=str(path))
    if said is not None and said != recipe.key:
        raise UserError(
            f"{path} says key {said}, but its recipe has key {recipe.key}: the file was edited (then remove 'key'), or "
            "another release wrote it (then use that release, or make the recipe again)"
        )
    return recipe
