"""Metrics against closed forms, naive oracles and the libraries of the field."""

from __future__ import annotations

import contextlib
import io
import warnings
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from prdc import compute_prdc

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.frechet import Moments, frechet_distance, frechet_from_features, moments
from pagoda_bench.metrics.inception_score import inception_score
from pagoda_bench.metrics.neighbours import neighbours
from pagoda_bench.metrics.protocol import Protocol, differences


def features(n: int, d: int, seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) * 0.3 + shift).astype(np.float32)


def sqrtm_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The textbook formula with a matrix square root in float64."""
    x, y = a.astype(np.float64), b.astype(np.float64)
    s1, s2 = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a singular product is part of the test
        root = scipy.linalg.sqrtm(s1 @ s2)
    return float(((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s1 + s2 - 2 * np.real(root)))


def from_moments(a: np.ndarray, b: np.ndarray) -> float:
    x, y = moments([a], a.shape[1]), moments([b], b.shape[1])
    return frechet_distance(x.mean, x.covariance, y.mean, y.covariance)


@pytest.mark.parametrize(
    ("n", "m", "d", "rel"), [(600, 400, 64, 1e-8), (150, 900, 128, 1e-8), (40, 50, 64, 1e-6), (30, 600, 64, 1e-6)]
)
def test_frechet_equals_sqrtm(n: int, m: int, d: int, rel: float) -> None:
    a, b = features(n, d, 0), features(m, d, 1, shift=0.5)
    expected = sqrtm_distance(a, b)
    assert from_moments(a, b) == pytest.approx(expected, rel=rel)
    assert frechet_from_features(a, b) == pytest.approx(expected, rel=rel)
    assert frechet_from_features(b, a) == pytest.approx(expected, rel=rel)


def test_frechet_of_commuting_gaussians_is_closed() -> None:
    """With a common eigenbasis: |m1 - m2|^2 + sum (sqrt l1 - sqrt l2)^2."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    m1, m2, l1, l2 = rng.normal(size=20), rng.normal(size=20), rng.uniform(0, 3, 20), rng.uniform(0, 3, 20)
    l1[:5] = 0  # rank-deficient on one side
    found = frechet_distance(m1, basis * l1 @ basis.T, m2, basis * l2 @ basis.T)
    assert found == pytest.approx(((m1 - m2) ** 2).sum() + ((np.sqrt(l1) - np.sqrt(l2)) ** 2).sum(), rel=1e-10)


@pytest.mark.parametrize("decay", [0.0, 0.05, 0.5])
@pytest.mark.parametrize("shape", [(30, 40, 64), (40, 30, 64), (2, 2, 3)])
def test_few_images_have_exact_distances_whatever_the_spectrum(decay: float, shape: tuple[int, int, int]) -> None:
    """Against the eigenvalues of one covariance in the basis of the other; from flat to a spectrum beyond float64."""
    n, m, d = shape
    rng = np.random.default_rng(0)
    scale = np.exp(-decay * np.arange(d))
    a, b = rng.normal(size=(n, d)) * scale, rng.normal(size=(m, d)) * scale + 0.1 * scale
    found = frechet_from_features(a, b)
    assert found == pytest.approx(from_moments(a, b), rel=1e-7)
    x, y = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (a, b))
    cross = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + (x**2).sum() + (y**2).sum() - 2 * cross
    assert found == pytest.approx(expected, rel=1e-9)
    assert frechet_from_features(a, a) == pytest.approx(0, abs=1e-10 * (x**2).sum())


def test_frechet_of_a_shift_and_a_scale() -> None:
    a = features(50, 64, 0)
    assert frechet_from_features(a, a) == pytest.approx(0, abs=1e-9)
    assert frechet_from_features(a, a + np.float32(0.25)) == pytest.approx(64 * 0.25**2, rel=1e-4)
    spread = a.astype(np.float64).var(axis=0, ddof=1).sum()
    centred = a - a.mean(0)
    assert frechet_from_features(centred, 3 * centred) == pytest.approx(4 * spread, rel=1e-4)


