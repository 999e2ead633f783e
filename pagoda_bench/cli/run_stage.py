"""`pagoda-bench run-stage`: one stage, from a JSON recipe. What launchers call, and what can be called by hand."""

from __future__ import annotations

from pathlib import Path

import click

from pagoda_bench.cli.common import data_option, data_places, open_store, store_option


@click.command(
    "run-stage",
    epilog="""\b
Examples:
  pagoda-bench run-stage recipe.json                           make it in the default store
  pagoda-bench run-stage recipe.json --store /scratch/store    make it somewhere else
  pagoda-bench run-stage recipe.json --data ILSVRC2012.zip     its data are photographs
""",
)
@click.argument("recipe", type=click.Path(path_type=Path, dir_okay=False), metavar="RECIPE.json")
@store_option
@data_option
@click.option("--session", metavar="ID", help="The retraining that this belongs to: only what it made counts as made.")
def run_stage(recipe: Path, store_path: Path | None, data_paths: tuple[str, ...], session: str | None) -> None:
    """Make the artifact of one recipe. Its inputs must be in the store; the folder of the artifact is printed.

    A recipe is the recipe.json of any artifact, or written by hand. If the artifact is there, nothing is done. If an earlier
    attempt was interrupted, its last checkpoint is where this one goes on.
    """
    from pagoda_bench.plan.inline import run_stage as run

    click.echo(str(run(recipe, open_store(store_path), data=data_places(data_paths), session=session).path))
