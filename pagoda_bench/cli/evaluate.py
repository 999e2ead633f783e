"""`pagoda-bench evaluate`: every metric of a set of images in one pass, under a named protocol."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pagoda_bench.cli.common import data_option, data_places, echo_columns, open_store, store_option
from pagoda_bench.errors import UserError

if TYPE_CHECKING:
    from pagoda_bench.metrics.score_schema import Score

PROTOCOLS = ("adm", "edm", "clean", "dgm-eval", "torch-fidelity", "embedded")
SECONDS = 2.0  # between two lines of progress


@click.command(
    epilog="""\b
Examples:
  pagoda-bench evaluate samples.npz --ref VIRTUAL_imagenet256_labeled.npz --protocol adm --json adm.json
  pagoda-bench evaluate samples/ --ref real.zip --metrics fid,prdc --protocol clean
  pagoda-bench evaluate seed0.npz seed1.npz seed2.npz --ref real/ --metrics fid    three seeds: mean, minimum, error
  pagoda-bench evaluate samples.tar --ref stats.npz --metrics fid --n 50000 --seeds 5
  pagoda-bench evaluate generator.json --n 1000 --ref real/                        sampled and scored in one stream
  pagoda-bench evaluate samples/ --ref real/ --protocol adm --jobs 8                eight processes, the same scores
  pagoda-bench evaluate samples/ --ref real/ --extractor my_package.eyes:look --metrics fd
  pagoda-bench evaluate samples.tar --metrics clip_score --captions prompts.txt     one caption a line, in their order
  pagoda-bench evaluate samples/ --ref real/ --metrics cas,lpips_diversity          samples/CLASS/x.png
