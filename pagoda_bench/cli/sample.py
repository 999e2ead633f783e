"""`pagoda-bench sample`: images of a generator, to a folder or an npz file."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagoda_bench.cli.common import data_option, data_places, open_store, store_option
from pagoda_bench.cli.names import generator_named, meant, places_of
from pagoda_bench.errors import UserError

if TYPE_CHECKING:
    from pagoda_bench.artifacts.store import Store
    from pagoda_bench.recipes.stages import Generator

MOST = 10**9  # images of one command
LAST = 2**47  # index: those from 2^48 on are rejection's (pagoda/rejection.py)


@click.command(
    epilog="""\b
Examples:
  pagoda-bench sample pagoda-64 --n 50000 --out samples.npz                    imported weights, balanced labels
  pagoda-bench sample pagoda-64 --n 50000 --labels random --rounding truncate --out official.npz
  pagoda-bench sample grow/3f2a --n 100 --out folder                           an artifact, by the first digits of its key
  pagoda-bench sample generator.json --n 100 --out folder                      a recipe, or a generator's config
  pagoda-bench sample table1:pagoda-64 --n 1000 --out folder                   a row of a table
  pagoda-bench sample table1:pagoda-64 --n 1000 --reject 0.5 --out folder      of 75 candidates the 50 likeliest of a class
"""
)
@click.argument("name", metavar="NAME|RECIPE.json|TABLE:ROW")
@click.option("--n", type=click.IntRange(1, MOST), required=True, help="How many images.")
@click.option("--first", type=click.IntRange(0, LAST), default=0, show_default=True, help="The index of the first image.")
@click.option(
    "--labels",
    type=click.Choice(["balanced", "random"]),
    default="balanced",
    show_default=True,
    help="Index mod classes, or drawn uniformly as the official script does.",
)
@click.option(
    "--rounding",
    type=click.Choice(["nearest", "truncate"]),
    default="nearest",
    show_default=True,
    help="To 8 bits: to the nearest value, or cut off as the official script does.",
)
@click.option("--seed", type=click.IntRange(min=0, max=2**62), default=0, show_default=True, help="Of noise and random labels.")
@click.option("--points", type=click.IntRange(min=2), help="Noise levels of a diffusion model's sampler.")
@click.option("--precision", type=click.Choice(["float32", "bfloat16"]), default="float32", show_default=True)
@click.option(
    "--reject",
    type=click.FloatRange(min=0, min_open=True),
    metavar="RATIO",
    help="Make 1 + RATIO times as many of each class, keep those that a classifier is surest of [default: off].",
)
@click.option(
    "--classifier",
    metavar="KEY|MODULE:FUNCTION",
    help="Of --reject: a feature network of the store, or a function [default: the network the generator trained with].",
)
@click.option("--device", default="cpu", show_default=True, metavar="NAME", help="E.g. cpu, cuda, cuda:1.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="A folder, or a file that ends in .npz.")
@data_option
@store_option
def sample(
    name: str,
    n: int,
    first: int,
    labels: str,
    rounding: str,
    seed: int,
    points: int | None,
    precision: str,
    reject: float | None,
    classifier: str | None,
    device: str,
    out: Path,
    data_paths: tuple[str, ...],
    store_path: Path | None,
) -> None:
    """Write N images of a generator to a folder of PNG files or to one .npz (arr_0 images, arr_1 labels).

    An image depends on its index, its label and --seed alone, up to rounding. What was done is recorded with the images. The
    same command goes on after an interruption.
    """
    from pagoda_bench.artifacts.context import StageContext
    from pagoda_bench.plan.progress import reporter
    from pagoda_bench.recipes.imported import SampleProtocol, Samples

    if out == Path():  # also of a variable that is not set
        raise UserError("--out: name a new folder, or a file that ends in .npz")
    if out.suffix != ".npz" and out.is_file():
        raise UserError(f"--out {out} is a file: give a folder, or a name that ends in .npz")
    store, places = open_store(store_path), data_places(data_paths)
    generator = generator_named(name, points, store, places)
    values: dict[str, Any] = {"labels": labels, "rounding": rounding, "seed": seed, "precision": precision}
    if reject is not None:
        values["reject"] = {"ratio": reject, "classifier": _classifier(classifier, generator, store)}
    elif classifier is not None:
        raise UserError("--classifier says who judges candidates: give --reject RATIO too")
    protocol = SampleProtocol.load(values, "sample")
    recipe = Samples(generator=generator, n=n, first=first, protocol=protocol)
    inputs = places_of(recipe.inputs(), name, store)
    check_device(device)
    from pagoda_bench.pagoda import sampling

    report = reporter()
    report.start(recipe, 1, 1)
    begin = time.monotonic()
    try:
        context = StageContext(out, out, inputs, places, report.progress)
        source = sampling.sampler(recipe.generator, protocol, context, device)
        write = sampling.to_npz if out.suffix == ".npz" else sampling.to_folder
        write(recipe, source, out, context.progress)
        report.finish(recipe, time.monotonic() - begin, made=True)
    finally:
        report.close()
    click.echo(str(out))


def _classifier(name: str | None, generator: Generator, store: Store) -> Any:
    """What --classifier means: by default the feature network that the generator was trained beside."""
    from pagoda_bench.recipes.stages import FeatureNet

    if name is not None and ":" in name:
        return name
    found = getattr(getattr(generator, "of", None), "features", None) if name is None else meant(name, store)
    if not isinstance(found, FeatureNet):
        what = "this generator was trained beside none" if name is None else f"{name} is none"
        raise UserError(f"--reject needs a feature network, and {what}: give --classifier KEY or MODULE:FUNCTION")
    return found


def check_device(device: str) -> None:
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # PyTorch built without CUDA asserts
        raise UserError(f"--device {device}: {str(error).partition(chr(10))[0]}") from None
