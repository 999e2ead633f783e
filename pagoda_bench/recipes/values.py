"""Plain values, before a recipe is made of them: read from YAML, and merged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from pagoda_bench.errors import UserError

LIMIT = 100_000  # values in a text with all aliases written out: a few short lines of aliases of aliases can name billions


class _Loader(yaml.SafeLoader):
    """Without numbers to the base of 60: `time: 4:00:00` is that text, as SLURM takes it, and not 14400."""

    def resolve(self, kind: Any, value: Any, implicit: Any) -> Any:
        tag = super().resolve(kind, value, implicit)
        plain = kind is yaml.ScalarNode and implicit[0] and ":" in value
        return self.DEFAULT_SCALAR_TAG if plain and tag.rpartition(":")[2] in ("int", "float") else tag


def read_yaml(path: Path, what: str) -> Any:
    """The value in a YAML file, as `parse_yaml` gives it; `what` is how an error calls the file, e.g. "the sweep". `UserError`
    also when the file cannot be read, or is not YAML."""
    try:
        return parse_yaml(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise UserError(f"cannot read {what} {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None


def parse_yaml(text: str, where: str) -> Any:
    """The value of a YAML text. What it says by an alias is a copy, so that a change in one place leaves the others alone.

    Raises:
        yaml.YAMLError: it is not YAML, or a group has a key twice.
        UserError: a value contains itself, or there are more than `LIMIT` values once every alias is written out; `where` the
            text stands is named.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > LIMIT:  # asked before `<<` is resolved, which writes out aliases as well
            raise UserError(
                f"{where}: more than {LIMIT:,} values once every alias is written out: use fewer aliases, or say less"
            )
        return _unshared(loader.construct_document(node))
    except RecursionError:
        raise UserError(f"{where}: a value contains itself, or is nested too deeply: write it out without the alias") from None
    finally:
        loader.dispose()


def merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`above` on `below`: mappings are merged key by key, everything else is replaced."""
    out = dict(below)
    for key, value in above.items():
        old = out.get(key)
        out[key] = merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return out


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Keys and values in `node`, itself among them, with every alias written out; above `LIMIT` just more than that. `known`
    has what was counted, by identity, so that an alias takes no time."""
    if id(node) not in known:
        parts = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        if isinstance(node, yaml.MappingNode):
            _once([key for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
        below = 0 if isinstance(node, yaml.ScalarNode) else sum(_size(part, known) for part in parts)
        known[id(node)] = min(1 + below, LIMIT + 1)
    return known[id(node)]


def _once(keys: Sequence[yaml.ScalarNode]) -> None:
    """Refuses keys of one group of which two are the same: the last would take the place of the others unsaid."""
    seen: set[tuple[str, str]] = set()
    for key in keys:
        if (name := (key.tag, key.value)) in seen:
            raise yaml.constructor.ConstructorError(None, None, f"the key '{key.value}' is there twice", key.start_mark)
        seen.add(name)


def _unshared(value: Any) -> Any:
    """A copy in which no part stands in two places."""
    if isinstance(value, dict):
        return {key: _unshared(part) for key, part in value.items()}
    return [_unshared(part) for part in value] if isinstance(value, list) else value
