"""The table of metrics: what each needs, which way it points, and what computes it.

    values = compute(["fid", "kid"], generated, reference, PROTOCOLS["torch-fidelity"])

`generated` and `reference` are `FeatureSet`s of one extractor; a metric names the extractor it is published with. Metrics
that come out of one computation share it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pagoda_bench.errors import UserError, nearest
from pagoda_bench.metrics import computations as of
from pagoda_bench.metrics.feature_set import FeatureSet
from pagoda_bench.metrics.settings import PROTOCOLS, Settings
from pagoda_bench.metrics.uncertainty import Summary, summarise
from pagoda_bench.metrics.values import Value

__all__ = ["METRICS", "PROTOCOLS", "FeatureSet", "Metric", "Settings", "Value", "compute", "compute_blocks", "metric"]

Compute = Callable[[FeatureSet, FeatureSet | None, Settings], Mapping[str, Value]]
INFINITY = float("inf")


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One line of the table."""

    name: str
    title: str
    extractor: str  # family that published values use; "any" where a protocol chooses
    generated: tuple[str, ...]  # fields of the `FeatureSet` of the samples that are needed; "a|b": one of them
    reference: tuple[str, ...]  # of the reference; none where the metric looks at the samples alone
    better: Literal["lower", "higher"]
    unit: str
    low: float
    high: float
    paper: str
    least: int  # images on either side below which it is an error
    published: int  # images that published values use: below, a score is marked
    bootstrap: str  # how its standard error is bootstrapped; "" where that is not valid
    compute: Compute
    key: str  # of its value among those that `compute` gives

    @property
    def larger_is_better(self) -> bool:
        return self.better == "higher"

    def marks(self, generated: FeatureSet, reference: FeatureSet | None, settings: Settings) -> tuple[str, ...]:
        """What a reader must know of a score at these N; a `UserError` where N or the features do not suffice."""
        least = of.least(self.name, self.least, settings)
        sides: list[tuple[str, FeatureSet, tuple[str, ...]]] = [("samples", generated, self.generated)]
        if self.reference:
            if reference is None:
                raise UserError(f"{self.name}: it compares with real images: give a reference")
            sides.append(("reference", reference, self.reference))
        found = []
        for side, features, needs in sides:
            if missing := [need for need in needs if not features.has(need)]:
                raise UserError(
                    f"{self.name}: the {side} lack '{missing[0]}', which this metric needs (has: {features.names()})"
                )
            if features.n < least:
                raise UserError(f"{self.name}: {features.n} images of the {side} are too few, it needs at least {least}")
            if features.n < self.published:
                found.append(f"{side} N {features.n:,}, published values use {self.published:,}")
        return tuple(found)


def _metric(name: str, title: str, paper: str, compute: Compute, **fields: Any) -> tuple[str, Metric]:
    """A line; what is not said is as for most of them."""
    usual: dict[str, Any] = {
        "extractor": "inception",
        "generated": ("features",),
        "reference": ("features",),
        "better": "lower",
        "unit": "none",
        "low": 0,
        "high": INFINITY,
        "least": 2,
        "published": 50_000,
        "bootstrap": "",
        "key": name,
    }
    return name, Metric(name=name, title=title, paper=paper, compute=compute, **(usual | fields))


_HEUSEL = "Heusel et al. 2017, arXiv 1706.08500"
_KYNKAANNIEMI = "Kynkaanniemi et al. 2019, arXiv 1904.06991"
_NAEEM = "Naeem et al. 2020, arXiv 2002.09797"
_STATISTICS = ("features|moments",)
_SQUARED: dict[str, Any] = {"unit": "features squared"}
_FRECHET: dict[str, Any] = {"generated": _STATISTICS, "reference": _STATISTICS, "key": "frechet", **_SQUARED}
_NEAR: dict[str, Any] = {"extractor": "any", "better": "higher", "published": 10_000}
_SHARE: dict[str, Any] = {"unit": "fraction of the images", "high": 1}
_ALONE: dict[str, Any] = {"reference": (), "better": "higher"}

