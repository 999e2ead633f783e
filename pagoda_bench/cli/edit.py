"""`pagoda-bench edit`: controllable generation by the teacher's encoder and a one-step generator."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagoda_bench.cli.common import Folder, Group, data_option, data_places, open_store, store_option
from pagoda_bench.cli.names import generator_named, meant, places_of
from pagoda_bench.errors import UserError

if TYPE_CHECKING:
    from pagoda_bench.pagoda.edits import Desk


@click.group(
    cls=Group,
    epilog="""\b
Examples:
  pagoda-bench edit reconstruct table1:pagoda-64 --index 0,1,2 --out out/reconstruct
  pagoda-bench edit transfer table1:pagoda-64 photo.png --label 3 --to 0,1,2 --out out/transfer
  pagoda-bench edit COMMAND --help              all options of an edit, with examples
""",
)
def edit() -> None:
    """Edit images: carry them to latents by the teacher's probability-flow ODE, change something, generate.

    NAME is what 'sample' takes, a row of a table among them. Images are files (their classes by --label), or images of the
    data set (--index). Written: grid.png with everything, the results as PNG files and in edits.npz, and edit.json with what
    was done and the network evaluations it took.
    """


DIGITS = 15  # of the number of an image

OPTIONS = (
    click.argument("name", metavar="NAME|TABLE:ROW"),
    click.argument("files", nargs=-1, type=click.Path(path_type=Path, dir_okay=False), metavar="[IMAGE]..."),
    click.option("--index", metavar="I,J,...", help="Images of the data set, in the place of files."),
    click.option("--split", type=click.Choice(["train", "val"]), help="Of --index [default: val]."),
    click.option("--label", metavar="CLASS,...", help="Classes of the files, by name or number: one, or one each."),
    click.option("--teacher", metavar="NAME", help="The diffusion model that encodes [default: the generator's own]."),
    click.option("--points", type=click.IntRange(min=2), help="Noise levels of the encoder [default: those of the pairs]."),
    click.option("--solver", type=click.Choice(["heun", "ddim"]), help="Of the encoder [default: that of the pairs]."),
    click.option("--device", default="cpu", show_default=True, metavar="NAME", help="E.g. cpu, cuda, cuda:1."),
    click.option("--out", type=Folder(), required=True, help="A folder."),
    data_option,
    store_option,
)


def edits(**settings: Any) -> Callable[[Callable[..., None]], click.Command]:
    """A command of the group with the options that all of them have; the function gets the opened desk."""

    def decorate(function: Callable[..., None]) -> click.Command:
        def call(**options: Any) -> None:
            shared = {k: options.pop(k) for k in ("name", "files", "index", "split", "label", "teacher", "points", "solver")}
            place = {k: options.pop(k) for k in ("device", "out", "data_paths", "store_path")}
            function(partial(_desk, **shared, **place), **options)
            click.echo(str(place["out"]))

        call.__doc__ = function.__doc__
        call.__click_params__ = [*getattr(function, "__click_params__", [])]  # type: ignore[attr-defined]
        for option in reversed(OPTIONS):
            call = option(call)
        return edit.command(function.__name__.rstrip("_").replace("_", "-"), **settings)(call)

    return decorate


def _desk(
    *,
    name: str,
    files: Sequence[Path],
    index: str | None,
    split: Any,
    label: str | None,
    teacher: str | None,
    points: int | None,
    solver: str | None,
    device: str,
    out: Path,
    data_paths: tuple[str, ...],
    store_path: Path | None,
) -> Desk:
    """Names, networks and images, all checked: what an edit works on."""
    store, places = open_store(store_path), data_places(data_paths)
    if bool(files) == (index is not None):
        raise UserError("give image files, or images of the data set with --index 0,1,2: one of the two")
    if files and label is None:
        raise UserError("--label says of which class the image files are: give one, or one for each")
    if files and split is not None:
        raise UserError("--split is of --index: leave it away with image files")
    if index is not None and label is not None:
        raise UserError("--label is of image files: those of --index have their own classes")
    numbers = None if index is None else [_number(text) for text in index.split(",")]
    from pagoda_bench.artifacts.context import StageContext
    from pagoda_bench.cli.sample import check_device
    from pagoda_bench.pagoda import editor
    from pagoda_bench.pagoda.edits import Desk

    generator = generator_named(name, None, store, places)
    found = editor.teacher_of(generator if teacher is None else meant(teacher, store, places))
    if found is None:
        asked = (
            f"{name} does not say which model it was distilled from" if teacher is None else f"{teacher} is no diffusion model"
        )
        raise UserError(f"{asked}: give --teacher NAME, e.g. edm-openai-64")
    of = getattr(generator, "of", None)
    if of is None:
        raise UserError(f"{name} is of kind '{generator.kind}': editing needs a one-step generator")
    check_device(device)
    context = StageContext(out, out, places_of([of, found], name, store), places)
    how = editor.how_encoded(generator) | {k: v for k, v in (("points", points), ("solver", solver)) if v is not None}
    desk = Desk(generator, found, editor.open_editor(generator, found, how, context, device), how, context, out, device)
    if numbers is not None:
        desk.take_data(numbers, split or "val")
    else:
        desk.take_files(files, (label or "").split(","))
    return desk


def _number(text: str) -> int:
    if not text.strip().isdecimal() or len(text.strip()) > DIGITS:
        raise UserError(f"--index: '{text}' is no number of an image: write e.g. 0,1,2")
    return int(text)


@edits(
    epilog="""\b
