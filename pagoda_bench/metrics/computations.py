"""What the lines of the metric table compute: each takes two sets, of which the second may be absent, and the settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from pagoda_bench.metrics.authenticity import authentic
from pagoda_bench.metrics.cas import classifier_accuracy
from pagoda_bench.metrics.clip_score import clip_score, cosines
from pagoda_bench.metrics.diversity import diversity
from pagoda_bench.metrics.feature_set import FeatureSet
from pagoda_bench.metrics.fid_infinity import fid_infinity
from pagoda_bench.metrics.frechet import frechet_from_features
from pagoda_bench.metrics.inception_score import inception_score
from pagoda_bench.metrics.kid import kid, kid_bootstrap, kid_of_all
from pagoda_bench.metrics.mind import mind
from pagoda_bench.metrics.mmd import cmmd
from pagoda_bench.metrics.neighbours import membership
from pagoda_bench.metrics.per_class import per_class_frechet
from pagoda_bench.metrics.settings import Settings
from pagoda_bench.metrics.uncertainty import bootstrap_mean, summarise_draws
from pagoda_bench.metrics.values import Value
from pagoda_bench.metrics.vendi import vendi_score

Values = Mapping[str, Value]
KID_IMAGES = 5000  # on either side, for its bootstrap; the error at N is then smaller by the root of 5000 / N
DTYPES = {"auto": None, "float32": torch.float32, "float64": torch.float64}


def least(name: str, fixed: int, settings: Settings) -> int:
    """Images that a metric needs under `settings`."""
    if name in ("precision", "recall", "density", "coverage"):
        return settings.k + 1
    if name == "kid":
        return settings.subset
    if name == "is":
        return 1 if settings.part else settings.splits
    return fixed


def frechet(generated: FeatureSet, reference: FeatureSet | None, settings: Settings) -> Values:
    ref = _given(reference)
    a, b = ref.features, generated.features
    if a is not None and b is not None and max(len(a), len(b)) <= a.shape[1]:
        return {"frechet": Value(value=frechet_from_features(a, b))}
    gaussian = generated.gaussian
    return {"frechet": Value(value=ref.gaussian.distance(gaussian.mean, gaussian.covariance))}


def infinity(generated: FeatureSet, reference: FeatureSet | None, settings: Settings) -> Values:
    found = fid_infinity(_given(reference).gaussian, generated.need("features"), settings.points, seed=settings.seed)
    detail = {"sizes": found.sizes.tolist(), "distances": found.distances.tolist(), "slope": found.slope}
    return {"fid_infinity": Value(value=found.value, detail=detail)}


def per_class(generated: FeatureSet, reference: FeatureSet | None, settings: Settings) -> Values:
    ref = _given(reference)
    found = per_class_frechet(ref.need("features"), ref.need("labels"), generated.need("features"), generated.need("labels"))
    detail = {"worst": found.worst, "distances": {str(c): value for c, value in found.distances.items()}}
    return {"per_class_fid": Value(value=found.mean, detail=detail)}


def kernel_distance(generated: FeatureSet, reference: FeatureSet | None, settings: Settings) -> Values:
    x, y = _given(reference).need("features"), generated.need("features")
    found = kid(x, y, settings.subsets, settings.subset, settings.seed, device=settings.device)
    stderr, detail = None, {}
    if settings.draws > 1:
        part = x[:KID_IMAGES], y[:KID_IMAGES]
        draws = kid_bootstrap(*part, draws=settings.draws, seed=settings.seed, device=settings.device)
        stderr = summarise_draws(found.mean, draws).stderr
        detail = {"of_all": kid_of_all(*part, device=settings.device), "bootstrap_images": [len(part[0]), len(part[1])]}
    spread_of = f"{settings.subsets} subsets"
    return {"kid": Value(value=found.mean, spread=found.std, spread_of=spread_of, stderr=stderr, detail=detail)}


def classifier_score(generated: FeatureSet, reference: FeatureSet | None, settings: Settings) -> Values:
    found = inception_score(generated.need("logits"), settings.splits, settings.part, settings.shuffle)
    spread_of = f"parts of {settings.part}" if settings.part else f"{settings.splits} splits"
    return {"is": Value(value=found.mean, spread=found.std, spread_of=spread_of)}


def near(generated: FeatureSet, reference: FeatureSet | None, settings: Settings) -> Values:
    real = _given(reference).need("features")
    found = membership(
        real, generated.need("features"), settings.k, settings.rim == "<=", DTYPES[settings.distances], settings.device
    )
    scores = found.scores()
    errors: dict[str, float] = {}
    if settings.draws > 1:
        errors = {
            "precision": bootstrap_mean(found.held > 0, settings.draws, settings.seed).stderr,
            "recall": bootstrap_mean(found.recalled, settings.draws, settings.seed).stderr,
        }
    return {name: Value(value=value, stderr=errors.get(name)) for name, value in scores._asdict().items()}


def text_fit(generated: FeatureSet, reference: FeatureSet | None, settings: Settings) -> Values:
    images, texts = generated.need("features"), generated.need("texts")
    value = clip_score(images, texts, settings.convention)
    stderr = None
    if settings.draws > 1 and generated.n > 1:
        each = cosines(images, texts)
        scale = {"cosine": 1.0, "percent": 100.0, "clipscore": 2.5}[settings.convention]
        cut = each.clip(min=0) if settings.convention == "clipscore" else each
        stderr = bootstrap_mean(scale * cut, settings.draws, settings.seed).stderr
    return {"clip_score": Value(value=value, stderr=stderr)}


def clip_discrepancy(generated: FeatureSet, reference: FeatureSet | None, settings: Settings) -> Values:
    return {"cmmd": Value(value=cmmd(_given(reference).need("features"), generated.need("features"), device=settings.device))}


def sliced(generated: FeatureSet, reference: FeatureSet | None, settings: Settings) -> Values:
    x, y = _given(reference).need("features"), generated.need("features")
    return {"mind": Value(value=mind(x, y, settings.projections, settings.seed, settings.device))}


def diversity_of_features(generated: FeatureSet, reference: FeatureSet | None, settings: Settings) -> Values:
    return {"vendi": Value(value=vendi_score(generated.need("features")))}


def memorisation(generated: FeatureSet, reference: FeatureSet | None, settings: Settings) -> Values:
    dtype = DTYPES[settings.distances] or torch.float64
    found = authentic(_given(reference).need("features"), generated.need("features"), dtype, settings.device)
    return {"authenticity": Value(value=100 * float(found.mean()))}


def diversity_of_images(generated: FeatureSet, reference: FeatureSet | None, settings: Settings) -> Values:
    images, distance = generated.need("images"), generated.need("distance")
    found = diversity(images, distance, settings.pairs, generated.labels, settings.seed)
    spread_of = f"{found.pairs} pairs" if generated.labels is None else "the classes"
    within = {"pairs_within": "the set" if generated.labels is None else "each class"}
    detail: dict[str, Any] = {"pairs": found.pairs}
    value = Value(value=found.mean, spread=found.std, spread_of=spread_of, detail=detail, protocol=within)
    return {"lpips_diversity": value}


def trained_classifier(generated: FeatureSet, reference: FeatureSet | None, settings: Settings) -> Values:
    real = _given(reference)
    found = classifier_accuracy(
        (generated.need("images"), generated.need("labels")),
        (real.need("images"), real.need("labels")),
        settings.steps,
        settings.seed,
    )
    stderr = bootstrap_mean(found.right, settings.draws, settings.seed).stderr if settings.draws > 1 else None
    detail = {"by_class": {str(label): share for label, share in found.by_class.items()}}
    return {"cas": Value(value=found.value, stderr=stderr, detail=detail)}


def _given(reference: FeatureSet | None) -> FeatureSet:
    assert reference is not None, "a metric with a reference is only computed with one"
    return reference