METRICS: dict[str, Metric] = dict(
    [
        _metric("fid", "FID", _HEUSEL, of.frechet, **_FRECHET),
        _metric("sfid", "sFID", "Nash et al. 2021, arXiv 2103.03841", of.frechet, extractor="inception-spatial", **_FRECHET),
        _metric("fd_dinov2", "FD-DINOv2", "Stein et al. 2023, arXiv 2306.04675", of.frechet, extractor="dinov2", **_FRECHET),
        _metric("fd", "Frechet distance", f"{_HEUSEL}, with other features", of.frechet, extractor="any", **_FRECHET),
        _metric(
            "fid_infinity",
            "FID-infinity",
            "Chong and Forsyth 2020, arXiv 1911.07023",
            of.infinity,
            reference=_STATISTICS,
            low=-INFINITY,
            least=30,
            **_SQUARED,
        ),
        _metric(
            "per_class_fid",
            "Per-class FID, mean",
            "Miyato and Koyama 2018, arXiv 1802.05637",
            of.per_class,
            generated=("features", "labels"),
            reference=("features", "labels"),
            **_SQUARED,
        ),
        _metric(
            "kid",
            "KID",
            "Binkowski et al. 2018, arXiv 1801.01401",
            of.kernel_distance,
            low=-INFINITY,
            published=10_000,
            bootstrap="images drawn again, pairs of copies left out",
        ),
        _metric(
            "is",
            "Inception Score",
            "Salimans et al. 2016, arXiv 1606.03498",
            of.classifier_score,
            generated=("logits",),
            low=1,
            **_ALONE,
        ),
        _metric(
            "precision",
            "Precision",
            _KYNKAANNIEMI,
            of.near,
            bootstrap="generated images drawn again, manifolds held fixed",
            **_NEAR,
            **_SHARE,
        ),
        _metric(
            "recall",
            "Recall",
            _KYNKAANNIEMI,
            of.near,
            bootstrap="real images drawn again, manifolds held fixed",
            **_NEAR,
            **_SHARE,
        ),
        _metric("density", "Density", _NAEEM, of.near, unit="balls over k", **_NEAR),
        _metric("coverage", "Coverage", _NAEEM, of.near, **_NEAR, **_SHARE),
        _metric(
            "clip_score",
            "CLIP score",
            "Hessel et al. 2021, arXiv 2104.08718",
            of.text_fit,
            extractor="clip",
            generated=("features", "texts"),
            unit="by convention",
            low=-1,
            least=1,
            published=30_000,
            bootstrap="pairs of image and text drawn again",
            **_ALONE,
        ),
        _metric(
            "cmmd",
            "CMMD",
            "Jayasumana et al. 2024, arXiv 2401.09603",
            of.clip_discrepancy,
            extractor="clip",
            unit="1/1000",
            high=4000,
            published=30_000,
        ),
        _metric("mind", "MIND", "Berthet et al. 2026, arXiv 2605.06797", of.sliced, published=5_000, **_SQUARED),
        _metric(
            "vendi",
            "Vendi score",
            "Friedman and Dieng 2023, arXiv 2210.02410",
            of.diversity_of_features,
            extractor="any",
            unit="images",
            low=1,
            least=1,
            published=10_000,
            **_ALONE,
        ),
        _metric(
            "authenticity",
            "Authenticity",
            "Alaa et al. 2022, arXiv 2102.08921",
            of.memorisation,
            extractor="dinov2",
            better="higher",
            unit="percent of the images",
            high=100,
            published=10_000,
        ),
        _metric(
            "lpips_diversity",
            "LPIPS diversity",
            "Zhu et al. 2017, arXiv 1711.11586; Zhang et al. 2018, arXiv 1801.03924",
            of.diversity_of_images,
            extractor="none",
            generated=("images", "distance"),
            unit="of the distance",
            published=1_000,
            **_ALONE,
        ),
        _metric(
            "cas",
            "Classification accuracy score",
            "Ravuri and Vinyals 2019, arXiv 1905.10887",
            of.trained_classifier,
            extractor="none",
            generated=("images", "labels"),
            reference=("images", "labels"),
            better="higher",
            bootstrap="real images drawn again, classifier held fixed",
            **_SHARE,
        ),
    ]
)


def metric(name: str) -> Metric:
    """The metric `name`; a `UserError` with the nearest known one when there is none."""
    if name not in METRICS:
        raise UserError(f"unknown metric '{name}'" + nearest(name, METRICS))
    return METRICS[name]


def compute(
    names: Sequence[str], generated: FeatureSet, reference: FeatureSet | None = None, settings: Settings | None = None
) -> dict[str, Value]:
    """The metrics `names` of one extractor's features, in that order. What two of them share is computed once; what does not
    suffice for one of them is said before anything is computed."""
    settings = settings or Settings()
    marks = {name: metric(name).marks(generated, reference, settings) for name in names}
    done: dict[Compute, Mapping[str, Value]] = {}
    for name in names:
        if METRICS[name].compute not in done:
            done[METRICS[name].compute] = METRICS[name].compute(generated, reference, settings)
    return {name: done[METRICS[name].compute][METRICS[name].key].marked(marks[name]) for name in names}


def compute_blocks(
    names: Sequence[str], blocks: Sequence[FeatureSet], reference: FeatureSet | None = None, settings: Settings | None = None
) -> dict[str, Summary]:
    """The summary over `blocks`, sets of samples from different seeds or disjoint parts of one (`FeatureSet.parts`)."""
    settings = (settings or Settings()).model_copy(update={"draws": 0})
    scores = [compute(names, block, reference, settings) for block in blocks]
    return {name: summarise([each[name].value for each in scores]) for name in names}