@settings(deadline=None, max_examples=30)
@given(cuts=st.lists(st.integers(1, 199), max_size=6), workers=st.integers(1, 4), shift=st.sampled_from([0.0, 1e4]))
def test_moments_stream_and_merge_to_what_numpy_says(cuts: list[int], workers: int, shift: float) -> None:
    x = features(200, 12, 3).astype(np.float64) + shift
    bounds = sorted({0, 200, *cuts})
    parts = [Moments(12) for _ in range(workers)]
    for i, (a, b) in enumerate(pairwise(bounds)):
        parts[i % workers].add(x[a:b])
    whole = Moments(12)
    for part in parts:  # a worker without images changes nothing
        whole.merge(part)
    assert whole.n == 200
    np.testing.assert_allclose(whole.mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(whole.covariance, np.cov(x, rowvar=False), rtol=1e-12 if not shift else 1e-9, atol=1e-13)


def naive(real: np.ndarray, generated: np.ndarray, k: int, inclusive: bool) -> tuple[float, float, float, float]:
    """The definitions, one distance at a time."""

    def dist(a: np.ndarray, b: np.ndarray) -> float:
        return float(((a - b) ** 2).sum())

    def inside(distance: float, radius: float) -> bool:
        return distance <= radius if inclusive else distance < radius

    def radii(x: np.ndarray) -> list[float]:
        return [sorted(dist(a, b) for j, b in enumerate(x) if j != i)[k - 1] for i, a in enumerate(x)]

    r, g = radii(real), radii(generated)
    held = [sum(inside(dist(x, y), r[i]) for i, x in enumerate(real)) for y in generated]
    recalled = [any(inside(dist(x, y), g[j]) for j, y in enumerate(generated)) for x in real]
    covered = [any(inside(dist(x, y), r[i]) for y in generated) for i, x in enumerate(real)]
    return float(np.mean([h > 0 for h in held])), float(np.mean(recalled)), float(np.mean(held)) / k, float(np.mean(covered))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6), n=st.integers(5, 14), m=st.integers(5, 14), k=st.integers(1, 4), inclusive=st.booleans())
def test_neighbours_equal_the_definitions(seed: int, n: int, m: int, k: int, inclusive: bool) -> None:
    """Points on a small integer grid: many distances are equal and many points coincide, so the rim counts."""
    rng = np.random.default_rng(seed)
    # The mean of the real points is subtracted: 0 by symmetry, so all distances stay exact integers.
    half = rng.integers(-2, 3, size=(n, 2)).astype(np.float64)
    real, generated = np.concatenate([half, -half]), rng.integers(-2, 3, size=(m, 2)).astype(np.float64)
    assert neighbours(real, generated, k, inclusive) == pytest.approx(naive(real, generated, k, inclusive), abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbours_equal_prdc(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagoda_bench.metrics.neighbours.BLOCK_BYTES", 4096)  # many blocks, the last one short
    real, generated = features(211, 16, 0, shift=20), features(157, 16, 0, shift=20.2)
    with contextlib.redirect_stdout(io.StringIO()):
        expected = compute_prdc(real.astype(np.float64), generated.astype(np.float64), nearest_k=5)
    found = neighbours(real, generated, k=5, inclusive=False, dtype=dtype)
    assert found._asdict() == pytest.approx(expected, abs=1e-9)
    assert 0 < found.coverage < 1


def test_neighbours_of_equal_and_of_distant_sets() -> None:
    real = features(60, 8, 0)
    same = neighbours(real, real)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1)
    assert neighbours(real, real + 100) == (0, 0, 0, 0)
    collapsed = neighbours(real, real[:6].repeat(10, axis=0))
    assert collapsed.precision == 1
    assert collapsed.recall < 0.5


def test_inception_score_closed_forms() -> None:
    sure = np.eye(10)[np.arange(100) % 10] * 1e4
    assert inception_score(sure, 10) == pytest.approx((10, 0))
    assert inception_score(np.zeros((100, 10)), 10) == pytest.approx((1, 0))
    assert inception_score(sure[np.zeros(100, int)], 1).mean == pytest.approx(1)
    two = np.eye(10)[np.arange(100) % 2] * 1e4  # two classes only
    assert inception_score(two, 1).mean == pytest.approx(2)


@given(seed=st.integers(0, 10**6), splits=st.integers(1, 7))
def test_inception_score_equals_the_plain_formula(seed: int, splits: int) -> None:
    logits = np.random.default_rng(seed).normal(size=(53, 6)) * 3
    p = scipy.special.softmax(logits, axis=1)
    scores = []
    for i in range(splits):
        part = p[i * 53 // splits : (i + 1) * 53 // splits]
        scores.append(np.exp((part * np.log(part / part.mean(0))).sum(1).mean()))
    found = inception_score(logits, splits)
    assert found == pytest.approx((np.mean(scores), np.std(scores)), rel=1e-12, abs=1e-12)
    assert inception_score(logits + 700, splits).mean == pytest.approx(found.mean)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((5, 3)), np.zeros((5, 4)), "3 and 4 feature dimensions"),
        (np.zeros((1, 3)), np.zeros((5, 3)), "1 images are too few"),
        (np.zeros((5, 3)), np.array([[0.0, 1, 2], [0, np.nan, 1], [1, 1, 1], [1, np.inf, 1], [2, 2, 2]]), "first is image 1"),
        (np.zeros(5), np.zeros(5), "not of shape"),
    ],
)
def test_bad_features_are_one_line(a: np.ndarray, b: np.ndarray, message: str) -> None:
    for metric in (frechet_from_features, neighbours):
        with pytest.raises(UserError, match=message) as caught:
            metric(a, b)
        assert "\n" not in str(caught.value)