"""
)
@click.argument("samples", nargs=-1, required=True, metavar="SAMPLES...")
@click.option("--ref", "reference", metavar="REF", help="Real images, or statistics of them (npz, pkl).")
@click.option("--metrics", metavar="NAME,...", help="What to measure [default: the protocol's usual ones].")
@click.option("--protocol", type=click.Choice(PROTOCOLS), default="embedded", show_default=True, help="Whose conventions.")
@click.option("--n", type=click.IntRange(min=1), help="Images of each set: the first N [default: all].")
@click.option("--seeds", type=click.IntRange(min=1), default=1, show_default=True, help="Cut one set into so many seeds.")
@click.option("--first", type=click.IntRange(min=0), default=0, help="First sample index of a generator.")
@click.option("--ref-n", type=click.IntRange(min=1), help="Images of the reference: the first N [default: all].")
@click.option("--ref-crop", metavar="NAME:SIZE", help="Crop of the reference: adm, box, lanczos, center-crop-dhariwal.")
@click.option("--extractor", metavar="NAME", help="Another network, by name or module:object.")
@click.option("--weights", multiple=True, metavar="NAME=PATH", help="The file of a network's weights; may be given again.")
@click.option(
    "--captions", metavar="FILE", help="Texts of a CLIP score: .txt, .json, or 'embedded' [default: the images' own]."
)
@click.option("--labels", default=None, metavar="TEXT", help="How the samples' classes were chosen: a part of the protocol.")
@click.option("--guidance", default=None, metavar="TEXT", help="The guidance they were made with: a part of the protocol.")
@click.option("--device", default="cpu", show_default=True, help="Where the networks run: cpu, cuda.")
@click.option("--bf16", is_flag=True, help="Run the networks in bfloat16: a protocol of its own.")
@click.option("--bf16-shift", is_flag=True, help="Measure in both; bfloat16 is given where a metric cannot tell it.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images a network sees at once.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes that share the images.")
@click.option("--self-check", is_flag=True, help="First see that the reference is at distance 0 of itself.")
@click.option("--no-cache", is_flag=True, help="Do not keep, nor use, features of the reference.")
@click.option("--json", "out", type=click.Path(path_type=Path, dir_okay=False), help="Write the scores there.")
@data_option
@store_option
def evaluate(
    samples: tuple[str, ...],
    reference: str | None,
    metrics: str | None,
    protocol: str,
    n: int | None,
    seeds: int,
    first: int,
    ref_n: int | None,
    ref_crop: str | None,
    extractor: str | None,
    weights: tuple[str, ...],
    captions: str | None,
    labels: str | None,
    guidance: str | None,
    device: str,
    bf16: bool,
    bf16_shift: bool,
    batch: int,
    jobs: int,
    self_check: bool,
    no_cache: bool,
    out: Path | None,
    data_paths: tuple[str, ...],
    store_path: Path | None,
) -> None:
    """Measure SAMPLES: a folder, zip, tar, npz, npy or parquet file of images, or the JSON recipe of a generator.

    Several are disjoint sets from different seeds, and give a mean, a minimum and a standard error. Images are decoded once
    and go through each network once. Every score carries its protocol: 'pagoda-bench compare' refuses what is unlike.
    """
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError(f"--json {out}: {out.absolute().parent} is no folder: make it first")
    from pagoda_bench.data.sources import cache_folder
    from pagoda_bench.metrics import score_schema
    from pagoda_bench.metrics.evaluate import evaluate as measure
    from pagoda_bench.metrics.inputs import Crop
    from pagoda_bench.metrics.precision import in_both_precisions
    from pagoda_bench.metrics.protocol import NOT_STATED

    if bf16 and bf16_shift:
        raise UserError("--bf16 and --bf16-shift: choose one, to have bfloat16 or to see what it changes")

    if first and not any(sample.endswith(".json") for sample in samples):
        raise UserError("--first is of a generator: files of images are taken from their first one")
    paths = [Path(sample).resolve() for sample in samples]
    if twice := [sample for sample, path in zip(samples, paths, strict=True) if paths.count(path) > 1]:
        raise UserError(f"{twice[0]} is given twice: sets of different seeds are different images")
    check_device(device)
    sources: list[Any] = list(samples)
    for i, sample in enumerate(samples):
        if sample.endswith(".json"):
            sources[i] = _generator(Path(sample), open_store(store_path), n, first, data_places(data_paths))
            labels, guidance = labels or sources[i].labels, guidance or sources[i].guidance
    options: dict[str, Any] = {} if bf16_shift else {"precision": "bfloat16" if bf16 else "float32"}
    scores = (in_both_precisions if bf16_shift else measure)(
        sources,
        reference,
        None if metrics is None else [name.strip() for name in metrics.split(",") if name.strip()],
        protocol=protocol,
        n=n,
        seeds=seeds,
        reference_n=ref_n,
        extractor=extractor,
        weights=weights_places(weights),
        device=device,
        batch=batch,
        jobs=jobs,
        crop=Crop.parse(ref_crop) if ref_crop else None,
        captions=captions,
        labels=labels or NOT_STATED,
        guidance=guidance or NOT_STATED,
        self_check=self_check,
        cache=None if no_cache else cache_folder() / "features",
        progress=progress_lines(),
        **options,
    )
    show(scores)  # first: a fault of the disk must not cost them
    if out is not None:
        from pagoda_bench.artifacts.checkpoint import save_atomic

        try:
            save_atomic(out, lambda path: path.write_text(score_schema.dump(scores), encoding="utf-8"))
        except OSError as error:
            raise UserError(f"--json {out}: cannot write the scores ({error.strerror}); they are shown above") from None


def show(scores: Sequence[Score]) -> None:
    """The scores as a table, with what must be known of them below."""
    better = {"lower": "(lower is better)", "higher": "(higher is better)"}
    rows = [("METRIC", "VALUE", "STDERR", "STD", "MIN", "N", "SEEDS", "")]
    for score in scores:
        error = "" if score.stderr is None else f"{score.stderr:.2g}"
        least = "" if score.seeds < 2 or score.minimum is None else f"{score.minimum:.6g}"
        std = "" if score.std is None else f"{score.std:.2g}"
        row = (score.metric, f"{score.value:.6g}", error, std, least, f"{score.n:,}", str(score.seeds))
        rows.append((*row, better.get(score.direction, "")))
    echo_columns(rows, right=(1, 2, 3, 4, 5, 6))
    for score in scores:
        for mark in score.marks:
            click.echo(f"! {score.metric}: {mark}")


def weights_places(values: Sequence[str]) -> dict[str, Path]:
    """The values of `--weights`, "name=path", as a map; a `UserError` for another form."""
    places = {}
    for value in values:
        name, equals, path = value.partition("=")
        if not equals or not name or not path:
            raise UserError(f"--weights {value}: write the network's name and the file, e.g. inception=weights.pth")
        places[name] = Path(path)
    return places


def check_device(device: str) -> None:
    """Raises `UserError` unless torch can compute there."""
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:80]
        raise UserError(f"--device {device} cannot be used ({reason}): choose cpu, or cuda where there is a GPU") from None


def progress_lines() -> Callable[[int, int, str], None]:
    """A line on stderr every few seconds, rewritten in place on a terminal."""
    start, last = time.monotonic(), [time.monotonic()]

    def told(done: int, total: int, what: str) -> None:
        now = time.monotonic()
        if now - last[0] < SECONDS and done < total:
            return
        last[0] = now
        end = "\r" if sys.stderr.isatty() and done < total else "\n"
        print(f"{what}: {done:,} of {total:,} images, {now - start:.0f} s  ", end=end, file=sys.stderr, flush=True)

    return told


def _generator(path: Path, store: Any, n: int | None, first: int, data: dict[str, Path]) -> Any:
    from pagoda_bench.metrics.generated import open_generator

    if n is None:
        raise UserError(f"{path} is a generator, which has no end: say how many images with --n")
    return open_generator(path, store, n, first, data)
