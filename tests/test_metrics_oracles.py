"""Metrics against the libraries and the published formulas that define their digits, on the same features."""

from __future__ import annotations

import importlib
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pagoda_bench.metrics.authenticity import authentic, authenticity
from pagoda_bench.metrics.fid_infinity import fid_infinity
from pagoda_bench.metrics.frechet import Gaussian, frechet_from_features, moments
from pagoda_bench.metrics.inception_score import inception_score
from pagoda_bench.metrics.kid import kid
from pagoda_bench.metrics.mind import mind
from pagoda_bench.metrics.mmd import cmmd
from pagoda_bench.metrics.neighbours import neighbours

Array = np.ndarray


def features(n: int, d: int, seed: int, shift: float = 0.0) -> Array:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, d)) * rng.uniform(0.2, 1, size=d) + shift).astype(np.float32)


REAL, GENERATED = features(230, 24, 0, 0.4), features(190, 24, 1, 0.55)


@pytest.fixture(scope="module")
def fidelity() -> SimpleNamespace:
    """The functions of torch-fidelity that take features."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        pytest.importorskip("torch_fidelity", reason="needs torch-fidelity: pip install 'pagoda-bench[eval]'")
        names = {name: importlib.import_module(f"torch_fidelity.metric_{name}") for name in ("fid", "kid", "isc", "prc")}
    return SimpleNamespace(**names)


def test_frechet_equals_torch_fidelity(fidelity: SimpleNamespace) -> None:
    a, b = (fidelity.fid.fid_features_to_statistics(torch.from_numpy(x.astype(np.float64))) for x in (REAL, GENERATED))
    expected = fidelity.fid.fid_statistics_to_metric(a, b, False)["frechet_inception_distance"]
    assert frechet_from_features(REAL, GENERATED) == pytest.approx(expected, rel=1e-8)


@pytest.mark.parametrize(("dtype", "rel"), [(np.float64, 1e-10), (np.float32, 1e-5)])
def test_kid_equals_torch_fidelity(fidelity: SimpleNamespace, dtype: type, rel: float) -> None:
    real, generated = REAL.astype(dtype), GENERATED.astype(dtype)
    options = {"kid_subsets": 12, "kid_subset_size": 100, "rng_seed": 2020, "verbose": False}
    expected = fidelity.kid.kid_features_to_metric(torch.from_numpy(generated), torch.from_numpy(real), **options)
    found = kid(real, generated, subsets=12, size=100)
    assert found.mean == pytest.approx(expected["kernel_inception_distance_mean"], rel=rel)
    assert found.std == pytest.approx(expected["kernel_inception_distance_std"], rel=max(rel, 1e-4))


@pytest.mark.parametrize("shuffle", [None, 2020])
def test_inception_score_equals_torch_fidelity(fidelity: SimpleNamespace, shuffle: int | None) -> None:
    logits = features(203, 17, 2) * 3
    expected = fidelity.isc.isc_features_to_metric(torch.from_numpy(logits), 10, shuffle is not None, 2020)
    found = inception_score(logits, 10, shuffle=shuffle)
    assert found.mean == pytest.approx(expected["inception_score_mean"], rel=1e-10)
    assert found.std == pytest.approx(expected["inception_score_std"], rel=1e-8)


@pytest.mark.parametrize("save_ram", [False, True])
def test_precision_and_recall_equal_torch_fidelity(fidelity: SimpleNamespace, save_ram: bool) -> None:
    options = {"prc_neighborhood": 3, "prc_batch_size": 64, "save_cpu_ram": save_ram, "verbose": False}
    expected = fidelity.prc.prc_features_to_metric(torch.from_numpy(GENERATED), torch.from_numpy(REAL), **options)
    for dtype in (torch.float32, torch.float64, None):
        found = neighbours(REAL, GENERATED, k=3, dtype=dtype)
        assert (found.precision, found.recall) == pytest.approx((expected["precision"], expected["recall"]), rel=1e-5)
    assert 0.05 < found.precision < 0.95


def adm_precision_recall(ref: Array, sample: Array, k: int = 3) -> tuple[float, float]:
    """The formula of ADM's evaluator: squared distances, the k-th after the point itself, rims inside."""

    def squared(u: Array, v: Array) -> Array:
        norms = (u**2).sum(1)[:, None] + (v**2).sum(1)[None]
        return np.maximum(norms - 2 * u @ v.T, 0)

    ref, sample = ref.astype(np.float64), sample.astype(np.float64)
    radii_ref = np.partition(squared(ref, ref), range(k + 1), axis=1)[:, k]
    radii_sample = np.partition(squared(sample, sample), range(k + 1), axis=1)[:, k]
    between = squared(ref, sample)
    return float((between <= radii_ref[:, None]).any(0).mean()), float((between <= radii_sample[None]).any(1).mean())


