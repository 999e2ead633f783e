"""`pagoda-bench import`: released weights into the store."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from pagoda_bench.cli.common import open_store, store_option
from pagoda_bench.errors import UserError, nearest
from pagoda_bench.recipes.formats import Format

NAMES = get_args(Format)


@click.command(
    "import",
    epilog="""\b
Examples:
  pagoda-bench import stage2_onestep_generator_64x64_to_64x64_ema_0.999_420000_fid_1.21.pt --as pagoda-64
  pagoda-bench import edm_imagenet64_ema.pt --as edm-openai-64
  pagoda-bench import cd_imagenet64_lpips.pt --as cd-lpips-64
  pagoda-bench import mine.safetensors --as pagoda-64 --own-architecture --head-channels 16
  pagoda-bench sample pagoda-64 --n 1000 --out samples.npz
""",
)
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), metavar="FILE")
@click.option("--as", "name", required=True, metavar="NAME", help=f"What it is: {', '.join(NAMES)}.")
@click.option("--own-architecture", is_flag=True, help="Accept other widths and depths than the published ones.")
@click.option(
    "--head-channels", type=click.IntRange(min=1), help="Channels of an attention head, which no tensor tells [default: 64]."
)
@store_option
def import_weights(file: Path, name: str, own_architecture: bool, head_channels: int | None, store_path: Path | None) -> None:
    """Take over the weights in FILE, a .pt file of tensors or a .safetensors file; the artifact's folder is printed.

    The architecture is read off the tensors and held against the published one. A file with missing, extra or misshaped keys
    is refused, all of them are listed, and nothing is loaded. Half-precision tensors are cast to float32, and that is said.
    """
    if name not in NAMES:
        raise UserError(f"--as: unknown name '{name}'{nearest(name, NAMES)}")
    if head_channels is not None and not own_architecture:
        raise UserError("--head-channels is for --own-architecture: the published networks have 64")
    if not file.is_file():
        raise UserError(f"{file}: no such file")
    from pagoda_bench.pagoda.importing import Mismatch, recipe_of, run

    try:
        recipe = recipe_of(file, name, own_architecture=own_architecture, head_channels=head_channels)  # type: ignore[arg-type]
    except Mismatch as error:
        for line in error.lines:
            click.echo(line, err=True)
        raise
    store = open_store(store_path)
    with store.making(recipe, data={recipe.digest: file.absolute()}) as context:
        if context is not None:
            run(recipe, context)
    artifact = store.find(recipe)
    if artifact is None:
        raise UserError(f"{recipe.title} was imported but is gone again: is another program clearing {store.root}?")
    for note in artifact.provenance.get("notes", []):
        click.echo(f"note: {note}", err=True)
    net = recipe.net
    click.echo(
        f"{recipe.title}: {artifact.provenance['parameters']:,} parameters, {net.resolution} to {net.output_resolution} px, "
        f"{net.classes} classes, SHA-256 {recipe.digest}",
        err=True,
    )
    click.echo(str(artifact.path))
