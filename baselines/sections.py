"""The values of a method at a scale: its preset, and over that what the scale and the row say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pagoda_bench.errors import UserError, nearest
from pagoda_bench.recipes.values import merged

FALLBACK = "embedded"


def section(presets: Mapping[str, Mapping[str, Any]], given: Mapping[str, Any], scale: str, method: str) -> dict[str, Any]:
    """`given`, which is `methods.<method>` of the scale, merged over a preset: the one that its key `preset` names, else
    the one called as the scale is, else "embedded". Lists and plain values replace, mappings are merged.

    Raises:
        UserError: `preset` names none.
    """
    own = dict(given)
    name = own.pop("preset", scale if scale in presets else FALLBACK)
    if name not in presets:
        raise UserError(f"scale '{scale}', methods.{method}.preset: unknown preset '{name}'{nearest(str(name), presets)}")
    return merged(presets[name], own)
