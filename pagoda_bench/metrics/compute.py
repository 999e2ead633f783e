"""From what a pass gathered to numbers: the measures on each block of the samples against the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.extractors.base import Extractor
from pagoda_bench.metrics.feature_set import FeatureSet
from pagoda_bench.metrics.gather import Feature, Gathered, Wanted
from pagoda_bench.metrics.moments import Moments
from pagoda_bench.metrics.registry import compute
from pagoda_bench.metrics.statistics import Statistics, StatisticsFile
from pagoda_bench.metrics.suite import Measure
from pagoda_bench.metrics.values import Value

SELF_CHECK = 1e-6  # of the mean square of the features: what rounding leaves of the distance of a set to itself
UNKNOWN_N = 50_000  # stands for the count that most published statistics do not say; no Frechet distance depends on it
STATISTICS_WILL_DO = "features|moments"


@dataclass
class Reference:
    """What the samples are held against: images that went through the networks, statistics from a file, or both."""

    where: str
    digest: str
    gathered: Gathered | None = None
    statistics: StatisticsFile | None = None
    crop: str | None = None

    @cached_property
    def _sets(self) -> dict[tuple[Feature, bool], FeatureSet]:
        return {}

    def published(self, measure: Measure, extractors: Mapping[str, Extractor]) -> Statistics | None:
        """The statistics that a distance is taken to; None when it is taken to images.

        Where a file has both, its statistics win, as in ADM's evaluator: they are of far more images than come with it.
        """
        if self.statistics is None or measure.line.reference != (STATISTICS_WILL_DO,):
            return None
        if self.gathered is not None and measure.feature not in self.statistics.features:
            return None
        return self.statistics.of(extractors[measure.extractor], measure.feature)

    def count(self, statistics: Statistics | None) -> int | None:
        """How many images stand behind it; None where nobody wrote it down."""
        if statistics is not None:
            return statistics.n
        return self.gathered.n if self.gathered else None

    def features(self, measure: Measure, extractors: Mapping[str, Extractor]) -> FeatureSet:
        """What the measure needs of it. Raises `UserError` when there are statistics alone and images are needed."""
        statistics = self.published(measure, extractors)
        mark = (measure.key, statistics is not None)
        if mark not in self._sets:
            if statistics is not None:
                moments = Moments.of(statistics.n or UNKNOWN_N, statistics.mean, statistics.covariance)
                self._sets[mark] = FeatureSet(moments=moments)
            elif self.gathered is None or not (
                measure.key in self.gathered.rows or measure.key in self.gathered.moments or self.gathered.images is not None
            ):
                raise UserError(f"'{measure.metric}' needs real images, and {self.where} has statistics alone: give the images")
            else:
                self._sets[mark] = block_features(self.gathered, measure.key, 0, extractors)
        return self._sets[mark]


def block_features(gathered: Gathered, key: Feature, block: int, extractors: Mapping[str, Extractor]) -> FeatureSet:
    """What was gathered of one feature on one block; rows stand for features and for logits alike."""
    part, extractor = gathered.bounds(block), extractors[key[0]]
    rows = gathered.block_rows(key, block) if key in gathered.rows else None
    moments = gathered.moments[key][block] if key in gathered.moments else None

    def distance(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.floating]:
        return extractor.distance(_tensor(a), _tensor(b)).cpu().numpy()

    return FeatureSet(
        features=rows,
        logits=rows,
        moments=moments,
        texts=gathered.texts[key[0]][part] if key[0] in gathered.texts else None,
        labels=None if gathered.labels is None else gathered.labels[part],
        images=None if gathered.images is None else gathered.images[part],
        distance=None if gathered.images is None else distance,
    )


def needs(
    chosen: Sequence[Measure],
    extractors: Mapping[str, Extractor],
    n: int,
    reference_n: int | None,
    statistics: StatisticsFile | None,
) -> tuple[Wanted, Wanted]:
    """What to keep of the samples (blocks of `n` images) and of the reference (`reference_n` images; None: no images)."""
    moments: tuple[set[Feature], set[Feature]] = (set(), set())
    rows: tuple[set[Feature], set[Feature]] = (set(), set())
    texts: set[str] = set()
    pixels = [False, False]
    for measure in chosen:
        for side, fields in enumerate((measure.line.generated, measure.line.reference)):
            published = (
                statistics is not None
                and measure.line.reference == (STATISTICS_WILL_DO,)
                and (reference_n is None or measure.feature in statistics.features)
            )
            if side and published:
                continue
            if STATISTICS_WILL_DO in fields:
                # The short way on the features themselves exists where neither side has more images than dimensions.
                dimensions = extractors[measure.extractor].dimensions[measure.feature]
                short = not published and max(n, reference_n or 0) <= dimensions
                (rows if short else moments)[side].add(measure.key)
            elif "features" in fields or "logits" in fields:
                rows[side].add(measure.key)
            pixels[side] |= "images" in fields
        if "texts" in measure.line.generated:
            texts.add(measure.extractor)
    mine = Wanted(frozenset(moments[0]), frozenset(rows[0]), frozenset(texts), pixels[0])
    return mine, Wanted(frozenset(moments[1]), frozenset(rows[1]), pixels=pixels[1])


def values(
    chosen: Sequence[Measure], samples: Gathered, block: int, real: Reference | None, extractors: Mapping[str, Extractor]
) -> dict[str, Value]:
    """The values of all measures on one block. Measures of one network and one setting share what they have in common."""
    groups: dict[Any, list[Measure]] = {}
    sets: dict[Feature, FeatureSet] = {}
    for measure in chosen:
        published = real is not None and real.published(measure, extractors) is not None
        compared = bool(measure.line.reference)
        groups.setdefault((measure.key, measure.settings.model_dump_json(), published, compared), []).append(measure)
    found: dict[str, Value] = {}
    for (key, _, _, compared), group in groups.items():
        generated = sets.setdefault(key, block_features(samples, key, block, extractors))
        reference = real.features(group[0], extractors) if real is not None and compared else None
        found |= compute([measure.metric for measure in group], generated, reference, group[0].settings)
    return found


def marks(measure: Measure, n: int, reference: Reference | None, extractors: Mapping[str, Extractor]) -> list[str]:
    """What a reader must know before believing a value of blocks of `n` images, beside what the metric itself says."""
    found = []
    if STATISTICS_WILL_DO in measure.line.generated:
        dimensions = extractors[measure.extractor].dimensions[measure.feature]
        if n <= dimensions:
            found.append(f"N {n:,} is not above the {dimensions:,} dimensions: the covariance has not full rank")
        statistics = reference.published(measure, extractors) if reference else None
        if reference and statistics and not (reference.statistics and reference.statistics.meta):
            found.append("the file of the reference does not say how it was made")
    return found


def check_self(measure: Measure, block: Gathered, reference: Reference, extractors: Mapping[str, Extractor]) -> None:
    """`block` is the reference itself, through the way of the samples: its distance must be 0 to rounding."""
    features = block_features(block, measure.key, 0, extractors)
    distance = compute([measure.metric], features, reference.features(measure, extractors))[measure.metric].value
    if features.features is not None:
        size = float(np.square(features.features, dtype=np.float64).sum()) / features.n
    else:
        gaussian = features.gaussian
        size = float(np.trace(gaussian.covariance)) + float((gaussian.mean**2).sum())
    if distance > SELF_CHECK * max(size, 1e-12):
        raise UserError(
            f"self-check: {measure.metric} of {reference.where} to itself is {distance:.6g}, not 0: its features are not those "
            "of these images under this protocol (clear the cache, or make the statistics again)"
        )


def _tensor(images: NDArray[np.uint8]) -> torch.Tensor:
    """uint8 (N, H, W, 3) to (N, 3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
