"""`pagoda-bench sample`: images of a generator, to a folder or an npz file."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pagoda_bench.cli.common import data_option, data_places, open_store, store_option
from pagoda_bench.errors import UserError

if TYPE_CHECKING:
    from pagoda_bench.artifacts.store import Artifact, Store
    from pagoda_bench.recipes.stages import Generator


@click.command(
    epilog="""\b
Examples:
  pagoda-bench sample pagoda-64 --n 50000 --out samples.npz                    imported weights, balanced labels
  pagoda-bench sample pagoda-64 --n 50000 --labels random --rounding truncate --out official.npz
  pagoda-bench sample grow/3f2a --n 100 --out folder                           an artifact, by the first digits of its key
  pagoda-bench sample generator.json --n 100 --out folder                      a recipe, or a generator's config
"""
)
@click.argument("name", metavar="NAME|RECIPE.json")
@click.option("--n", type=click.IntRange(min=1), required=True, help="How many images.")
@click.option("--first", type=click.IntRange(min=0), default=0, show_default=True, help="The index of the first image.")
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

    if out.suffix != ".npz" and out.is_file():
        raise UserError(f"--out {out} is a file: give a folder, or a name that ends in .npz")
    store = open_store(store_path)
    protocol = SampleProtocol.load({"labels": labels, "rounding": rounding, "seed": seed, "precision": precision})
    recipe = Samples(generator=_generator(name, points, store), n=n, first=first, protocol=protocol)
    inputs = {}
    for parent in recipe.inputs():
        if (artifact := store.find(parent)) is None:
            raise UserError(
                f"{name} needs {parent.title} ({parent.kind}/{parent.key}), which is not in the store: make it first"
            )
        inputs[parent.key] = artifact.path
    _check_device(device)
    from pagoda_bench.pagoda import sampling

    report = reporter()
    report.start(recipe, 1, 1)
    begin = time.monotonic()
    try:
        context = StageContext(out, out, inputs, data_places(data_paths), report.progress)
        source = sampling.sampler(recipe.generator, protocol, context, device)
        write = sampling.to_npz if out.suffix == ".npz" else sampling.to_folder
        write(recipe, source, out, context.progress)
        report.finish(recipe, time.monotonic() - begin, made=True)
    finally:
        report.close()
    click.echo(str(out))


def _generator(name: str, points: int | None, store: Store) -> Generator:
    """What NAME means: a JSON file, a name that `import` gives, or the [KIND/]KEY of an artifact."""
    from pagoda_bench.recipes.base import KINDS
    from pagoda_bench.recipes.imported import generator_of
    from pagoda_bench.recipes.registry import load_all, read_recipe
    from pagoda_bench.recipes.stages import Generator

    load_all()
    if name.endswith(".json"):
        try:
            value = json.loads(Path(name).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"cannot read {name}: {error.strerror}") from None
        except ValueError:
            raise UserError(f"{name} is no JSON") from None
        kind = KINDS.get(str(value.get("kind"))) if isinstance(value, dict) else None
        if kind is not None and issubclass(kind, Generator):
            return Generator.load(value, where=name)
        return generator_of(read_recipe(Path(name)), points)
    recipes = {artifact.name: artifact.recipe for artifact in store.artifacts() if _means(name, artifact)}
    if len(recipes) == 1:
        return generator_of(next(iter(recipes.values())), points)
    if not recipes:
        raise UserError(
            f"no artifact '{name}': 'pagoda-bench artifacts ls' lists them, 'pagoda-bench import' adds released weights"
        )
    raise UserError(f"'{name}' means {len(recipes)} artifacts ({', '.join(sorted(recipes)[:4])}): give one of these names")


def _means(name: str, artifact: Artifact) -> bool:
    from pagoda_bench.recipes.imported import Imported

    kind, _, key = name.rpartition("/")
    if artifact.key.startswith(key) and kind in ("", artifact.kind):
        return True
    return artifact.kind == Imported.kind and isinstance(artifact.recipe, Imported) and artifact.recipe.format == name


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # PyTorch built without CUDA asserts
        raise UserError(f"--device {device}: {str(error).partition(chr(10))[0]}") from None
