"""Metrics where the answer is known, properties that must hold, and input that they must refuse."""

from __future__ import annotations

from itertools import combinations, pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.authenticity import authenticity
from pagoda_bench.metrics.clip_score import clip_score
from pagoda_bench.metrics.diversity import _pair, diversity
from pagoda_bench.metrics.fid_infinity import fid_infinity
from pagoda_bench.metrics.frechet import Gaussian, frechet_distance, frechet_from_features
from pagoda_bench.metrics.inception_score import inception_score
from pagoda_bench.metrics.kid import kid, kid_bootstrap, kid_of_all
from pagoda_bench.metrics.mind import mind
from pagoda_bench.metrics.mmd import cmmd, cubic, mmd
from pagoda_bench.metrics.moments import Moments, moments
from pagoda_bench.metrics.neighbours import Points, membership, neighbours
from pagoda_bench.metrics.per_class import per_class_frechet
from pagoda_bench.metrics.vendi import vendi_score

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("ranks", [(12, 12), (12, 5), (5, 12), (4, 6)])
def test_frechet_of_gaussians_with_a_common_basis(ranks: tuple[int, int]) -> None:
    """|m1 - m2|^2 + sum (sqrt l1 - sqrt l2)^2, where both, one or neither covariance has full rank."""
    basis = np.linalg.qr(RNG.normal(size=(12, 12)))[0]
    (l1, l2), (m1, m2) = RNG.uniform(0.5, 3, (2, 12)), RNG.normal(size=(2, 12))
    l1[ranks[0] :], l2[ranks[1] :] = 0, 0
    expected = ((m1 - m2) ** 2).sum() + ((np.sqrt(l1) - np.sqrt(l2)) ** 2).sum()
    reference = Gaussian(m1, basis * l1 @ basis.T)
    rel = 1e-10 if ranks == (12, 12) else 1e-6
    for _ in range(2):  # what the reference keeps may not change the second answer
        assert reference.distance(m2, basis * l2 @ basis.T) == pytest.approx(expected, rel=rel)
    assert frechet_distance(m2, basis * l2 @ basis.T, m1, basis * l1 @ basis.T) == pytest.approx(expected, rel=rel)


def test_frechet_of_scaled_identities_in_many_dimensions() -> None:
    d = 300
    found = frechet_distance(np.zeros(d), 4 * np.eye(d), np.ones(d), np.eye(d))
    assert found == pytest.approx(d + d, rel=1e-12)


@settings(max_examples=40)
@given(
    cuts=st.lists(st.integers(0, 5000), max_size=8),
    batch=st.integers(1, 2000),
    shift=st.sampled_from([0.0, 3.0, 1e5]),
    seed=st.integers(0, 10**6),
)
def test_moments_do_not_depend_on_the_workers(cuts: list[int], batch: int, shift: float, seed: int) -> None:
    """Parts of any lengths, in batches of any size: every entry as one pass over all images gives it, to 1e-12 of itself.

    Columns are uncorrelated, so most covariances are small differences of large sums.
    """
    x = np.random.default_rng(seed).normal(size=(5000, 6)) * np.logspace(-2, 1, 6) + shift
    whole = moments([x], 6)
    bounds = [0, *sorted(cuts), 5000]
    merged = Moments(6)
    for a, b in pairwise(bounds):
        part = Moments(6, start=a)
        for start in range(a, b, batch):
            part.add(x[start : min(start + batch, b)])
        merged.merge(part)  # one without images changes nothing
    assert merged.n == 5000
    np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, whole.covariance, rtol=1e-12)
    np.testing.assert_allclose(merged.covariance, merged.covariance.T, rtol=1e-15)


@pytest.mark.parametrize("shift", [0.0, 1e4])
def test_moments_equal_those_in_more_digits(shift: float) -> None:
    """Against sums in long double, of images that were dealt to workers in no order."""
    x = RNG.normal(size=(1200, 20)) * np.logspace(-2, 1, 20) + shift
    parts = [Moments(20) for _ in range(3)]
    for i, start in enumerate(range(0, 1200, 48)):
        parts[i % 3].add(x[start : start + 48])
    merged = Moments(20)
    for part in parts:
        merged.merge(part)
    wide = x.astype(np.longdouble)
    mean = wide.mean(0)
    covariance = (wide - mean).T @ (wide - mean) / 1199
    scale = np.sqrt(np.outer(np.diag(covariance), np.diag(covariance)))
    np.testing.assert_allclose(merged.mean, mean.astype(float), rtol=1e-13, atol=1e-16)
    assert (np.abs(merged.covariance - covariance) <= (1e-13 if not shift else 1e-10) * scale).all()


