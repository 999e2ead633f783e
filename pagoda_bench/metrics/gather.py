"""One pass over a set of images: each is decoded once and goes through each network once, whatever is measured afterwards.

Moments stream in float64. Features themselves are kept only where a metric needs them, and in a file instead of memory past a
limit. Two passes over two parts of a set merge to what one pass over the whole gives.
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
import torch
from numpy.typing import NDArray

from pagoda_bench.artifacts.checkpoint import save_atomic
from pagoda_bench.errors import UserError
from pagoda_bench.metrics.extractors.base import Extractor
from pagoda_bench.metrics.inputs import Stream
from pagoda_bench.metrics.moments import Moments

Feature = tuple[str, str]  # (extractor as it was asked for, name of the feature)
Progress = Callable[[int, int], None]
BATCH = 64  # always the same: float32 networks round differently at another batch size
MEMORY_LIMIT = 4 << 30  # of the features that are kept, over all; beyond it they lie in files


@dataclass(frozen=True)
class Wanted:
    """What a pass keeps."""

    moments: frozenset[Feature] = frozenset()
    rows: frozenset[Feature] = frozenset()

    def of(self, extractor: str) -> list[str]:
        """The features of one extractor."""
        return sorted({feature for name, feature in self.moments | self.rows if name == extractor})


@dataclass
class Gathered:
    """What a pass over `n` images gives: by feature, moments for each of `blocks` parts, and all rows."""

    n: int
    size: tuple[int, int]  # height and width of the images
    blocks: int = 1
    moments: dict[Feature, list[Moments]] = field(default_factory=dict)
    rows: dict[Feature, NDArray[np.float32]] = field(default_factory=dict)
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
    batch: int = BATCH,
    memory_limit: int = MEMORY_LIMIT,
    scratch: Path | None = None,
    progress: Progress | None = None,
) -> Gathered:
    """The first `n` images (default: all) through every extractor that `wanted` names.

    Rows past `memory_limit` bytes go to files in `scratch` (default: a temporary folder that lasts as long as the process).
    Raises `UserError` for too few images, and for features that are not finite, naming the image.
    """
    count = stream.n if n is None else n
    if count > stream.n:
        raise UserError(f"{stream.where} has {stream.n:,} images and {count:,} are asked for: make more, or lower n")
    if not 1 <= blocks <= count:
        raise UserError(f"{stream.where}: {count:,} images cannot be cut into {blocks} parts: take fewer seeds")
    found = Gathered(count, (0, 0), blocks)
    for name, feature in wanted.moments:
        found.moments[name, feature] = [Moments(extractors[name].dimensions[feature]) for _ in range(blocks)]
    _allocate(found, extractors, wanted, memory_limit, scratch)
    labels: list[NDArray[np.int64]] | None = []
    done = 0
    for images, its_labels in stream.batches(batch):
        images = images[: count - done]
        found.size = found.size if done else (images.shape[1], images.shape[2])
        pixels = torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))  # a copy: a file's buffer is read-only
        for name, extractor in extractors.items():
            if names := wanted.of(name):
                for feature, value in extractor(pixels, names).items():
                    _keep(found, (name, feature), value.cpu().numpy(), done, stream.where)
        if labels is not None:
            labels = None if its_labels is None else [*labels, its_labels[: count - done]]
        done += len(images)
        if progress:
            progress(done, count)
        if done == count:
            break
    if done < count:
        raise UserError(f"{stream.where} ended after {done:,} of {count:,} images: copy or make it again")
    found.labels = np.concatenate(labels) if labels else None
    return found


def merge(parts: Sequence[Gathered]) -> Gathered:
    """What separate passes over consecutive parts of a set gave, as one: counts add, moments merge, rows follow each other."""
    first = parts[0]
    if any(part.blocks != 1 or part.size != first.size for part in parts):
        raise ValueError("only whole parts of images of one size can be merged")
    found = Gathered(sum(part.n for part in parts), first.size)
    for key, (start,) in first.moments.items():
        total = Moments(len(start.mean))
        for part in parts:
            total.merge(part.moments[key][0])
        found.moments[key] = [total]
    found.rows = {key: np.concatenate([part.rows[key] for part in parts]) for key in first.rows}
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
        fields = {**identity, **extractor.protocol, "feature": feature[1], "device": extractor.device.type}
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
    missing = Wanted(wanted.moments - set(found.moments), wanted.rows - set(found.rows))
    if not missing.moments and not missing.rows:
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
    if sum(4 * a * b for a, b in shapes.values()) <= limit:
        found.rows = {key: np.empty(shape, np.float32) for key, shape in shapes.items()}
        return
    for key, shape in shapes.items():
        # Without a name once it is open, so that the space comes back however the process ends.
        with tempfile.TemporaryFile(dir=scratch) as file:
            found.rows[key] = np.memmap(file, np.float32, "w+", shape=shape)


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
