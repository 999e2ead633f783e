"""`pagoda-bench stats`: reference statistics of real images, with what they are of written into the file."""

from __future__ import annotations

from pathlib import Path

import click

from pagoda_bench.cli.common import listed
from pagoda_bench.cli.evaluate import check_device, progress_lines, weights_places
from pagoda_bench.errors import UserError


@click.command(
    epilog="""\b
Examples:
  pagoda-bench stats ILSVRC2012/train --crop adm:256 --extractor inception --out imagenet256.npz
  pagoda-bench stats images.zip --crop lanczos:512 --extractor dinov2-vitl14 --out dino512.npz
  pagoda-bench stats cifar10.npz --extractor clean --weights clean=inception-2015-12-05.pt --out cifar10-clean.npz
"""
)
@click.argument("images", metavar="IMAGES")
@click.option("--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The npz to write.")
@click.option("--extractor", default="inception", show_default=True, metavar="NAME", help="The network, or module:object.")
@click.option("--features", metavar="NAME,...", help="Which of its features [default: pool3 and spatial, or its first].")
@click.option("--crop", metavar="NAME:SIZE", help="adm, center-crop-dhariwal (the same), box or lanczos, and a size.")
@click.option("--n", type=click.IntRange(min=2), help="The first N images [default: all].")
@click.option("--weights", multiple=True, metavar="NAME=PATH", help="The file of the network's weights.")
@click.option("--device", default="cpu", show_default=True, help="Where the network runs: cpu, cuda.")
@click.option("--batch", type=click.IntRange(min=1), default=64, show_default=True, help="Images it sees at once.")
@click.option("--jobs", type=click.IntRange(min=1), default=1, show_default=True, help="Processes that share the images.")
def stats(
    images: str,
    out: Path,
    extractor: str,
    features: str | None,
    crop: str | None,
    n: int | None,
    weights: tuple[str, ...],
    device: str,
    batch: int,
    jobs: int,
) -> None:
    """Make statistics of IMAGES (folder, zip, tar, npz, npy, parquet) for 'evaluate --ref'.

    The file is read by the programs of others too where a feature has a published name (mu, sigma, mu_s, sigma_s), and says
    which images, crop, network and weights it is of, so that 'evaluate' can refuse it under another protocol.
    """
    if out.suffix != ".npz" or not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: name an .npz file in a folder that is there")
    from pagoda_bench.metrics.extractors import load_extractor
    from pagoda_bench.metrics.gather import Wanted, gather
    from pagoda_bench.metrics.inputs import Crop
    from pagoda_bench.metrics.opening import open_images
    from pagoda_bench.metrics.statistics import Statistics, write_statistics
    from pagoda_bench.metrics.workers import Workers

    check_device(device)
    stream = open_images(images, Crop.parse(crop) if crop else None)
    network = load_extractor(extractor, weights_places(weights).get(extractor), device)
    usual = [name for name in ("pool3", "spatial") if name in network.dimensions] or list(network.dimensions)[:1]
    names = usual if features is None else listed(features, "--features")
    if unknown := [name for name in names if name not in network.dimensions]:
        from pagoda_bench.errors import nearest

        raise UserError(f"{extractor} gives no feature '{unknown[0]}'" + nearest(unknown[0], network.dimensions))
    progress = progress_lines()
    with Workers(jobs) as workers:
        found = gather(
            stream,
            {extractor: network},
            Wanted(moments=frozenset((extractor, name) for name in names)),
            n=n,
            batch=batch,
            look=workers.looks,
            progress=lambda done, total: progress(done, total, "reference"),
        )
    if found.n < 2:
        raise UserError(f"{images} has one image, and a covariance needs two: give more")
    moments = {name: found.moments[extractor, name][0] for name in names}
    write_statistics(
        out,
        {name: Statistics(found.n, value.mean, value.covariance) for name, value in moments.items()},
        {
            "extractor": network.protocol,
            "images": stream.digest(),
            "crop": crop,
            "resolution": list(found.size),
            "batch": batch,
        },
    )
    click.echo(f"{out}: {', '.join(names)} of {found.n:,} images")