def test_moments_can_be_written_down_and_put_back() -> None:
    whole, first = Moments(4), Moments(4)
    x = RNG.normal(size=(90, 4)) + 5
    whole.add(x)
    first.add(x[:50])
    again = Moments.of(first.n, first.mean, first.covariance)
    again.add(x[50:])
    assert again.n == 90
    np.testing.assert_allclose(again.covariance, whole.covariance, rtol=1e-12)
    np.testing.assert_allclose(again.scatter, 89 * whole.covariance, rtol=1e-12)
    np.testing.assert_allclose(first.covariance, np.cov(x[:50], rowvar=False), rtol=1e-12)  # not changed by its copies


def test_kid_of_equal_distributions_is_centred_on_zero() -> None:
    rng = np.random.default_rng(7)
    values = [kid_of_all(*rng.normal(size=(2, 60, 8))) for _ in range(60)]
    assert abs(np.mean(values)) < 4 * np.std(values) / 60**0.5
    assert min(values) < 0 < max(values)


def test_kid_by_hand_and_from_one_whole_subset() -> None:
    """On a line, k(x, y) = (xy + 1)^3: three points against two."""
    x, y = np.array([[0.0], [1], [2]]), np.array([[1.0], [3]])
    k = lambda a, b: (a * b + 1) ** 3  # noqa: E731
    expected = (2 * (k(0, 1) + k(0, 2) + k(1, 2))) / 6 + k(1, 3) - 2 * np.mean([k(a, b) for a in (0, 1, 2) for b in (1, 3)])
    assert kid_of_all(x, y) == pytest.approx(expected, rel=1e-12)
    both = RNG.normal(size=(2, 40, 5))
    assert kid(*both, subsets=3, size=40) == pytest.approx((kid_of_all(*both), 0), rel=1e-9, abs=1e-12)