def test_too_few_neighbours_and_images() -> None:
    with pytest.raises(UserError, match="needs at least 6"):
        neighbours(np.zeros((9, 2)), np.zeros((5, 2)), k=5)
    with pytest.raises(UserError, match="needs at least 10"):
        inception_score(np.zeros((9, 3)), 10)
    with pytest.raises(ValueError, match="at least 2 images"):
        _ = moments([np.zeros((1, 3))], 3).covariance


PROTOCOL = Protocol(
    extractor="feature network of embedded",
    weights="ab" * 32,
    resize="pixel repetition to 64",
    resolution=64,
    reference="0123",
    reference_n=1000,
    n=1000,
    labels="balanced over 10 classes",
    rounding="to nearest",
    frechet="eigenvalues, n - 1",
    k=3,
    rim="<=",
    splits=10,
)


def test_protocols_say_what_differs() -> None:
    other = PROTOCOL.model_copy(update={"n": 10_000, "labels": "uniform", "k": 5, "weights": "cd" * 32})
    assert differences(PROTOCOL, PROTOCOL) == []
    expected = ["extractor weights abababababab vs cdcdcdcdcdcd", "N 1,000 vs 10,000"]
    assert differences(PROTOCOL, other) == [
        *expected,
        "labels balanced over 10 classes vs uniform",
        "k of the neighbourhoods 3 vs 5",
    ]
    assert Protocol.load(PROTOCOL.to_dict()) == PROTOCOL


def test_a_metric_depends_on_its_part_of_the_protocol() -> None:
    other = PROTOCOL.model_copy(update={"k": 5, "splits": 1, "reference": "4567"})
    assert differences(PROTOCOL.of("fd"), other.of("fd")) == ["reference 0123 vs 4567"]
    assert differences(PROTOCOL.of("is"), other.of("is")) == ["splits 10 vs 1"]
    assert differences(PROTOCOL.of("recall"), other.of("recall")) == [
        "reference 0123 vs 4567",
        "k of the neighbourhoods 3 vs 5",
    ]
    assert differences(PROTOCOL, PROTOCOL.of("is")) == [
        "reference 0123 vs unset",
        "N of the reference 1,000 vs unset",
        "frechet eigenvalues, n - 1 vs unset",
        "k of the neighbourhoods 3 vs unset",
        "points on the rim <= vs unset",
    ]
