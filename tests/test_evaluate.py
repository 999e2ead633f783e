"""One pass from images to scores: agreement with the metrics called by hand, blocks, caches, statistics, guard, commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import refusal

from pagoda_bench.metrics import gather as gathering
from pagoda_bench.metrics.evaluate import evaluate
from pagoda_bench.metrics.extractors import Extractor, load_extractor
from pagoda_bench.metrics.gather import Wanted, cached, gather, merge
from pagoda_bench.metrics.inputs import WHOLE, Array, Part
from pagoda_bench.metrics.score_schema import REQUIRED, Score, differences, dump, load
from pagoda_bench.metrics.suite import PLACES, USUAL, known, measures
from pagoda_bench.nets.features import FeatureModel, save_half

KEY = ("embedded", "features")


def images(n: int, seed: int, size: int = 8) -> np.ndarray:
    rng = np.random.default_rng(seed)
    colour = rng.integers(40, 215, (n, 1, 1, 3))
    return np.clip(colour + rng.normal(0, 20 + 10 * seed, (n, size, size, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("net") / "features.safetensors"
    save_half(FeatureModel(5, 4, 16, folded=True).state_dict(), path)
    return path


@pytest.fixture(scope="module")
def network(weights: Path) -> Extractor:
    return load_extractor("embedded", weights)


@pytest.fixture
def run(network: Extractor) -> Any:
    def call(*arguments: Any, **options: Any) -> dict[str, Score]:
        return {score.metric: score for score in evaluate(*arguments, extractors={"embedded": network}, **options)}

    return call


def rows(network: Extractor, pixels: np.ndarray) -> np.ndarray:
    batch = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
    return network(batch)["features"].numpy().astype(np.float64)


def frechet(a: np.ndarray, b: np.ndarray) -> float:
    """Through the eigenvalues of the product, in float64."""
    s, t = np.cov(a.T), np.cov(b.T)
    roots = np.sqrt(np.clip(np.linalg.eigvals(s @ t).real, 0, None)).sum()
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(s) + np.trace(t) - 2 * roots)


def test_scores_are_those_of_the_features_by_hand(run: Any, network: Extractor) -> None:
    a, b = images(300, 1), images(200, 2)
    found = run(a, b, ["fd", "prdc", "is"])
    x, y = rows(network, a), rows(network, b)
    assert found["fd"].value == pytest.approx(frechet(x, y), rel=1e-4)
    far = np.linalg.norm(y[:, None] - y[None], axis=2)
    radius = np.sort(far, axis=1)[:, 3]
    inside = np.linalg.norm(x[:, None] - y[None], axis=2) <= radius
    assert found["precision"].value == pytest.approx(inside.any(1).mean(), abs=0.011)
    assert set(found) == {"fd", "precision", "recall", "density", "coverage", "is"}
    assert found["is"].protocol["reference"] is None
    assert found["coverage"].protocol["k"] == 5
    assert found["precision"].protocol["rim"] == "<="
    assert found["precision"].stderr is not None
    assert found["precision"].stderr_from is not None
    assert found["precision"].stderr_from.startswith("bootstrap")
    assert found["fd"].stderr is None


def test_each_image_is_decoded_once_and_goes_through_the_network_once(run: Any, network: Extractor) -> None:
    class Counting(Array):
        seen = 0

        def batches(self, size: int, part: Part = WHOLE) -> Any:
            for batch in super().batches(size, part):
                Counting.seen += len(batch.images)
                yield batch

    calls: list[int] = []
    extract = network.extract
    network.extract = lambda x, wanted: calls.append(len(x)) or extract(x, wanted)  # type: ignore[method-assign]
    try:
        run(Counting(images(100, 1)), Counting(images(150, 2)), ["fd", "prdc", "vendi", "is", "mind"])
    finally:
        network.extract = extract  # type: ignore[method-assign]
    assert Counting.seen == sum(calls) == 250


@pytest.mark.parametrize("workers", [1, 2, 8])
def test_parts_merge_to_the_whole(network: Extractor, workers: int) -> None:
    """Every entry to 1e-12 of itself, those of the covariance that are near 0 included."""
    pixels, wanted = images(3200, 1), Wanted(frozenset({KEY}), frozenset({KEY}))
    whole = gather(Array(pixels), {"embedded": network}, wanted, batch=40)
    size = 3200 // workers
    parts = [
        gather(Array(pixels[start : start + size]), {"embedded": network}, wanted, start=start, batch=40)
        for start in range(0, 3200, size)
    ]
    found = merge(parts)
    assert found.n == 3200
    (a,), (b,) = found.moments[KEY], whole.moments[KEY]
    np.testing.assert_allclose(a.mean, b.mean, rtol=1e-12)
    np.testing.assert_allclose(a.covariance, b.covariance, rtol=1e-12)
    np.testing.assert_array_equal(found.rows[KEY], whole.rows[KEY])


def test_features_past_the_limit_lie_in_a_file(network: Extractor) -> None:
    wanted = Wanted(rows=frozenset({KEY}))
    stream = Array(images(50, 1))
    mapped = gather(stream, {"embedded": network}, wanted, memory_limit=10)
    assert isinstance(mapped.rows[KEY], np.memmap)
    np.testing.assert_array_equal(mapped.rows[KEY], gather(stream, {"embedded": network}, wanted).rows[KEY])


def test_blocks_are_scored_apart(run: Any) -> None:
    parts, real = [images(150, s) for s in (1, 2, 3)], images(200, 4)
    together = run(np.concatenate(parts), real, ["fd"], seeds=3)["fd"]
    listed = run(parts, real, ["fd"])["fd"]
    single = [run(part, real, ["fd"])["fd"].value for part in parts]
    assert together.n == listed.n == 150
    assert together.values == pytest.approx(single, rel=1e-4)
    assert listed.values == pytest.approx(single, rel=1e-4)
    assert listed.minimum == min(listed.values)
    assert listed.value == pytest.approx(np.mean(single), rel=1e-4)
    assert listed.stderr == pytest.approx(np.std(single, ddof=1) / 3**0.5, rel=1e-3)


def test_the_cache_is_keyed_by_content(network: Extractor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, networks = Wanted(frozenset({KEY}), frozenset({KEY})), {"embedded": network}
    first = cached(tmp_path, Array(images(50, 1), "name"), networks, wanted)
    other = cached(tmp_path, Array(images(50, 2), "name"), networks, wanted)
    assert np.abs(first.rows[KEY] - other.rows[KEY]).max() > 1e-3
    monkeypatch.setattr(gathering, "gather", lambda *a, **k: pytest.fail("it was there"))
    again = cached(tmp_path, Array(images(50, 1), "another name"), networks, wanted)
    np.testing.assert_array_equal(again.rows[KEY], first.rows[KEY])
    np.testing.assert_allclose(again.moments[KEY][0].covariance, first.moments[KEY][0].covariance, rtol=1e-12)
    monkeypatch.undo()
    for file in tmp_path.iterdir():
        file.write_bytes(b"damaged")
    np.testing.assert_array_equal(cached(tmp_path, Array(images(50, 1)), networks, wanted).rows[KEY], first.rows[KEY])


def test_self_check_finds_a_stale_cache(run: Any, tmp_path: Path) -> None:
    real = images(300, 1)
    run(images(200, 2), real, ["fd"], self_check=True, cache=tmp_path)
    (file,) = tmp_path.glob("*.moments.npz")
    with np.load(file) as arrays:
        changed = {name: arrays[name] for name in arrays.files}
    np.savez(file, **{**changed, "mean": changed["mean"] + 1})
    assert "not 0" in refusal(lambda: run(images(200, 2), real, ["fd"], self_check=True, cache=tmp_path))
    assert "--self-check needs" in refusal(lambda: run(images(20, 2), None, ["is"], self_check=True))


def test_too_few_images_are_an_error_or_a_mark(run: Any) -> None:
    assert "it needs at least 4" in refusal(lambda: run(images(3, 1), images(9, 2), ["precision"]))
    assert "it needs at least 4" in refusal(lambda: run(images(9, 1), images(3, 2), ["precision"]))
    assert "1 images are too few for 'fd'" in refusal(lambda: run(images(1, 1), images(9, 2), ["fd"]))
    assert "'kid': it needs at least 1,000" in refusal(lambda: run(images(9, 1), images(9, 2), ["kid"]))
    assert any("full rank" in mark for mark in run(images(50, 1), images(50, 2), ["fd"])["fd"].marks)
    assert "asked for" in refusal(lambda: run(images(9, 1), images(9, 2), ["fd"], reference_n=10))
    assert "9 images, not 12" in refusal(lambda: run(images(9, 1), images(9, 2), ["fd"], n=12))
    assert "equal blocks" in refusal(lambda: run(images(9, 1), images(9, 2), ["fd"], seeds=2))


def test_features_that_are_not_finite_name_the_image(weights: Path) -> None:
    broken = load_extractor("embedded", weights)
    extract = broken.extract

    def poisoned(x: torch.Tensor, wanted: Any) -> dict[str, torch.Tensor]:
        found = extract(x, wanted)
        found["features"][2] = float("nan")
        return found

    broken.extract = poisoned  # type: ignore[method-assign]
    message = refusal(lambda: evaluate(images(9, 1), images(9, 2), ["fd"], extractors={"embedded": broken}))
    assert "of image 2 are not finite" in message


def test_names_are_checked_before_anything_runs(run: Any) -> None:
    assert "did you mean 'recall'" in refusal(lambda: run(images(9, 1), images(9, 2), ["recal"]))
    assert "give them with --ref" in refusal(lambda: run(images(9, 1), None, ["fd"]))
    assert "unknown protocol" in refusal(lambda: measures("amd"))


@pytest.mark.parametrize("protocol", sorted(PLACES))
def test_every_protocol_places_its_usual_metrics(protocol: str) -> None:
    found = measures(protocol)
    assert [measure.metric for measure in found] == list(USUAL[protocol])
    assert {measure.preset for measure in found} == {protocol}


def test_conventions_are_those_of_the_reference_programs() -> None:
    adm = {m.metric: m for m in measures("adm", ["is", "sfid", "prdc", "fd_dinov2"])}
    assert (adm["is"].feature, adm["is"].settings.part) == ("logits_unbiased", 5000)
    assert adm["sfid"].feature == "spatial"
    assert (adm["precision"].settings.k, adm["precision"].settings.rim) == (3, "<=")
    assert (adm["density"].settings.k, adm["density"].settings.rim) == (5, "<")
    assert (adm["fd_dinov2"].preset, adm["fd_dinov2"].extractor) == ("dgm-eval", "dinov2-vitl14")
    tf = {m.metric: m for m in measures("torch-fidelity", ["precision", "is", "kid"])}
    assert (tf["precision"].extractor, tf["precision"].feature) == ("vgg16", "fc2_relu")
    assert tf["is"].settings.shuffle == 2020
    assert (tf["kid"].settings.subsets, tf["kid"].settings.subset) == (100, 1000)
    dgm = {m.metric: m for m in measures("dgm-eval", ["prdc"])}
    assert {(m.settings.k, m.settings.rim) for m in dgm.values()} == {(5, "<")}
    assert {"fid", "prdc", "kid", "cmmd"} <= set(known())


def write(path: Path, scores: list[Score]) -> Path:
    path.write_text(dump(scores))
    return path


def test_scores_come_back_from_their_json(run: Any, tmp_path: Path) -> None:
    scores = list(run(images(60, 1), images(60, 2), ["fd", "precision"]).values())
    found = load(write(tmp_path / "a.json", scores))
    assert [s.to_dict() for s in found] == [s.to_dict() for s in scores]
    raw = json.loads((tmp_path / "a.json").read_text())
    assert all(set(REQUIRED) <= set(item) for item in raw)
    bad: list[tuple[Any, str]] = [
        ([{**raw[0], "schema": 99}], "schema 99"),
        ([{k: v for k, v in raw[0].items() if k != "n"}], "lacks 'n'"),
        ([{**raw[0], "value": "high"}], "no finite number"),
        ({"a": 1}, "no list of scores"),
    ]
    for value, words in bad:
        (tmp_path / "b.json").write_text(json.dumps(value))
        assert words in refusal(lambda: load(tmp_path / "b.json"))
    (tmp_path / "b.json").write_text("{")
    assert "no JSON" in refusal(lambda: load(tmp_path / "b.json"))


def test_differences_name_every_field() -> None:
    a = {"n": 10_000, "labels": "uniform", "weights": "ab" * 32}
    b = {"n": 50_000, "labels": "random", "weights": "cd" * 32, "crop": "adm:256"}
    expected = ["N 10,000 vs 50,000", "labels uniform vs random", f"extractor weights {'ab' * 6} vs {'cd' * 6}"]
    assert differences(a, b) == [*expected, "crop of the reference unset vs adm:256"]
    assert differences(a, dict(a)) == []
