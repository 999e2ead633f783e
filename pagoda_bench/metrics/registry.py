"""The table of metrics: what each needs, which way it points, and what computes it.

    values = compute(["fid", "kid"], generated, reference, PROTOCOLS["torch-fidelity"])

`generated` and `reference` are `FeatureSet`s of one extractor; a metric names the extractor it is published with. Metrics
that come out of one computation share it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

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


def _table(*metrics: Metric) -> dict[str, Metric]:
    return {each.name: each for each in metrics}


_FRECHET_NEEDS = ("features|moments",)
_HEUSEL = "Heusel et al. 2017, arXiv 1706.08500"
_KYNKAANNIEMI = "Kynkaanniemi et al. 2019, arXiv 1904.06991"
_NAEEM = "Naeem et al. 2020, arXiv 2002.09797"


def _frechet(name: str, title: str, extractor: str, paper: str, published: int = 50_000) -> Metric:
    return Metric(
        name=name,
        title=title,
        extractor=extractor,
        generated=_FRECHET_NEEDS,
        reference=_FRECHET_NEEDS,
        better="lower",
        unit="features squared",
        low=0,
        high=INFINITY,
        paper=paper,
        least=2,
        published=published,
        bootstrap="",
        compute=of.frechet,
        key="frechet",
    )


def _near(name: str, high: float, paper: str, bootstrap: str) -> Metric:
    return Metric(
        name=name,
        title=name.capitalize(),
        extractor="any",
        generated=("features",),
        reference=("features",),
        better="higher",
        unit="fraction of the images" if high == 1 else "balls over k",
        low=0,
        high=high,
        paper=paper,
        least=2,
        published=10_000,
        bootstrap=bootstrap,
        compute=of.near,
        key=name,
    )


def _alone(name: str, **fields: object) -> Metric:
    """A metric with the features of both sides, unless `fields` says otherwise."""
    defaults: dict[str, object] = {
        "extractor": "inception",
        "generated": ("features",),
        "reference": ("features",),
        "unit": "none",
        "low": 0,
        "high": INFINITY,
        "least": 2,
        "bootstrap": "",
        "key": name,
    }
    return Metric(**{"name": name, **defaults, **fields})  # type: ignore[arg-type]


METRICS: dict[str, Metric] = _table(
    _frechet("fid", "FID", "inception", _HEUSEL),
    _frechet("sfid", "sFID", "inception-spatial", "Nash et al. 2021, arXiv 2103.03841"),
    _frechet("fd_dinov2", "FD-DINOv2", "dinov2", "Stein et al. 2023, arXiv 2306.04675"),
    _frechet("fd", "Frechet distance", "any", f"{_HEUSEL}, with other features"),
    _alone(
        "fid_infinity",
        title="FID-infinity",
        better="lower",
        unit="features squared",
        low=-INFINITY,
        reference=_FRECHET_NEEDS,
        paper="Chong and Forsyth 2020, arXiv 1911.07023",
        least=30,
        published=50_000,
        compute=of.infinity,
    ),
    _alone(
        "per_class_fid",
        title="Per-class FID, mean",
        better="lower",
        unit="features squared",
        generated=("features", "labels"),
        reference=("features", "labels"),
        paper="Miyato and Koyama 2018, arXiv 1802.05637",
        published=50_000,
        compute=of.per_class,
    ),
    _alone(
        "kid",
        title="KID",
        better="lower",
        low=-INFINITY,
        paper="Binkowski et al. 2018, arXiv 1801.01401",
        published=10_000,
        bootstrap="images drawn again, pairs of copies left out",
        compute=of.kernel_distance,
    ),
    _alone(
        "is",
        title="Inception Score",
        better="higher",
        low=1,
        generated=("logits",),
        reference=(),
        paper="Salimans et al. 2016, arXiv 1606.03498",
        published=50_000,
        compute=of.classifier_score,
    ),
    _near("precision", 1, _KYNKAANNIEMI, "generated images drawn again, manifolds held fixed"),
    _near("recall", 1, _KYNKAANNIEMI, "real images drawn again, manifolds held fixed"),
    _near("density", INFINITY, _NAEEM, ""),
    _near("coverage", 1, _NAEEM, ""),
    _alone(
        "clip_score",
        title="CLIP score",
        extractor="clip",
        better="higher",
        unit="by convention",
        generated=("features", "texts"),
        reference=(),
        paper="Hessel et al. 2021, arXiv 2104.08718",
        least=1,
        published=30_000,
        bootstrap="pairs of image and text drawn again",
        compute=of.text_fit,
    ),
    _alone(
        "cmmd",
        title="CMMD",
        extractor="clip",
        better="lower",
        unit="1/1000",
        high=4000,
        paper="Jayasumana et al. 2024, arXiv 2401.09603",
        published=30_000,
        compute=of.clip_discrepancy,
    ),
    _alone(
        "mind",
        title="MIND",
        better="lower",
        unit="features squared",
        paper="Berthet et al. 2026, arXiv 2605.06797",
        published=5_000,
        compute=of.sliced,
    ),
    _alone(
        "vendi",
        title="Vendi score",
        extractor="any",
        better="higher",
        unit="images",
        low=1,
        reference=(),
        paper="Friedman and Dieng 2023, arXiv 2210.02410",
        least=1,
        published=10_000,
        compute=of.diversity_of_features,
    ),
    _alone(
        "authenticity",
        title="Authenticity",
        extractor="dinov2",
        better="higher",
        unit="percent of the images",
        high=100,
        paper="Alaa et al. 2022, arXiv 2102.08921",
        published=10_000,
        compute=of.memorisation,
    ),
    _alone(
        "lpips_diversity",
        title="LPIPS diversity",
        extractor="none",
        better="higher",
        unit="of the distance",
        generated=("images", "distance"),
        reference=(),
        paper="Zhu et al. 2017, arXiv 1711.11586; Zhang et al. 2018, arXiv 1801.03924",
        published=1_000,
        compute=of.diversity_of_images,
    ),
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