def adm_inception_score(logits: Array, size: int) -> float:
    """The formula of ADM's evaluator: the plain mean over parts of `size` images, the last one as it comes."""
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    parts = [p[i : i + size] for i in range(0, len(p), size)]
    return float(np.mean([np.exp((q * (np.log(q) - np.log(q.mean(0)))).sum(1).mean()) for q in parts]))


def test_the_adm_protocol_equals_its_formula() -> None:
    found = neighbours(REAL, GENERATED, k=3)
    assert (found.precision, found.recall) == pytest.approx(adm_precision_recall(REAL, GENERATED), abs=1e-12)
    logits = features(130, 9, 3)
    for size in (50, 65, 5000):  # a short last part, none, and fewer images than one part
        assert inception_score(logits, part=size).mean == pytest.approx(adm_inception_score(logits, size), rel=1e-12)


def test_cmmd_equals_its_formula() -> None:
    x, y = (f.astype(np.float64) / np.linalg.norm(f.astype(np.float64), axis=1, keepdims=True) for f in (REAL, GENERATED))

    def mean(a: Array, b: Array) -> float:
        return float(np.exp(-((a[:, None] - b[None]) ** 2).sum(2) / (2 * 10.0**2)).mean())

    expected = 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))
    assert cmmd(REAL, GENERATED) == pytest.approx(expected, rel=1e-8)
    assert expected > 0.1


def test_mind_equals_its_formula() -> None:
    """The larger set is cut first, then directions are drawn, one at a time compared here."""
    rng = torch.Generator().manual_seed(2020)
    kept = REAL[torch.randperm(len(REAL), generator=rng)[: len(GENERATED)].numpy()].astype(np.float64)
    directions = torch.randn(7, REAL.shape[1], generator=rng).numpy().astype(np.float64)
    each = []
    for u in directions:
        u = u / np.sqrt((u * u).sum())
        each.append(((np.sort(kept @ u) - np.sort(GENERATED.astype(np.float64) @ u)) ** 2).mean())
    assert mind(REAL, GENERATED, projections=7) == pytest.approx(3 * REAL.shape[1] * np.mean(each), rel=1e-6)


def test_mind_equals_torch_fidelity() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = pytest.importorskip("torch_fidelity.metric_mind", reason="needs a torch-fidelity with MIND (after 0.4.0)")
    options = {"mind_num_projections": 60, "cuda": False, "rng_seed": 2020, "verbose": False}
    found = module.mind_features_to_metric(torch.from_numpy(GENERATED), torch.from_numpy(REAL), **options)
    assert mind(REAL, GENERATED, projections=60) == pytest.approx(found["monge_inception_distance"], rel=1e-5)


def test_authenticity_equals_its_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pagoda_bench.metrics.neighbours.BLOCK_BYTES", 8 * 60**2)  # several tiles
    mixed = np.concatenate([GENERATED[:60], REAL[:20] + np.float32(1e-3)])  # 20 copies
    expected = []
    for g in mixed.astype(np.float64):
        away = np.sqrt(((REAL - g) ** 2).sum(1))
        near = REAL[away.argmin()]
        others = np.sqrt(((np.delete(REAL, away.argmin(), axis=0).astype(np.float64) - near) ** 2).sum(1))
        expected.append(others.min() < away.min())
    assert authentic(REAL, mixed).tolist() == expected
    assert not authentic(REAL, mixed)[60:].any()
    assert authenticity(REAL, mixed) == pytest.approx(100 * np.mean(expected))


def test_fid_infinity_equals_a_line_through_plain_distances() -> None:
    real = moments([REAL], REAL.shape[1])
    found = fid_infinity(Gaussian(real.mean, real.covariance), GENERATED, points=5, fewest=40, seed=3)
    assert found.sizes.tolist() == [19, 61, 104, 147, 190]  # a tenth is less than the fewest
    rng = np.random.default_rng(3)
    distances = [frechet_from_features(REAL, GENERATED[rng.choice(190, n, replace=False)]) for n in found.sizes]
    np.testing.assert_allclose(found.distances, distances, rtol=1e-6)
    design = np.stack([np.ones(5), 1 / found.sizes], axis=1)
    intercept, slope = np.linalg.lstsq(design, np.array(distances), rcond=None)[0]
    assert (found.value, found.slope) == pytest.approx((intercept, slope), rel=1e-6)
    assert found.value < found.distances[-1]  # the bias is upward