Examples:
  pagoda-bench edit reconstruct table1:pagoda-64 --index 0,1,2 --out out/reconstruct
  pagoda-bench edit reconstruct grow/3f2a photo.png --label 2 --out out/photo
"""
)
def reconstruct(desk: Callable[[], Desk]) -> None:
    """G(E(x)): the image that the generator makes of an image's own latent."""
    desk().reconstruct()


@edits(
    epilog="""\b
Examples:
  pagoda-bench edit transfer table1:pagoda-64 --index 0,1 --to 3,4 --out out/transfer
"""
)
@click.option("--to", required=True, metavar="CLASS,...", help="Classes to move each image to, by name or number.")
def transfer(desk: Callable[[], Desk], to: str) -> None:
    """G(E(x, c), c'): the same latent in other classes."""
    desk().transfer(to.split(","))


@edits(
    epilog="""\b
Examples:
  pagoda-bench edit interpolate table1:pagoda-64 --index 0,10,1,11 --steps 7 --out out/interpolate    0 to 10, and 1 to 11
"""
)
@click.option(
    "--steps", type=click.IntRange(min=2), default=7, show_default=True, help="Images on the way, both ends included."
)
@click.option(
    "--path",
    type=click.Choice(["spherical", "linear"]),
    default="spherical",
    show_default=True,
    help="Of the latents.",
)
def interpolate(desk: Callable[[], Desk], steps: int, path: Any) -> None:
    """From image to image through their latents: the first to the second, the third to the fourth, and so on."""
    desk().interpolate(steps, path)


@edits(
    epilog="""\b
Examples:
  pagoda-bench edit super-resolve table1:pagoda-64 --index 0,1,2 --out out/super-resolve     8 px of the data to 64
  pagoda-bench edit super-resolve pagoda-512 small.png --label 31 --teacher edm-openai-64 --out out/large
"""
)
def super_resolve(desk: Callable[[], Desk]) -> None:
    """G(E(x)) by a grown generator: images at the teacher's size, enlarged."""
    desk().super_resolve()


@edits(
    epilog="""\b
Examples:
  pagoda-bench edit inpaint table1:pagoda-64 --index 0,1,2 --fill right --samples 4 --out out/inpaint
  pagoda-bench edit inpaint table1:pagoda-64 photo.png --label 2 --fill mask.png --out out/photo
"""
)
@click.option(
    "--fill",
    default="right",
    show_default=True,
    metavar="SIDE|IMAGE",
    help="What: left, right, top, bottom, centre, or the light parts of a file.",
)
@click.option("--samples", type=click.IntRange(min=1), default=3, show_default=True, help="Different fills of each image.")
@click.option("--turns", type=click.IntRange(min=2), default=20, show_default=True, help="Of encoder and generator.")
@click.option("--seed", type=click.IntRange(min=0, max=2**32), default=0, show_default=True, help="Of the noise.")
def inpaint(desk: Callable[[], Desk], fill: str, samples: int, turns: int, seed: int) -> None:
    """Fill in a part of images: encoder and generator take turns, and the known pixels are put back after each."""
    desk().inpaint(fill, samples, turns, seed)
