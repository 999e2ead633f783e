"""The method `released`: released weights, imported before, as a row of a table.

    rows:
      - {id: released, label: "PaGoDA, released weights", system: PaGoDA, method: released, at: [64, 256]}
    scales:
      imagenet:
        methods: {released: {"64": PATH/recipe.json, "256": PATH/recipe.json}}

where PATH is the folder that `pagoda-bench import` prints. Several rows at one resolution say by the option `as` which weights
they mean, and the scale names them so:

    rows:
      - {id: cd, label: "CD, released", system: Consistency, method: released, at: [64], options: {as: cd-lpips-64}}
    scales:
      imagenet:
        methods: {released: {cd-lpips-64: PATH/recipe.json}}
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, get_args

from pagoda_bench.errors import Unavailable, UserError, nearest
from pagoda_bench.recipes.formats import Format
from pagoda_bench.recipes.imported import Imported, generator_of
from pagoda_bench.recipes.methods import describe
from pagoda_bench.recipes.registry import read_recipe
from pagoda_bench.recipes.stages import Generator

if TYPE_CHECKING:
    from pagoda_bench.tables.scales import Scale


@describe(
    title="Released weights",
    paper="arXiv 2405.14822, 2206.00364, 2303.01469, 2310.02279",
    reference="pagoda_bench/pagoda/importing.py",
    weights="sony/pagoda; ImageNet-64: EDM, CD and CT (openai/consistency_models), ADM, CTM (sony/ctm)",
    licence="MIT (sony/pagoda, sony/ctm, openai/consistency_models, openai/guided-diffusion)",
    tested="outputs of the official code on formula weights",
    at="all",
)
def released(scale: Scale, resolution: int) -> Generator:
    """The generator of the weights that the scale names for this resolution. `UserError` when it names none, or others."""
    section = scale.methods.get("released", {})
    meant = section.get("as")
    if meant is not None and meant not in get_args(Format):
        raise UserError(f"methods.released.as: there are no weights called '{meant}'{nearest(str(meant), get_args(Format))}")
    key = str(resolution if meant is None else meant)
    path = section.get(key)
    if path is None:
        which = f"no released weights at {resolution} px" if meant is None else f"no released weights '{meant}'"
        raise Unavailable(
            f"scale '{scale.name}' names {which}: import a checkpoint and set methods.released.{key} to the recipe.json of "
            "what that made"
        )
    recipe = read_recipe(Path(str(path)))
    if meant is not None and (not isinstance(recipe, Imported) or recipe.format != meant):
        raise UserError(f"methods.released.{key}: {path} is {recipe.title}, not {meant}")
    generator = generator_of(recipe)
    if generator.resolution != resolution:
        raise UserError(f"methods.released.{key}: {path} makes {generator.resolution} px images")
    return generator
