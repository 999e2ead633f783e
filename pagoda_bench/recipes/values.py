"""Plain values, before a recipe is made of them: read from YAML, and merged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from pagoda_bench.errors import UserError


def read_yaml(path: Path, what: str) -> Any:
    """The value in a YAML file; `what` is how an error calls the file, e.g. "the sweep". What the file says by an alias
    is a copy, so that a change in one place leaves the others alone."""
    try:
        return _unshared(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    except RecursionError:
        raise UserError(f"{path}: a value contains itself, or is nested too deeply: write it out without the alias") from None


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` on `below`: mappings are merged key by key, everything else is replaced."""
    out = dict(below)
    for key, value in above.items():
        old = out.get(key)
        out[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def _unshared(value: Any) -> Any:
    """A copy in which no part stands in two places."""
    if isinstance(value, dict):
        return {key: _unshared(part) for key, part in value.items()}
    return [_unshared(part) for part in value] if isinstance(value, list) else value
