"""What the networks see in each batch of a set: the part of a pass over its images that several processes can share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.extractors.base import Extractor
from pagoda_bench.metrics.inputs import WHOLE, Part, Stream

Feature = tuple[str, str]  # (extractor as it was asked for, name of the feature)
Captions = Sequence[str] | None


@dataclass(frozen=True)
class Wanted:
    """What a pass keeps."""

    moments: frozenset[Feature] = frozenset()
    rows: frozenset[Feature] = frozenset()
    texts: frozenset[str] = frozenset()  # extractors that read the captions
    pixels: bool = False  # the images themselves

    def of(self, extractor: str) -> list[str]:
        """The features of one extractor."""
        return sorted({feature for name, feature in self.moments | self.rows if name == extractor})


@dataclass(frozen=True)
class Seen:
    """Of a batch of `n` images."""

    n: int
    size: tuple[int, int]  # height and width
    first: str  # the name of the first image, where images have names
    features: Mapping[Feature, NDArray[np.float32]] = field(default_factory=dict)  # (n, d)
    texts: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)  # (n, d) by extractor
    images: NDArray[np.uint8] | None = None  # (n, H, W, 3), where they are wanted
    labels: NDArray[np.int64] | None = None


class Looks(Protocol):
    """What goes through the first `count` images, `batch` at a time and in order, through every extractor that is wanted."""

    def __call__(
        self, stream: Stream, extractors: Mapping[str, Extractor], wanted: Wanted, count: int, batch: int, captions: Captions
    ) -> Iterator[Seen]: ...


def looks(
    stream: Stream,
    extractors: Mapping[str, Extractor],
    wanted: Wanted,
    count: int,
    batch: int,
    captions: Captions = None,
    part: Part = WHOLE,
) -> Iterator[Seen]:
    """In this process; of the batches of `part` alone. A batch gives the same numbers whichever part it is in, as long as the
    arithmetic has the same threads. Raises `UserError` for images that cannot be used and for missing captions."""
    start = part.first * batch
    for images, labels, first in stream.batches(batch, part):
        images = images[: count - start]
        pixels = torch.from_numpy(np.array(images.transpose(0, 3, 1, 2), order="C"))  # a copy: a file's buffer is read-only
        features: dict[Feature, NDArray[np.float32]] = {}
        for name, extractor in extractors.items():
            if names := wanted.of(name):
                features |= {(name, feature): value.cpu().numpy() for feature, value in extractor(pixels, names).items()}
        texts = {
            name: extractors[name].text(_part_of(captions, start, len(images), stream.where)).cpu().numpy()
            for name in wanted.texts
        }
        yield Seen(
            len(images),
            (images.shape[1], images.shape[2]),
            first,
            features,
            texts,
            images if wanted.pixels else None,
            None if labels is None else labels[: len(images)],
        )
        start += len(images) + (part.of - 1) * batch
        if start >= count:
            return


def _part_of(captions: Captions, start: int, count: int, where: str) -> Sequence[str]:
    if captions is None or len(captions) < start + count:
        raise UserError(f"{where} has {0 if captions is None else len(captions):,} captions, fewer than images: give one each")
    return captions[start : start + count]
