"""One pass over a set of images: each is decoded once and goes through each network once, whatever is measured afterwards.

Moments stream in float64. Features themselves are kept only where a metric needs them, and in a file instead of memory past a
limit. Two passes over two parts of a set merge to what one pass over the whole gives. Within a pass, several processes may
look at the batches (`look`): what they see is added up here, in the order of the images, so the sums are the same.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pagoda_bench.artifacts.checkpoint import save_atomic
from pagoda_bench.errors import UserError
from pagoda_bench.metrics.extractors.base import Extractor
from pagoda_bench.metrics.inputs import Stream, unlike
from pagoda_bench.metrics.looks import Feature, Looks, Wanted, looks
from pagoda_bench.metrics.moments import Moments

__all__ = ["BATCH", "Feature", "Gathered", "Wanted", "cached", "gather", "merge"]

Progress = Callable[[int, int], None]
BATCH = 64  # always the same: float32 networks round differently at another batch size
LABELS = 2  # by which rule a source numbers its classes: labels lie in the cache beside the features
MEMORY_LIMIT = 4 << 30  # of the features that are kept, over all; beyond it they lie in files


@dataclass
class Gathered:
    """What a pass over `n` images gives: by feature, moments for each of `blocks` parts, and all rows."""

    n: int
    size: tuple[int, int]  # height and width of the images
    blocks: int = 1
    start: int = 0  # images of the whole set that come before these, on other workers
    moments: dict[Feature, list[Moments]] = field(default_factory=dict)
    rows: dict[Feature, NDArray[np.float32]] = field(default_factory=dict)
    texts: dict[str, NDArray[np.float32]] = field(default_factory=dict)  # (n, d) by extractor
    captions: str | None = None  # SHA-256 of them
    images: NDArray[np.uint8] | None = None  # (n, H, W, 3)
    labels: NDArray[np.int64] | None = None

    def bounds(self, block: int) -> slice:
        """The images of a part: parts are consecutive and differ by at most one image."""
        return slice(self.n * block // self.blocks, self.n * (block + 1) // self.blocks)

    def block_rows(self, feature: Feature, block: int) -> NDArray[np.float32]:
        return self.rows[feature][self.bounds(block)]


def gather(
    stream: Stream,
    extractors: Mapping[str, Extractor],
    wanted: Wanted,
    *,
    n: int | None = None,
    blocks: int = 1,
    start: int = 0,
    captions: Sequence[str] | None = None,
    batch: int = BATCH,
    look: Looks = looks,
    memory_limit: int = MEMORY_LIMIT,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Gathered:
    """The first `n` images (default: all) through every extractor that `wanted` names.

    `captions` has a text for each image, where `wanted.texts` asks for their embeddings. A worker whose stream is a part of a
    set says how many images come before it (`start`); `merge` joins the parts then as one pass over the set gives them. `look`
    shows the batches to the extractors, in this process or in those of `Workers`. Rows past `memory_limit` bytes go to files in
    `scratch` (default: the temporary folder).
    Raises `UserError` for too few images, and for features that are not finite, naming the image.
    """
    count = stream.n if n is None else n
    if count > stream.n:
        raise UserError(f"{stream.where} has {stream.n:,} images and {count:,} are asked for: make more, or lower n")
    if not 1 <= blocks <= count:
        raise UserError(f"{stream.where}: {count:,} images cannot be cut into {blocks} parts: take fewer seeds")
    found = Gathered(count, (0, 0), blocks, start)
    for name, feature in wanted.moments:
        # A block is a set of its own; a whole stream may be a part of one.
        begins = [start if blocks == 1 else 0] * blocks
        found.moments[name, feature] = [Moments(extractors[name].dimensions[feature], begin) for begin in begins]
    _allocate(found, extractors, wanted, memory_limit, scratch)
    labels: list[NDArray[np.int64]] | None = []
    embeddings: dict[str, list[NDArray[np.float32]]] = {}
    done = 0
    first = ""
    for seen in look(stream, extractors, wanted, count, batch, captions):
        if not done:
            found.size, first = seen.size, seen.first
            if seen.images is not None:
                room = memory_limit - sum(rows.nbytes for rows in found.rows.values() if not isinstance(rows, np.memmap))
                found.images = _array((count, *seen.images.shape[1:]), np.uint8, room, scratch)
        if seen.size != found.size:
            raise unlike(stream.where, seen.first, seen.size, first, found.size)
        if found.images is not None and seen.images is not None:
            found.images[done : done + seen.n] = seen.images
        for key, value in seen.features.items():
            _keep(found, key, value, done, stream.where)
        for name, read in seen.texts.items():
            embeddings.setdefault(name, []).append(read)
        if labels is not None:
            labels = None if seen.labels is None else [*labels, seen.labels]
        done += seen.n
        if progress:
            progress(done, count)
    if done < count:
        raise UserError(f"{stream.where} ended after {done:,} of {count:,} images: copy or make it again")
    found.labels = np.concatenate(labels) if labels else None
    found.texts = {name: np.concatenate(parts) for name, parts in embeddings.items()}
    if captions is not None and wanted.texts:
        found.captions = hashlib.sha256(json.dumps(list(captions[:count])).encode()).hexdigest()
    return found


def merge(parts: Sequence[Gathered]) -> Gathered:
    """What separate passes over consecutive parts of a set gave, as one: counts add, moments merge, rows follow each other."""
    first = parts[0]
    if any(part.blocks != 1 or part.size != first.size for part in parts):
        raise ValueError("only whole parts of images of one size can be merged")
    found = Gathered(sum(part.n for part in parts), first.size, start=first.start)
    for key, (begin,) in first.moments.items():
        total = Moments(len(begin.mean), first.start)
        for part in parts:
            total.merge(part.moments[key][0])
        found.moments[key] = [total]
    found.rows = {key: np.concatenate([part.rows[key] for part in parts]) for key in first.rows}
    found.texts = {key: np.concatenate([part.texts[key] for part in parts]) for key in first.texts}
    if all(part.images is not None for part in parts):
        found.images = np.concatenate([part.images for part in parts if part.images is not None])
    if all(part.labels is not None for part in parts):
        found.labels = np.concatenate([part.labels for part in parts if part.labels is not None])
    return found


def cached(
    folder: Path, stream: Stream, extractors: Mapping[str, Extractor], wanted: Wanted, *, n: int | None = None, **options: Any
) -> Gathered:
    """`gather` with one block, from `folder` where the same content under the same protocol was gathered before.

    Keys are hashes of the content, the extractor's protocol, the feature, n, and the batch; never a name.
    """
    identity = {"content": stream.digest(), "n": stream.n if n is None else n, "batch": options.get("batch", BATCH)}

    def path(feature: Feature, suffix: str) -> Path:
        extractor = extractors[feature[0]]
        fields = {**identity, **extractor.protocol, "feature": feature[1], "device": extractor.device.type, "labels": LABELS}
        return folder / f"{hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:32]}{suffix}"

    found = Gathered(int(identity["n"]), (0, 0))
    for feature in wanted.moments:
        if (part := _load(path(feature, ".moments.npz"))) is not None:
            found.moments[feature] = [Moments.of(int(part["n"]), part["mean"], part["covariance"])]
            found.size = (int(part["size"][0]), int(part["size"][1]))
    for feature in wanted.rows:
        if (part := _load(path(feature, ".rows.npz"))) is not None:
            found.rows[feature], found.size = part["rows"], (int(part["size"][0]), int(part["size"][1]))
            found.labels = part["labels"] if len(part["labels"]) else None
    missing = Wanted(wanted.moments - set(found.moments), wanted.rows - set(found.rows), pixels=wanted.pixels)
    if not missing.moments and not missing.rows and not missing.pixels:
        return found
    new = gather(stream, extractors, missing, n=n, **options)
    folder.mkdir(parents=True, exist_ok=True)
    labels = np.empty(0, np.int64) if new.labels is None else new.labels
    for feature, (moments,) in new.moments.items():
        _save(path(feature, ".moments.npz"), n=moments.n, mean=moments.mean, covariance=moments.covariance, size=new.size)
    for feature, rows in new.rows.items():
        _save(path(feature, ".rows.npz"), rows=rows, size=new.size, labels=labels)
    new.moments |= found.moments
    new.rows |= found.rows
    return new


def _allocate(found: Gathered, extractors: Mapping[str, Extractor], wanted: Wanted, limit: int, scratch: Path | None) -> None:
    shapes = {(name, f): (found.n, extractors[name].dimensions[f]) for name, f in sorted(wanted.rows)}
    fits = sum(4 * a * b for a, b in shapes.values()) <= limit
    found.rows = {key: _array(shape, np.float32, limit if fits else 0, scratch) for key, shape in shapes.items()}


def _array(shape: tuple[int, ...], dtype: type[np.generic], limit: int, scratch: Path | None) -> NDArray[Any]:
    """In memory, or, where it has more than `limit` bytes, in a file."""
    if int(np.prod(shape)) * np.dtype(dtype).itemsize <= limit:
        return np.empty(shape, dtype)
    # Without a name once it is open, so that the space comes back however the process ends.
    with tempfile.TemporaryFile(dir=scratch) as file:
        return np.memmap(file, dtype, "w+", shape=shape)


def _keep(found: Gathered, key: Feature, value: NDArray[np.float32], start: int, where: str) -> None:
    bad = np.flatnonzero(~np.isfinite(value).all(axis=1))
    if len(bad):
        raise UserError(
            f"{where}: the features '{key[1]}' of image {start + bad[0]} are not finite: look at that image and at the weights"
        )
    if key in found.rows:
        found.rows[key][start : start + len(value)] = value
    for block, moments in enumerate(found.moments.get(key, ())):
        part = found.bounds(block)
        inside = value[max(0, part.start - start) : max(0, part.stop - start)]
        if len(inside):
            moments.add(inside)


def _load(path: Path) -> dict[str, NDArray[Any]] | None:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, EOFError, KeyError, BadZipFile):  # not there, or damaged: gathered again
        return None


def _save(path: Path, **arrays: Any) -> None:
    save_atomic(path, lambda temporary: np.savez(temporary, **arrays))
