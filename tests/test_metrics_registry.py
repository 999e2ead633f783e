"""The table of metrics: complete, true to its functions, and honest about N."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.frechet import Moments, frechet_from_features
from pagoda_bench.metrics.inception_score import inception_score
from pagoda_bench.metrics.neighbours import neighbours
from pagoda_bench.metrics.registry import METRICS, PROTOCOLS, FeatureSet, Settings, compute, compute_blocks, metric

SETTINGS = Settings(subset=40, subsets=4, projections=50, pairs=30, draws=20, steps=40, distances="float64")


def images(seed: int, shift: float = 0.0, n: int = 60, d: int = 5) -> FeatureSet:
    """Classes have a grey of their own, which a large shift turns into that of another class."""
    rng = np.random.default_rng(seed)
    greys = (np.arange(n) % 3 * 85 + shift * 85 / 4) % 256
    return FeatureSet(
        features=(rng.normal(size=(n, d)) + shift).astype(np.float32),
        logits=rng.normal(size=(n, 4)).astype(np.float32),
        texts=rng.normal(size=(n, d)).astype(np.float32),
        labels=np.arange(n) % 3,
        images=np.clip(greys[:, None, None, None] + rng.normal(0, 8, (n, 8, 8, 3)), 0, 255).astype(np.uint8),
        distance=lambda a, b: np.abs(a.astype(float) - b).mean(axis=(1, 2, 3)),
    )


REAL, GENERATED = images(0), images(1, 0.3)


def test_all_metrics_come_out_of_one_call_within_their_ranges() -> None:
    found = compute(list(METRICS), GENERATED, REAL, SETTINGS)
    assert list(found) == list(METRICS)
    for name, value in found.items():
        line = METRICS[name]
        assert math.isfinite(value.value), name
        assert line.low <= value.value <= line.high, name
        assert (value.stderr is not None) == bool(line.bootstrap), name
        assert any("published values use" in mark for mark in value.marks), name


@pytest.mark.parametrize("line", METRICS.values(), ids=list(METRICS))
def test_every_line_says_what_a_reader_needs(line: object) -> None:
    assert isinstance(line, type(METRICS["fid"]))
    assert line.better in ("lower", "higher")
    assert any(year in line.paper for year in map(str, range(2016, 2027)))
    assert line.low < line.high
    assert line.least <= line.published
    for need in {*line.generated, *line.reference}:
        assert set(need.split("|")) <= set(FeatureSet.__dataclass_fields__)


@pytest.mark.parametrize("name", [name for name, line in METRICS.items() if line.reference])
def test_the_direction_is_true(name: str) -> None:
    """Samples of the same distribution are better than samples of another one. Authenticity is about copies instead."""
    if name == "authenticity":
        near, far = (compute([name], s, REAL, SETTINGS)[name].value for s in (GENERATED, REAL))
    else:
        near, far = (compute([name], s, REAL, SETTINGS)[name].value for s in (images(2), images(3, 4.0)))
    assert (near > far) == METRICS[name].larger_is_better
    assert near != far


def test_values_are_those_of_the_functions() -> None:
    assert GENERATED.features is not None
    assert REAL.features is not None
    assert GENERATED.logits is not None
    found = compute(["fid", "density", "is"], GENERATED, REAL, Settings(k=4, rim="<", part=25, distances="float64"))
    assert found["fid"].value == pytest.approx(frechet_from_features(REAL.features, GENERATED.features))
    assert found["density"].value == neighbours(REAL.features, GENERATED.features, 4, inclusive=False).density
    assert found["is"].value == inception_score(GENERATED.logits, part=25).mean


def test_moments_are_enough_for_a_distance_and_nothing_else() -> None:
    assert REAL.features is not None
    kept = Moments(5)
    kept.add(REAL.features)
    statistics = FeatureSet(moments=kept)
    whole = compute(["fid", "fid_infinity"], GENERATED, REAL, SETTINGS)
    found = compute(["fid", "fid_infinity"], GENERATED, statistics, SETTINGS)
    assert found["fid"].value == pytest.approx(whole["fid"].value, rel=1e-10)
    assert found["fid_infinity"].value == pytest.approx(whole["fid_infinity"].value, rel=1e-8)
    with pytest.raises(UserError, match="kid: the reference lack 'features'"):
        compute(["fid", "kid"], GENERATED, statistics, SETTINGS)
    with pytest.raises(UserError, match="keep the features"):
        statistics.parts(2)


def test_what_two_metrics_share_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*arguments: object, **named: object) -> object:
        calls.append(1)
        return original(*arguments, **named)  # type: ignore[arg-type]

    from pagoda_bench.metrics import computations

    original = computations.membership
    monkeypatch.setattr(computations, "membership", counted)
    compute(["precision", "coverage", "recall", "density"], GENERATED, REAL, SETTINGS)
    assert len(calls) == 1


def test_blocks_are_scored_apart() -> None:
    found = compute_blocks(["fid", "precision", "kid"], GENERATED.parts(3), REAL, Settings(subset=20, subsets=2))
    each = [compute(["fid"], part, REAL)["fid"].value for part in GENERATED.parts(3)]
    assert found["fid"].mean == pytest.approx(np.mean(each))
    assert found["fid"].minimum == min(each)
    assert found["fid"].stderr == pytest.approx(np.std(each, ddof=1) / 3**0.5)
    assert found["kid"].blocks == 3


@pytest.mark.parametrize(
    ("name", "generated", "reference", "message"),
    [
        ("fidd", GENERATED, REAL, "did you mean 'fid'"),
        ("fid", GENERATED, None, "give a reference"),
        ("kid", images(0, n=39), REAL, "39 images of the samples are too few, it needs at least 40"),
        ("precision", GENERATED, images(0, n=3), "3 images of the reference are too few, it needs at least 4"),
        ("is", FeatureSet(features=np.zeros((60, 3))), None, "the samples lack 'logits'"),
        ("clip_score", FeatureSet(features=np.zeros((60, 3))), None, "the samples lack 'texts'"),
    ],
)
def test_what_does_not_suffice_is_said_first(
    name: str, generated: FeatureSet, reference: FeatureSet | None, message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        compute([name], generated, reference, SETTINGS)
    assert "\n" not in str(caught.value)


def test_sets_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(UserError, match="4 features, 3 labels: they must be as many"):
        FeatureSet(features=np.zeros((4, 2)), labels=np.zeros(3, int))
    with pytest.raises(UserError, match="needs features, moments"):
        FeatureSet()


def test_protocols_of_the_field_have_their_conventions() -> None:
    assert (PROTOCOLS["adm"].k, PROTOCOLS["adm"].rim, PROTOCOLS["adm"].part) == (3, "<=", 5000)
    assert (PROTOCOLS["torch-fidelity"].splits, PROTOCOLS["torch-fidelity"].shuffle) == (10, 2020)
    assert (PROTOCOLS["prdc"].k, PROTOCOLS["prdc"].rim) == (5, "<")
    assert (Settings().subsets, Settings().subset, Settings().seed) == (100, 1000, 2020)
    assert metric("fid").extractor == "inception"
