"""`pagoda-bench data`: data sets made ready for training."""

from __future__ import annotations

from pathlib import Path

import click

from pagoda_bench.cli.common import Group, bytes_text, echo_json, json_option
from pagoda_bench.errors import UserError

SIZES = "32,64,128,256,512"


@click.group(
    cls=Group,
    epilog="""\b
Examples:
  pagoda-bench data prepare ILSVRC2012 --to imagenet                       every size of the paper
  pagoda-bench data prepare ILSVRC2012 --to imagenet --sizes 64,128        some of them; others can be added
""",
)
def data() -> None:
    """Make data sets ready for training."""


@data.command(
    epilog="""\b
Examples:
  pagoda-bench data prepare ILSVRC2012 --to imagenet --dry-run             counts and storage, nothing written
  pagoda-bench data prepare ILSVRC2012 --to imagenet --part 3/16           one of 16 processes, e.g. of a SLURM array
  pagoda-bench data prepare tiny --to store --sizes 32 --any-counts        a tree that is not all of ILSVRC2012
"""
)
@click.argument("tree", type=click.Path(path_type=Path), metavar="IMAGENET")
@click.option("--to", "store", required=True, type=click.Path(path_type=Path, file_okay=False), help="The folder to write.")
@click.option("--sizes", default=SIZES, show_default=True, metavar="LIST", help="Pixels of a side, with commas.")
@click.option("--any-counts", is_flag=True, help="Accept other numbers of classes and images than ILSVRC2012 has.")
@click.option("--rows", default=512, show_default=True, type=click.IntRange(min=1), help="Images in a shard.")
@click.option("--workers", default=8, show_default=True, type=click.IntRange(min=1), help="Threads that decode.")
@click.option("--part", default="0/1", show_default=True, metavar="I/N", help="Begin at the I-th of N parts (I from 0).")
@click.option("--dry-run", is_flag=True, help="Count the images, check the counts, say how much storage it takes.")
@json_option
def prepare(
    tree: Path, store: Path, sizes: str, any_counts: bool, rows: int, workers: int, part: str, dry_run: bool, as_json: bool
) -> None:
    """Crop and resize an ILSVRC2012 tree (train/<synset>/*.JPEG, val/<synset>/*.JPEG) by ADM's crop into uint8 shards.

    Counts per class are checked against ILSVRC2012's before anything is written. Interrupted or repeated, the command goes
    on with what is missing; several processes may run it at once. Use the result with --data FOLDER.
    """
    from pagoda_bench.data.containers import open_source
    from pagoda_bench.data.imagenet import check_counts, scan
    from pagoda_bench.data.imagenet import prepare as run

    wanted = _sizes(sizes)
    if dry_run:
        with open_source(tree) as source:
            classes, trees = scan(source)
        if not any_counts:
            check_counts({t.split: t.counts(classes) for t in trees}, tree)
        images = sum(len(t.entries) for t in trees)
        storage = {size: 3 * size * size * images for size in wanted}
        if as_json:
            echo_json({"classes": len(classes), "images": images, "bytes": storage})
            return
        click.echo(f"{images:,} images in {len(classes):,} classes")
        for size, count in storage.items():
            click.echo(f"{size:>5} px  {bytes_text(count)}")
        click.echo(f"      all  {bytes_text(sum(storage.values()))}")
        return
    about = run(tree, store, wanted, any_counts=any_counts, rows=rows, workers=workers, part=part_of(part), progress=_progress)
    if as_json:
        echo_json(about)
        return
    counts = {split: sum(found.values()) for split, found in about["counts"].items()}
    click.echo(f"{store}: {', '.join(f'{n:,} images for {split}' for split, n in counts.items())}")
    click.echo(f"{len(about['classes']):,} classes, at {', '.join(map(str, about['sizes']))} px, digest {about['digest']}")


def part_of(text: str) -> tuple[int, int]:
    """ "3/16" as (3, 16)."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and int(number) < int(count)):
        raise UserError(f"--part {text}: give I/N with I from 0 to N - 1, e.g. 3/16")
    return int(number), int(count)


def _sizes(text: str) -> list[int]:
    try:
        sizes = sorted({int(size) for size in text.split(",")})
    except ValueError:
        sizes = []
    if not sizes or min(sizes) < 1 or max(sizes) > 4096:
        raise UserError(f"--sizes {text}: give whole numbers of pixels with commas, e.g. {SIZES}")
    return sizes


def _progress(done: int, total: int) -> None:
    if done == total or done % 20 == 0:
        click.echo(f"shard {done}/{total}", err=True)
