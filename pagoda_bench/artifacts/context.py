"""What a stage gets to work with: the only way in which a runner meets the store."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pagoda_bench.artifacts.checkpoint import read_json
from pagoda_bench.artifacts.digests import PROVENANCE
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.base import Recipe

ANY_DATA = "*"


def _silent(done: int, total: int, info: Mapping[str, float | str]) -> None:
    """Reports nothing."""


@dataclass
class StageContext:
    """Handed to a stage's runner, `run(recipe, context)`.

    `out` is an empty folder: all that is written there becomes the artifact's payload. `work` survives a kill and is
    removed when the artifact is published: checkpoints live there (`checkpoint.save_atomic`).
    """

    out: Path
    work: Path
    inputs: Mapping[str, Path] = field(default_factory=dict)  # folder of each input, by the key of its recipe
    data: Mapping[str, Path] = field(default_factory=dict)  # place of images, by digest; "*" stands for any
    report: Callable[[int, int, Mapping[str, float | str]], None] = _silent
    facts: dict[str, Any] = field(default_factory=dict)
    counting: bool = False  # only the work is asked for: nothing is to be learnt or computed that can be done without

    @classmethod
    def for_test(
        cls, out: Path, work: Path, inputs: Mapping[str, Path] | None = None, data: Mapping[str, Path] | None = None
    ) -> StageContext:
        """A context without a store; makes the two folders. `inputs` maps the key of a recipe to a folder."""
        out.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        return cls(out, work, dict(inputs or {}), dict(data or {}))

    def input(self, recipe: Recipe) -> Path:
        """The folder of an input, its payload files inside. It must be one of the running recipe's `inputs()`."""
        try:
            return self.inputs[recipe.key]
        except KeyError:
            raise UserError(
                f"{recipe.kind}/{recipe.key} is not among the inputs of the stage that asks for it: "
                "its recipe's inputs() must name it"
            ) from None

    def provenance(self, recipe: Recipe) -> dict[str, Any]:
        """An input's `provenance.json`."""
        value = read_json(self.input(recipe) / PROVENANCE)
        if not isinstance(value, dict):
            raise UserError(f"{self.input(recipe)} has no readable {PROVENANCE}")
        return value

    def data_path(self, digest: str) -> Path:
        """Where the images of this digest were said to be. Whether they are those images is for the reader to check."""
        path = self.data.get(digest) or self.data.get(ANY_DATA)
        if path is None:
            raise UserError(f"the images with digest {digest[:12]} are needed: say where they are with --data PATH")
        return path

    def progress(self, done: int, total: int, **info: float | str) -> None:
        """`done` of `total` steps, and perhaps a value or two worth showing. Cheap enough to call every step."""
        self.report(done, total, info)

    def record(self, **facts: Any) -> None:
        """Adds facts to the provenance: `training_flops=`, `device=`, `nfe=`, `parameters=`, ... as JSON values."""
        for name, value in facts.items():
            plain = value.item() if hasattr(value, "item") and not isinstance(value, (str, list, dict)) else value
            try:
                json.dumps(plain, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ValueError(f"cannot record {name}={value!r} in the provenance: {error}") from None
            self.facts[name] = plain
