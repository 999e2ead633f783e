"""`evaluate(images, reference, metrics=...)`: every metric of a set of images in one pass, each with its protocol.

from pagoda_bench.metrics.evaluate import evaluate
for score in evaluate("samples.npz", "real/", metrics=["fid", "prdc"], protocol="adm"):
    print(score.metric, score.value, score.stderr)
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pagoda_bench.artifacts.provenance import code_revision, versions
from pagoda_bench.errors import UserError
from pagoda_bench.metrics import compute
from pagoda_bench.metrics.captions import captions_of
from pagoda_bench.metrics.computations import least
from pagoda_bench.metrics.compute import Reference
from pagoda_bench.metrics.extractors import load_extractor
from pagoda_bench.metrics.extractors.base import Extractor, Precision
from pagoda_bench.metrics.gather import BATCH, Gathered, Wanted, cached, gather
from pagoda_bench.metrics.inputs import Crop, Stream
from pagoda_bench.metrics.moments import Moments
from pagoda_bench.metrics.opening import open_images
from pagoda_bench.metrics.protocol import NOT_STATED, Protocol
from pagoda_bench.metrics.score_schema import Score
from pagoda_bench.metrics.statistics import StatisticsFile, is_statistics, read_statistics
from pagoda_bench.metrics.suite import Measure, measures
from pagoda_bench.metrics.uncertainty import summarise
from pagoda_bench.metrics.values import Value
from pagoda_bench.metrics.workers import Workers

Progress = Callable[[int, int, str], None]
DISTANCES = ("fid", "sfid", "fd", "fd_dinov2")  # of a set to itself they are 0


def evaluate(
    images: Any,
    reference: Any = None,
    metrics: Iterable[str] | None = None,
    *,
    protocol: str = "embedded",
    n: int | None = None,
    seeds: int = 1,
    reference_n: int | None = None,
    extractors: Mapping[str, Extractor] | None = None,
    extractor: str | None = None,
    weights: Mapping[str, Path] | None = None,
    device: str = "cpu",
    precision: Precision = "float32",
    batch: int = BATCH,
    jobs: int = 1,
    crop: Crop | None = None,
    captions: str | Path | Sequence[str] | None = None,
    labels: str = NOT_STATED,
    guidance: str = NOT_STATED,
    self_check: bool = False,
    cache: Path | None = None,
    progress: Progress | None = None,
) -> list[Score]:
    """Scores of `metrics` (default: the usual ones of `protocol`), in the order asked for.

    `images` is a path (folder, zip, tar, npz, npy, parquet), a uint8 array (N, H, W, 3), a stream, or a list of these: disjoint
    sets from different seeds. One set with `seeds` > 1 is cut into as many consecutive blocks. Each block is scored by itself,
    with the first `n` images of each set (default: all). `reference` is the like, or a file of statistics; None where no metric
    needs it. `extractors` are networks in memory, by name, for a training loop; `weights` are their files. `extractor` is
    one by name or "module:object" that takes the place of the protocol's own. `crop` is for the reference alone. `captions`
    are the texts of a CLIP score (`captions.captions_of`), the same for every set; default: those of the images' source.
    `jobs` processes share the images; the scores are those of one, as far as a network's arithmetic does not depend on its
    number of threads, which the jobs share too. They load the networks from their files.

    Raises `UserError` in one line for unusable input, and before any image is read where that can be told.
    """
    streams = [open_images(item) for item in images] if isinstance(images, (list, tuple)) else [open_images(images)]
    if not streams:
        raise UserError("no images to evaluate: give at least one set")
    if seeds < 1 or (seeds > 1 and len(streams) > 1):
        raise UserError(f"{len(streams)} sets of images and {seeds} seeds: several sets are a seed each, one set can be cut")
    count = streams[0].n if n is None else n
    for stream in streams:
        if stream.n < count or (n is None and stream.n != count):
            raise UserError(f"{stream.where} has {stream.n:,} images, not {count:,}: give --n, or sets of one size")
    networks = dict(extractors or {})
    own = None
    if extractor is not None:
        networks[extractor] = networks.get(extractor) or load_extractor(
            extractor, (weights or {}).get(extractor), device, precision
        )
        own = (extractor, next(iter(networks[extractor].dimensions), ""))
    chosen = measures(protocol, metrics, own)
    per_block, rest = divmod(count, seeds)
    if rest or not per_block:
        raise UserError(f"{streams[0].where}: {count:,} images cannot be cut into {seeds} equal blocks: choose --n or --seeds")
    _check_counts(chosen, per_block, streams[0].where)
    speaking = any("texts" in measure.line.generated for measure in chosen)
    texts = [captions_of(stream, captions, count) if speaking else None for stream in streams]
    for name in dict.fromkeys(measure.extractor for measure in chosen):
        networks[name] = networks.get(name) or load_extractor(name, (weights or {}).get(name), device, precision)
    used = {name: networks[name] for name in dict.fromkeys(measure.extractor for measure in chosen)}

    with Workers(jobs) as workers:
        options: dict[str, Any] = {"batch": batch, "look": workers.looks}
        real, wanted = _reference(reference, reference_n, chosen, used, per_block, crop, cache, progress, options)
        if self_check:
            _check_self(reference, real, chosen, used, crop, options)
        parts = [
            gather(s, used, wanted, n=count, blocks=seeds, captions=its, progress=_told(progress, "samples"), **options)
            for s, its in zip(streams, texts, strict=True)
        ]
    for stream, part in zip(streams, parts, strict=True):
        if part.size != parts[0].size:
            sizes = f"{_size(part.size)} px and {streams[0].where} {_size(parts[0].size)}"
            raise UserError(f"{stream.where} is {sizes}: sets of different seeds have one size")
    if len(parts) > 1 or seeds > 1:  # the blocks say how much it varies; nothing has to be drawn again
        chosen = [replace(m, settings=m.settings.model_copy(update={"draws": 0})) for m in chosen]
    blocks = [compute.values(chosen, part, number, real, used) for part in parts for number in range(part.blocks)]
    common = Common(per_block, parts[0].size, labels, guidance, batch, _prompts(parts))
    provenance = {
        "samples": [stream.where for stream in streams],
        "device": next(iter(used.values())).device.type,
        "package": code_revision(),
        "versions": versions(),
    }
    return [_score(measure, [block[measure.metric] for block in blocks], real, used, common, provenance) for measure in chosen]


@dataclass(frozen=True)
class Common:
    """What all scores of one call share."""

    n: int
    size: tuple[int, int]
    labels: str
    guidance: str
    batch: int
    prompts: str | None  # SHA-256 of the captions


def _reference(
    value: Any,
    n: int | None,
    chosen: list[Measure],
    networks: Mapping[str, Extractor],
    per_block: int,
    crop: Crop | None,
    cache: Path | None,
    progress: Progress | None,
    options: dict[str, Any],
) -> tuple[Reference | None, Wanted]:
    """The reference, gathered, and what is to be kept of the samples."""
    comparing = [measure for measure in chosen if measure.line.reference]
    if not comparing:
        return None, compute.needs(chosen, networks, per_block, None, None)[0]
    if value is None:
        raise UserError(f"'{comparing[0].metric}' compares with real images: give them with --ref")
    statistics, stream = open_reference(value, crop)
    if statistics is not None and crop is not None:
        raise UserError(f"{statistics.where} is statistics, of images as they were then: give the images, or no --ref-crop")
    if stream is None and n is not None and statistics is not None:
        raise UserError(f"{statistics.where} is statistics, of as many images as they are: give the images, or no --ref-n")
    count = None if stream is None else (stream.n if n is None else n)
    if count is not None:
        _check_counts(comparing, count, stream.where if stream else "")
    mine, its = compute.needs(chosen, networks, per_block, count, statistics)
    gathered = None
    if stream is not None and (its.moments or its.rows or its.pixels):
        told = _told(progress, "reference")
        gathered = (
            cached(cache, stream, networks, its, n=count, progress=told, **options)
            if cache is not None
            else gather(stream, networks, its, n=count, progress=told, **options)
        )
    digest = stream.digest() if stream is not None else ""
    if statistics is not None:
        digest = statistics.digest
    where = statistics.where if statistics else stream.where if stream else ""
    cropped = str(crop) if crop else statistics.meta.get("crop") if statistics else None
    found = Reference(where, digest, gathered, statistics, cropped)
    for measure in comparing:  # before the samples are read
        found.features(measure, networks)
    return found, mine


def open_reference(value: Any, crop: Crop | None = None) -> tuple[StatisticsFile | None, Stream | None]:
    """(statistics or None, images or None) of a path or an array; an npz may hold both."""
    if isinstance(value, (str, Path)) and Path(value).is_file() and is_statistics(Path(value)):
        path = Path(value)
        statistics = read_statistics(path)
        from pagoda_bench.metrics.archives import npz_headers

        both = path.suffix.lower() == ".npz" and "arr_0" in npz_headers(path)
        return statistics, open_images(path, crop) if both else None
    return None, open_images(value, crop)


def _check_self(
    value: Any,
    real: Reference | None,
    chosen: list[Measure],
    networks: Mapping[str, Extractor],
    crop: Crop | None,
    options: dict[str, Any],
) -> None:
    """Sends the reference through the way of the samples, uncached; every Frechet distance must come out as 0."""
    todo = [measure for measure in chosen if measure.metric in DISTANCES]
    if real is None or not todo:
        raise UserError(f"--self-check needs one of {', '.join(DISTANCES)} among the metrics, and a reference")
    _, stream = open_reference(value, crop)
    for measure in todo:
        published = real.published(measure, networks)
        key = frozenset({measure.key})
        if published is not None:
            moments = Moments.of(published.n or compute.UNKNOWN_N, published.mean, published.covariance)
            again = Gathered(moments.n, (0, 0), moments={measure.key: [moments]})
        else:
            assert stream is not None
            assert real.gathered is not None
            wanted = Wanted(key) if measure.key in real.gathered.moments else Wanted(rows=key)
            again = gather(stream, networks, wanted, n=real.gathered.n, **options)
        compute.check_self(measure, again, real, networks)


def _score(
    measure: Measure,
    found: Sequence[Value],
    real: Reference | None,
    networks: Mapping[str, Extractor],
    common: Common,
    provenance: Mapping[str, Any],
) -> Score:
    summary = summarise([value.value for value in found])
    if not measure.line.reference:
        real = None
    statistics = real.published(measure, networks) if real else None
    notes = [*found[0].marks, *compute.marks(measure, common.n, real, networks)]
    if real and real.gathered and statistics is None and real.gathered.size != common.size:
        notes.append(f"the reference is {_size(real.gathered.size)} px, the samples {_size(common.size)}")
    network = networks[measure.extractor]
    protocol = Protocol(
        **network.protocol,
        resolution=common.size[0],
        reference=real.digest if real else None,
        reference_n=real.count(statistics) if real else None,
        n=common.n,
        labels=common.labels,
        rounding="as saved, uint8",
        guidance=common.guidance,
        crop=real.crop if real else None,
        batch=common.batch,
        prompts=common.prompts,
        **measure.settings.protocol(measure.metric),
    ).of(measure.metric)
    stderr, source = summary.stderr, f"{len(found)} disjoint blocks"
    if len(found) == 1:
        stderr, source = found[0].stderr, f"bootstrap: {measure.line.bootstrap}"
    return Score(
        metric=measure.metric,
        value=summary.mean,
        stderr=stderr,
        n=common.n,
        seeds=len(found),
        values=[value.value for value in found],
        minimum=summary.minimum,
        std=summary.std,
        stderr_from=None if stderr is None else source,
        spread=found[0].spread,
        spread_of=found[0].spread_of or None,
        direction=measure.line.better,
        unit=measure.line.unit,
        range=_range(measure.line.low, measure.line.high),
        marks=notes,
        protocol={
            "preset": measure.preset,
            "feature": measure.feature,
            **protocol.to_dict(),
            **found[0].protocol,
            "resolution": _size(common.size),
        },
        provenance={**provenance, "reference": real.where if real else None, "paper": measure.line.paper},
    )


def _range(low: float, high: float) -> str:
    left = "(-inf" if math.isinf(low) else f"[{low:g}"
    return f"{left}, {'inf)' if math.isinf(high) else f'{high:g}]'}"


def _check_counts(chosen: Sequence[Measure], n: int, where: str) -> None:
    for measure in chosen:
        needed = least(measure.metric, measure.line.least, measure.settings)
        if n < needed:
            raise UserError(f"{where}: {n:,} images are too few for '{measure.metric}': it needs at least {needed:,}")


def _prompts(parts: Sequence[Gathered]) -> str | None:
    """SHA-256 of all captions: of one set where all sets have the same."""
    each = list(dict.fromkeys(part.captions for part in parts if part.captions))
    return each[0] if len(each) == 1 else hashlib.sha256("".join(each).encode()).hexdigest() if each else None


def _size(size: tuple[int, int]) -> int | str:
    return size[0] if size[0] == size[1] else f"{size[1]}x{size[0]}"


def _told(progress: Progress | None, what: str) -> Callable[[int, int], None] | None:
    return None if progress is None else lambda done, total: progress(done, total, what)