def test_weighted_pairs_leave_copies_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights (2, 1, 0, ...) are the set with its first image twice, less the pairs of that image with its copy."""
    monkeypatch.setattr("pagoda_bench.metrics.mmd.TILE", 3)
    x, y = RNG.normal(size=(7, 4)), RNG.normal(size=(5, 4))
    weights = np.array([[2.0, 1, 0, 0, 1, 0, 3], [1, 1, 1, 1, 1, 1, 1]]), np.array([[1.0, 0, 2, 1, 1], [1, 1, 1, 1, 1]])
    kernel = lambda a, b: (a @ b.T / 4 + 1) ** 3  # noqa: E731

    def within(points: np.ndarray, w: np.ndarray) -> float:
        pairs = np.outer(w, w) * (1 - np.eye(len(w)))
        return float((pairs * kernel(points, points)).sum() / pairs.sum())

    for row, found in enumerate(mmd(x, y, cubic, unbiased=True, weights=weights)):
        w, v = weights[0][row], weights[1][row]
        between = (np.outer(w, v) * kernel(x, y)).sum() / (w.sum() * v.sum())
        assert found == pytest.approx(within(x, w) + within(y, v) - 2 * between, rel=1e-10)


def test_kid_bootstrap_is_centred_and_as_wide_as_fresh_samples() -> None:
    rng = np.random.default_rng(5)
    draw = lambda: (rng.normal(size=(80, 6)), rng.normal(size=(80, 6)) + 0.7)  # noqa: E731
    real, generated = draw()
    draws = kid_bootstrap(real, generated, draws=300)
    assert abs(draws.mean() - kid_of_all(real, generated)) < 0.35 * draws.std()
    fresh = np.std([kid_of_all(*draw()) for _ in range(60)])
    assert 0.6 < draws.std() / fresh < 1.6
    np.testing.assert_array_equal(draws, kid_bootstrap(real, generated, draws=300))


def test_cmmd_of_equal_and_of_opposite_sets() -> None:
    x = np.eye(6)[:1].repeat(4, axis=0)
    assert cmmd(x, 3 * x) == pytest.approx(0, abs=1e-9)  # only directions count
    assert cmmd(x, -x) == pytest.approx(1000 * (2 - 2 * np.exp(-4 / 200)), rel=1e-10)


def test_vendi_of_orthogonal_and_of_equal_images() -> None:
    assert vendi_score(np.eye(9)[:5] * 7) == pytest.approx(5, rel=1e-12)
    assert vendi_score(np.eye(5).repeat(4, axis=0)) == pytest.approx(5, rel=1e-12)  # more images than dimensions
    assert vendi_score(np.ones((6, 3))) == pytest.approx(1)
    x = np.eye(3)[[0, 0, 0, 1]]
    p = np.array([0.75, 0.25])
    assert vendi_score(x) == pytest.approx(np.exp(-(p * np.log(p)).sum()))
    assert vendi_score(x, order=2) == pytest.approx(1 / (p**2).sum())
    assert vendi_score(x, order=np.inf) == pytest.approx(4 / 3)


def test_mind_of_a_shift_is_its_square() -> None:
    """The mean over directions of 3 d (u.s)^2 is 3 |s|^2; of a set with itself 0."""
    x, shift = RNG.normal(size=(50, 16)), RNG.normal(size=16)
    assert mind(x, x[::-1]) == pytest.approx(0, abs=1e-20)
    assert mind(x, x + shift, projections=4000) == pytest.approx(3 * (shift**2).sum(), rel=0.1)


def test_clip_score_conventions() -> None:
    images, texts = np.array([[3.0, 0], [0, 2], [1, 0]]), np.array([[1.0, 0], [0, -5], [1, 1]])
    mean = (1 - 1 + 0.5**0.5) / 3
    assert clip_score(images, texts, "cosine") == pytest.approx(mean)
    assert clip_score(images, texts) == pytest.approx(100 * mean)
    assert clip_score(images, texts, "clipscore") == pytest.approx(2.5 * (1 + 0.5**0.5) / 3)
    assert clip_score(images, -texts) == 0
    assert clip_score(images, -texts, "cosine") == pytest.approx(-mean)


def pixels(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.astype(float) - b).mean(axis=(1, 2, 3))


def test_diversity_of_few_images_is_over_all_pairs() -> None:
    values = np.array([0, 10, 40, 100])
    images = np.zeros((4, 2, 2, 3), np.uint8) + values[:, None, None, None].astype(np.uint8)
    apart = [abs(a - b) for a, b in combinations(values.tolist(), 2)]
    assert diversity(images, pixels, batch=4) == pytest.approx((np.mean(apart), np.std(apart), 6))
    by_class = diversity(images, pixels, labels=np.array([0, 0, 1, 1]))
    assert by_class == pytest.approx((35, 25, 2))
    some = diversity(images.repeat(20, axis=0), pixels, pairs=50, seed=1)
    assert some.pairs == 50
    assert some == diversity(images.repeat(20, axis=0), pixels, pairs=50, seed=1, batch=7)


def test_every_number_is_a_pair_of_its_own() -> None:
    i, j = _pair(np.arange(45))
    assert list(zip(i.tolist(), j.tolist(), strict=True)) == [(a, b) for a in range(10) for b in range(a)]
    last = np.array([(10**5 * (10**5 - 1)) // 2 - 1])
    assert [int(v[0]) for v in _pair(last)] == [10**5 - 1, 10**5 - 2]


def test_per_class_frechet_is_that_of_each_class() -> None:
    real, generated = RNG.normal(size=(40, 3)), RNG.normal(size=(30, 3)) + 1
    a, b = np.arange(40) % 2, np.arange(30) % 2
    found = per_class_frechet(real, a, generated, b)
    assert found.distances == {c: frechet_from_features(real[a == c], generated[b == c]) for c in (0, 1)}
    assert found.mean == pytest.approx(np.mean(list(found.distances.values())))
    assert found.distances[found.worst] == max(found.distances.values())


def test_authenticity_of_copies_and_of_new_images() -> None:
    train = RNG.normal(size=(30, 6))
    assert authenticity(train, train) == 0
    assert authenticity(train, train + 100) == 100


@settings(max_examples=10)
@given(seed=st.integers(0, 10**6), n=st.integers(6, 30), m=st.integers(6, 30))
def test_tiles_do_not_change_neighbours(seed: int, n: int, m: int) -> None:
    rng = np.random.default_rng(seed)
    real, generated = rng.normal(size=(n, 3)), rng.normal(size=(m, 3))
    whole = membership(real, generated, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pagoda_bench.metrics.neighbours.BLOCK_BYTES", 8 * 4**2)
        tiled = membership(real, generated, 3)
    for a, b in zip(whole, tiled, strict=True):
        np.testing.assert_array_equal(a, b)
    assert whole.scores() == neighbours(real, generated, 3)


def test_tight_clusters_far_out_are_measured_in_float64() -> None:
    """Two clusters far apart: centring does not help, and float32 takes one neighbour for another."""
    rng = np.random.default_rng(1)
    offset = np.where(np.arange(80)[:, None] % 2, 300.0, -300.0)
    real, generated = (rng.normal(size=(80, 8)) * 1e-2 + offset for _ in range(2))
    right, wrong = (neighbours(real, generated, 3, dtype=dtype) for dtype in (torch.float64, torch.float32))
    assert neighbours(real, generated, 3, dtype=None) == right
    assert wrong != right
    centre = real.mean(0)
    points = Points(real, centre, torch.float32, "cpu")
    assert not points.spread(points.radii(3))


def test_memory_mapped_features_need_no_copy_of_the_user(tmp_path: Any) -> None:
    real, generated = RNG.normal(size=(2, 50, 4)).astype(np.float32)
    np.save(tmp_path / "real.npy", real)
    mapped = np.load(tmp_path / "real.npy", mmap_mode="r")
    assert neighbours(mapped, generated) == neighbours(real, generated)
    assert authenticity(mapped, generated) == authenticity(real, generated)
    assert kid_of_all(mapped, generated) == kid_of_all(real, generated)


TWO, NAN = np.ones((2, 3)), np.array([[0.0, 1], [np.nan, 1]])
IMAGES = np.zeros((4, 2, 2, 3), np.uint8)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: kid(TWO, TWO, size=3), "2 generated images cannot give subsets of 3"),
        (lambda: kid(TWO, TWO, size=1), "at least one subset of two"),
        (lambda: kid_of_all(TWO[:1], TWO), "1 images are too few"),
        (lambda: cmmd(TWO, NAN), "first is image 1"),
        (lambda: cmmd(TWO, 0 * TWO), "an embedding is all 0"),
        (lambda: mind(TWO, np.ones((2, 4))), "3 and 4 feature dimensions"),
        (lambda: mind(TWO, TWO, projections=0), "at least one projection"),
        (lambda: vendi_score(np.zeros((2, 3))), "all 0 and have no direction"),
        (lambda: vendi_score(TWO, order=0), "above 0"),
        (lambda: authenticity(TWO[:1], TWO), "1 images are too few"),
        (lambda: clip_score(TWO, np.ones((3, 3))), "2 images and 3 texts"),
        (lambda: clip_score(TWO, TWO, "clip"), "did you mean 'clipscore'"),
        (lambda: clip_score(TWO, 0 * TWO), "an embedding is all 0"),
        (lambda: diversity(IMAGES[:1], pixels), "make no pair"),
        (lambda: diversity(IMAGES, pixels, labels=np.array([0, 0, 0, 1])), "of class 1 make no pair"),
        (lambda: diversity(IMAGES, pixels, labels=np.zeros(3, int)), "4 images and 3 labels"),
        (lambda: diversity(IMAGES, lambda a, b: np.full(len(a), np.nan)), "one finite value a pair"),
        (lambda: diversity(IMAGES, pixels, pairs=0), "at least one pair"),
        (
            lambda: per_class_frechet(TWO, np.zeros(2, int), TWO, np.ones(2, int)),
            "1 of 2 classes have less than 2 real images, the first is class 1 with 0",
        ),
        (lambda: per_class_frechet(TWO, np.zeros(3, int), TWO, np.zeros(2, int)), "one label each"),
        (lambda: fid_infinity(Gaussian(np.zeros(3), np.eye(3)), TWO), "at least 3"),
        (lambda: inception_score(TWO, splits=0), "at least 1"),
        (lambda: Moments.of(1, np.zeros(2), np.eye(2)), "at least 2 images"),
        (lambda: Moments.of(5, np.zeros(3), np.eye(2)), "does not fit"),
    ],
)
def test_bad_input_is_one_line(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)
