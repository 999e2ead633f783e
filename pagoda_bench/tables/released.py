"""The method `released`: released weights, imported before, as a row of a table.

    rows:
      - {id: released, label: "PaGoDA, released weights", system: PaGoDA, method: released, at: [64, 256]}
    scales:
      imagenet:
        methods: {released: {"64": PATH/recipe.json, "256": PATH/recipe.json}}

where PATH is the folder that `pagoda-bench import` prints.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pagoda_bench.errors import Unavailable, UserError
from pagoda_bench.recipes.imported import generator_of
from pagoda_bench.recipes.methods import describe
from pagoda_bench.recipes.registry import read_recipe
from pagoda_bench.recipes.stages import Generator

if TYPE_CHECKING:
    from pagoda_bench.tables.scales import Scale


@describe(
    title="Released weights",
    paper="arXiv 2405.14822, 2206.00364",
    reference="pagoda_bench/pagoda/importing.py",
    weights="sony/pagoda; EDM ImageNet-64 (OpenAI's format); ADM ImageNet-64",
    licence="MIT (sony/pagoda, openai/consistency_models, openai/guided-diffusion)",
    tested="outputs of the official code on formula weights",
    at="all",
)
def released(scale: Scale, resolution: int) -> Generator:
    """The generator of the weights that the scale names for this resolution. `UserError` when it names none, or others."""
    path = scale.methods.get("released", {}).get(str(resolution))
    if path is None:
        raise Unavailable(
            f"scale '{scale.name}' names no released weights at {resolution} px: import a checkpoint and set "
            f"methods.released.{resolution} to the recipe.json of what that made"
        )
    generator = generator_of(read_recipe(Path(str(path))))
    if generator.resolution != resolution:
        raise UserError(f"methods.released.{resolution}: {path} makes {generator.resolution} px images")
    return generator
