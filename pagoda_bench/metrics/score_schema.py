"""What a score looks like outside: one JSON object each, in a list. `docs/evaluation.md` documents the fields.

Version 1. A field may be added without a new version; one that changes its meaning or goes raises it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pagoda_bench.errors import UserError

VERSION = 1
REQUIRED = ("metric", "value", "stderr", "n", "seeds", "protocol", "provenance")

# How a difference in a field is called, where the field's own name is not what people say.
SAID = {
    "weights": "extractor weights",
    "resize": "resize before the extractor",
    "resolution": "resolution of the samples",
    "n": "N",
    "reference_n": "N of the reference",
    "k": "k of the neighbourhoods",
    "rim": "points on the rim",
    "preset": "convention",
    "crop": "crop of the reference",
    "part": "images a part",
    "shuffle": "seed of the shuffle",
    "seed": "seed of the metric",
    "batch": "batch of the extractor",
    "distances": "precision of the distances",
    "subset": "images a subset",
    "prompts": "captions",
}


@dataclass(frozen=True)
class Score:
    """One metric of one set of images: a value with its uncertainty, and all that must agree before it is compared.

    `value` is the mean over `seeds` disjoint blocks of `n` images each; `values` are the blocks' own. `stderr` is None when one
    block says nothing about it. `minimum` is the smallest of them, because published values often are a minimum of three.
    """

    metric: str
    value: float
    stderr: float | None
    n: int
    seeds: int
    protocol: Mapping[str, Any]
    provenance: Mapping[str, Any]
    values: Sequence[float] = ()
    minimum: float | None = None
    std: float | None = None
    direction: str = "lower"  # is better; or "higher"
    unit: str = ""
    range: str = ""
    spread: float | None = None  # over the metric's own parts, as published beside it; no standard error
    spread_of: str | None = None
    stderr_from: str | None = None  # how the standard error was found
    marks: Sequence[str] = ()  # what a reader must know before believing the value
    schema: int = VERSION

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return asdict(self) | {"values": list(self.values), "marks": list(self.marks)}


def dump(scores: Sequence[Score]) -> str:
    """The JSON list. A value that is not finite is a bug of the metric, and raises ValueError."""
    return json.dumps([score.to_dict() for score in scores], indent=1, sort_keys=True, allow_nan=False) + "\n"


def load(path: Path) -> list[Score]:
    """Scores from a file that `evaluate --json` wrote, or a `score.json` of the store. Raises `UserError`, naming the file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"scores {path} cannot be read ({(error.strerror or str(error)).lower()})") from None
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({' '.join(str(error).split())[:80]}): give what 'evaluate --json' wrote") from None
    if isinstance(value, dict) and isinstance(value.get("scores"), dict) and isinstance(value.get("protocol"), dict):
        return _stored(value, path)
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise UserError(f"{path} is no list of scores: give what 'evaluate --json' wrote")
    return [_score(item, path) for item in value]


def differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """What differs between two protocols, such as "N 1,000 vs 10,000"; empty when scores under them may be compared."""
    found = []
    for name in [*a, *(name for name in b if name not in a)]:
        left, right = a.get(name), b.get(name)
        if left != right:
            found.append(f"{SAID.get(name, name.replace('_', ' '))} {_text(left)} vs {_text(right)}")
    return found


def _text(value: Any) -> str:
    if value is None:
        return "unset"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = str(value)
    return text[:12] if len(text) == 64 else text


def _score(item: dict[str, Any], path: Path) -> Score:
    if missing := [name for name in REQUIRED if name not in item]:
        raise UserError(f"{path}: a score lacks '{missing[0]}': give what 'evaluate --json' wrote")
    if item.get("schema", VERSION) != VERSION:
        raise UserError(
            f"{path} has scores of schema {item['schema']}, this program reads {VERSION}: use the release that wrote it"
        )
    metric = item["metric"]
    for name in ("value", "n", "seeds"):
        if isinstance(item[name], bool) or not isinstance(item[name], (int, float)) or not math.isfinite(item[name]):
            raise UserError(f"{path}: '{name}' of score '{metric}' is no finite number: {str(item[name])[:20]}")
    if not isinstance(item["protocol"], dict) or not isinstance(item["provenance"], dict) or not isinstance(metric, str):
        raise UserError(f"{path}: a score's metric must be text, its protocol and provenance objects")
    return Score(**{name: value for name, value in item.items() if name in Score.__dataclass_fields__})


def _stored(value: dict[str, Any], path: Path) -> list[Score]:
    """The payload of a score artifact, whose one protocol covers all of its metrics."""
    protocol = value["protocol"]
    higher = ("precision", "recall", "density", "coverage", "is")
    return [
        Score(name, float(number), None, int(protocol.get("n", 0)), 1, protocol, {"artifact": path.parent.name},
              direction="higher" if name in higher else "lower")
        for name, number in value["scores"].items()
    ]  # fmt: skip
