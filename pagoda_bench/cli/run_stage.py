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
  pagoda-bench run-stage recipe.json --shard 0/4               a quarter of the work; who finds no more to do publishes
""",
)
@click.argument("recipe", type=click.Path(path_type=Path, dir_okay=False), metavar="RECIPE.json")
@store_option
@data_option
@click.option("--session", metavar="ID", help="The retraining that this belongs to: only what it made counts as made.")
@click.option("--shard", metavar="I/N", help="Do this share of the work only (kinds of stages that can be shared).")
def run_stage(
    recipe: Path, store_path: Path | None, data_paths: tuple[str, ...], session: str | None, shard: str | None
) -> None:
    """Make the artifact of one recipe. Its inputs must be in the store; the folder of the artifact is printed.

    A recipe is the recipe.json of any artifact, or written by hand. If the artifact is there, nothing is done. If an earlier
    attempt was interrupted, its last checkpoint is where this one goes on. Started several times by srun or torchrun, with
    their variables in the environment, the processes make one artifact together, if its kind can be made so.
    """
    from pagoda_bench.artifacts.ranks import place

    store, data = open_store(store_path), data_places(data_paths)
    if shard is None and place().first:
        from pagoda_bench.plan.inline import run_stage as run

        click.echo(str(run(recipe, store, data=data, session=session).path))
        return
    from pagoda_bench.plan.parallel import read_shard, run_rank, run_shard

    if shard is not None:
        made = run_shard(recipe, store, read_shard(shard), data=data, session=session)
    else:
        made = run_rank(recipe, store, data=data, session=session)
    if made is not None:
        click.echo(str(made.path))
