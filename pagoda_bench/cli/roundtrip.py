"""`pagoda-bench roundtrip`: how well the encoder of a diffusion model undoes itself, by solver and number of points."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pagoda_bench.cli.common import data_option, data_places, echo_json, json_option, open_store, store_option
from pagoda_bench.cli.names import meant, places_of
from pagoda_bench.errors import UserError

IMAGES = 64


@click.command(
    epilog="""\b
Examples:
  pagoda-bench roundtrip table1:pagoda-8                                 the teacher behind a row, on images of its data
  pagoda-bench roundtrip edm/3f2a --n 256 --points 12,40 --reference-points 160
  pagoda-bench roundtrip edm-openai-64 --points 40 --images folder/ --label 31
"""
)
@click.argument("name", metavar="NAME|TABLE:ROW")
@click.option("--n", type=click.IntRange(min=1), help=f"Images of the data's validation split [default: {IMAGES}].")
@click.option("--points", default="6,12,18,40", show_default=True, metavar="P,...", help="Noise levels.")
@click.option("--solvers", default="heun,ddim", show_default=True, metavar="NAME,...", help="heun, ddim or both.")
@click.option("--reference-points", type=click.IntRange(min=2), help="Compare latents to those of Heun on so many levels.")
@click.option("--clamp/--no-clamp", default=True, show_default=True, help="Denoised values to [-1, 1].")
@click.option("--images", type=click.Path(path_type=Path, exists=True), help="An image or a folder of them instead.")
@click.option("--label", metavar="CLASS", help="The class of all --images.")
@click.option("--device", default="cpu", show_default=True, metavar="NAME", help="E.g. cpu, cuda, cuda:1.")
@json_option
@data_option
@store_option
def roundtrip(
    name: str,
    n: int | None,
    points: str,
    solvers: str,
    reference_points: int | None,
    clamp: bool,
    images: Path | None,
    label: str | None,
    device: str,
    as_json: bool,
    data_paths: tuple[str, ...],
    store_path: Path | None,
) -> None:
    """Carry images to noise along the probability-flow ODE and back, and say what is lost.

    NAME is a diffusion model, pairs, or a generator made from them. Errors are of pixels in [-1, 1]; NFE are the evaluations
    of both ways, counted. A small error does not prove good latents: --reference-points measures those.
    """
    levels, names = [_points(text) for text in points.split(",")], [text.strip() for text in solvers.split(",")]
    if unknown := [text for text in names if text not in ("heun", "ddim")]:
        raise UserError(f"--solvers: unknown solver '{unknown[0]}': give heun, ddim or both")
    if images is not None and label is None:
        raise UserError("--label says of which class the --images are")
    if images is None and label is not None:
        raise UserError("--label is of --images: those of the data have their own classes")
    if images is not None and n is not None:
        raise UserError("--n is of the data's own images: leave it away with --images, all of which are taken")
    store, places = open_store(store_path), data_places(data_paths)
    from pagoda_bench.artifacts.context import StageContext
    from pagoda_bench.cli.sample import check_device
    from pagoda_bench.pagoda import editor
    from pagoda_bench.pagoda.roundtrip import measured, table

    teacher = editor.teacher_of(meant(name, store, places))
    if teacher is None:
        raise UserError(f"{name} is no diffusion model, and names none: give e.g. edm/KEY or edm-openai-64")
    check_device(device)
    context = StageContext(Path(), Path(), places_of([teacher], name, store), places)
    net, denoise = editor.denoiser(teacher, context)
    size, data = net.config.output_resolution, getattr(teacher, "data", None)
    pixels: Any
    labels: Any
    if images is not None:
        files = sorted(images.iterdir()) if images.is_dir() else [images]
        if not files:
            raise UserError(f"--images {images} is an empty folder: give one with images")
        pixels = editor.from_files(files, size)
        labels = [editor.label_of(label or "", editor.class_names(data, net.config.classes, context))] * len(files)
    elif data is not None:
        pixels, labels = editor.from_data(data, range(n or IMAGES), size, "val", context)
    else:
        raise UserError("released weights do not say where their images are: give --images and --label")
    net.to(device)
    rows = measured(denoise, pixels, labels, device, levels, names, clamp, reference_points)
    if as_json:
        echo_json([{k: v if v != float("inf") else None for k, v in vars(row).items()} for row in rows])
    else:
        click.echo(f"{teacher.title} ({teacher.kind}/{teacher.key}), {len(pixels)} images")
        click.echo(table(rows))


def _points(text: str) -> int:
    if not text.strip().isdecimal() or int(text) < 2:
        raise UserError(f"--points: '{text}' is no number of noise levels: write e.g. 12,40")
    return int(text)
