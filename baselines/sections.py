"""The values of a method at a scale: its preset, and over that what the scale and the row say."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

from pagoda_bench.errors import UserError, nearest
from pagoda_bench.recipes.data import DataConfig
from pagoda_bench.recipes.values import merged

if TYPE_CHECKING:
    from pagoda_bench.tables.scales import Scale

FALLBACK = "embedded"


def section(
    presets: Mapping[str, Mapping[str, Any]],
    given: Mapping[str, Any],
    scale: str,
    method: str,
    known: Collection[str] | None = None,
) -> dict[str, Any]:
    """`given`, which is `methods.<method>` of the scale, merged over a preset: the one that its key `preset` names, else
    the one called as the scale is, else "embedded". Lists and plain values replace, mappings are merged. `known` are the keys
    that there may be, where no recipe checks them.

    Raises:
        UserError: `preset` names none, or there is a key that is not known.
    """
    own = dict(given)
    name = own.pop("preset", scale if scale in presets else FALLBACK)
    if name not in presets:
        raise UserError(f"scale '{scale}', methods.{method}.preset: unknown preset '{name}'{nearest(str(name), presets)}")
    found = merged(presets[name], own)
    if known is not None and (unknown := sorted(set(found) - set(known))):
        raise UserError(f"scale '{scale}', methods.{method}: unknown key '{unknown[0]}' (known: {', '.join(sorted(known))})")
    return found


def match_of(values: Mapping[str, Any], scale: Scale, resolution: int) -> Any:
    """What the section's `match` stands for: the work of PaGoDA's chain at that resolution unless it says otherwise."""
    match = values.get("match", "chain")
    return scale.work_of(resolution) if match == "chain" else match


def class_count(data: DataConfig) -> int:
    """How many classes the data have, by their description (the embedded data: ten)."""
    found = getattr(data, "classes", None)
    if isinstance(found, int):
        return found
    return len(found) if found else 10
