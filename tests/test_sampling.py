"""Noise, counting, samplers, and the stages that score them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.data import open_dataset
from pagoda_bench.data.resize import upsample
from pagoda_bench.errors import UserError
from pagoda_bench.metrics import stages
from pagoda_bench.metrics.frechet import frechet_from_features
from pagoda_bench.metrics.protocol import Protocol
from pagoda_bench.nets.features import FeatureModel, fold, load_features, save_half
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.recipes.scores import Reference, Score
from pagoda_bench.recipes.stages import FeatureNet, Generator, RealImages, TrainConfig, Upsampled
from pagoda_bench.sampling.counting import count_evaluations
from pagoda_bench.sampling.generators import FAR, ByClass, Sampler, load
from pagoda_bench.sampling.noise import noise

DATA = EmbeddedData(master=16)
FEATURES = FeatureNet(data=DATA, train=TrainConfig(steps=1), width=8, resolution=16)
N = 150


class Noisy(Generator, kind="noisy-test"):
    """Uniform grey noise around a value that depends on the label; no network."""

    loader: ClassVar[str] = f"{__name__}:noisy"
    nfe: int = 3

    @property
    def resolution(self) -> int:
        return 16


class NoisySampler:
    resolution, classes, parameters = 16, 10, 5

    def __init__(self, nfe: int) -> None:
        self.nfe = nfe

    def sample(self, indices: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, int]:
        values = noise(indices, (16, 16, 3), seed=1) * 30 + 20 * labels[:, None, None, None] + 30
        return values.clip(0, 255).astype(np.uint8), self.nfe


def noisy(config: Noisy, ctx: StageContext) -> Sampler:
    return NoisySampler(config.nfe)


@given(indices=st.lists(st.integers(0, 2**63), min_size=1, max_size=8), seed=st.integers(0, 2**63))
def test_noise_belongs_to_the_index(indices: list[int], seed: int) -> None:
    rows = noise(indices, (2, 3), seed)
    assert rows.dtype == np.float32
    assert rows.shape == (len(indices), 2, 3)
    for i, index in enumerate(indices):
        # An independent generator for each row.
        fresh = np.random.Generator(np.random.Philox(key=np.array([seed, index], np.uint64))).standard_normal(
            (2, 3), dtype=np.float32
        )
        np.testing.assert_array_equal(rows[i], fresh)


def test_noise_is_standard_normal_and_pinned() -> None:
    rows = noise(range(4000), (3, 4, 4), seed=7)
    assert rows.mean() == pytest.approx(0, abs=0.01)
    assert rows.std() == pytest.approx(1, abs=0.01)
    assert abs(np.corrcoef(rows.reshape(4000, -1)[:-1, 0], rows.reshape(4000, -1)[1:, 0])[0, 1]) < 0.05
    # Released samples depend on these values: a NumPy that draws others must be noticed.
    np.testing.assert_allclose(noise([0], (3,), 1), [[1.0916891, 0.4558267, 0.7017898]], rtol=1e-6)
    np.testing.assert_allclose(noise([5], (2,), 0), [[-1.010117, 0.8902162]], rtol=1e-6)
    assert noise([], (2, 2), 0).shape == (0, 2, 2)


def test_evaluations_are_counted_on_the_network() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
            return x * scale

    net = Net()
    with count_evaluations(net) as counted:
        net(torch.zeros(4, 2))
        net(x=torch.zeros(4, 2))
        net(torch.zeros(8, 2))  # both halves of guidance in one call
    net(torch.zeros(4, 2))
    assert (counted.calls, counted.images) == (3, 16)
    assert counted.per_image(4) == 4
    with pytest.raises(ValueError, match="not the same number"):
        counted.per_image(5)
    with pytest.raises(RuntimeError), count_evaluations(net):
        raise RuntimeError
    assert not net._forward_hooks


class Finite:
    """Ten images of unequal classes: a has 5, b has 3, c has 2."""

    classes = ("a", "b", "c")
    order = np.array([0, 1, 0, 2, 0, 1, 0, 2, 1, 0])

    def size(self, split: str) -> int:
        return 10

    def labels(self, indices: np.ndarray, split: str) -> np.ndarray:
        return self.order[indices]

    def images(self, indices: np.ndarray, resolution: int, split: str) -> np.ndarray:
        return np.broadcast_to(indices[:, None, None, None], (len(indices), resolution, resolution, 3)).astype(np.uint8)


def test_by_class_takes_turns_from_both_ends() -> None:
    by_class = ByClass(Finite(), "val")
    np.testing.assert_array_equal(by_class.balanced(np.arange(6), "near"), [0, 1, 3, 2, 5, 7])
    np.testing.assert_array_equal(by_class.balanced(np.arange(6), "far"), [9, 8, 7, 6, 5, 3])
    by_class.check_disjoint(near=3, far=3)
    by_class.check_disjoint(near=5, far=3)
    with pytest.raises(UserError, match="class 'b' has 3 val images; 5 reference images and 5"):
        by_class.check_disjoint(near=5, far=5)
    with pytest.raises(UserError, match="class 'c' has 2 val images and number 3"):
        by_class.balanced(np.arange(9), "near")


@settings(max_examples=50)
@given(near=st.integers(0, 10), far=st.integers(0, 10))
def test_check_disjoint_is_exact(near: int, far: int) -> None:
    by_class = ByClass(Finite(), "val")
    try:
        a = by_class.balanced(np.arange(near), "near")
        b = by_class.balanced(np.arange(far), "far")
        fine = not set(a) & set(b)
    except UserError:
        fine = False
    if fine:
        by_class.check_disjoint(near, far)
    else:
        with pytest.raises(UserError):
            by_class.check_disjoint(near, far)


def context(tmp: Path, **inputs: Any) -> StageContext:
    return StageContext.for_test(tmp / "out", tmp / "work", inputs.get("inputs"))


def test_real_images_have_the_asked_label_and_upsampling_keeps_the_cost(tmp_path: Path) -> None:
    ctx, data = context(tmp_path), open_dataset(DATA)
    config = RealImages(data=DATA, at=8)
    sampler = load(config, ctx)
    indices = np.array([0, 1, 27, 27, 500])
    labels = np.array([0, 1, 7, 3, 9])
    images, nfe = sampler.sample(indices, labels)
    assert (nfe, sampler.parameters, sampler.classes, sampler.resolution) == (0, 0, 10, 8)
    where = np.array([FAR // 10 * 10 + i // 10 * 10 + label for i, label in zip(indices, labels, strict=True)])
    np.testing.assert_array_equal(data.labels(where, "val"), labels)
    np.testing.assert_array_equal(images, data.images(where, 8, "val"))

    larger = load(Upsampled(of=Noisy(), to=32, filter="nearest"), ctx)
    images, nfe = larger.sample(indices, labels)
    assert (nfe, larger.parameters, larger.classes, larger.resolution) == (3, 5, 10, 32)
    np.testing.assert_array_equal(images, upsample(NoisySampler(3).sample(indices, labels)[0], 32, "nearest"))


def test_a_loader_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Noisy, "loader", "no_such_package.here:load")
    with pytest.raises(UserError, match=r"no_such_package.here:load of generator 'noisy-test' cannot be imported"):
        load(Noisy(), context(tmp_path))
    monkeypatch.setattr(Noisy, "loader", "")
    with pytest.raises(UserError, match="names no loader"):
        load(Noisy(), context(tmp_path))


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A feature network with random weights, and a reference made with it."""
    torch.manual_seed(0)
    folders = {FEATURES.key: tmp_path_factory.mktemp("features")}
    network = FeatureModel(10, FEATURES.width, FEATURES.resolution)
    save_half(fold(network), folders[FEATURES.key] / "features.safetensors")
    recipe = reference_recipe()
    out = tmp_path_factory.mktemp("reference")
    stages.reference(recipe, StageContext.for_test(out, tmp_path_factory.mktemp("work"), folders))
    return {**folders, recipe.key: out}


def reference_recipe(n: int = N) -> Reference:
    return Reference(data=DATA, features=FEATURES, resolution=16, n=n)


def run_score(recipe: Score, inputs: dict[str, Path], tmp: Path) -> tuple[dict[str, Any], StageContext]:
    ctx = context(tmp, inputs=inputs)
    stages.score(recipe, ctx)
    return json.loads((ctx.out / "score.json").read_text()), ctx


def test_reference_is_balanced_and_reproducible(inputs: dict[str, Path], tmp_path: Path) -> None:
    recipe = reference_recipe()
    stages.reference(recipe, context(tmp_path, inputs=inputs))
    for name in ("features.npy", "moments.npz"):
        assert (tmp_path / "out" / name).read_bytes() == (inputs[recipe.key] / name).read_bytes()
    found = np.load(inputs[recipe.key] / "features.npy")
    data, model = open_dataset(DATA), load_features(FEATURES, context(tmp_path, inputs=inputs))
    expected, _ = model.features(data.images(np.arange(N), 16, "val"))
    np.testing.assert_allclose(found, expected, atol=1e-5)
    with np.load(inputs[recipe.key] / "moments.npz") as arrays:
        np.testing.assert_allclose(arrays["covariance"], np.cov(found.astype(np.float64), rowvar=False), rtol=1e-9, atol=1e-12)


def test_scores_of_real_images_are_the_noise_floor(inputs: dict[str, Path], tmp_path: Path) -> None:
    recipe = Score(generator=RealImages(data=DATA, at=16), reference=reference_recipe(), n=N)
    found, ctx = run_score(recipe, inputs, tmp_path)
    scores = found["scores"]
    assert set(scores) == {"fd", "precision", "recall", "is", "alignment", "nfe", "parameters"}
    assert (scores["nfe"], scores["parameters"]) == (0, 0)
    assert scores["precision"] > 0.5
    assert scores["recall"] > 0.5
    assert 1 <= scores["is"] <= 10
    data, model = open_dataset(DATA), load_features(FEATURES, ctx)
    near, far = (ByClass(data, "val").balanced(np.arange(N), end) for end in ("near", "far"))
    shown = data.images(ByClass(data, "val").balanced(np.arange(N), "far"), 16, "val")
    agreed = sum(int(model.features(shown[i : i + 1], 1)[1][0].argmax()) == i % 10 for i in range(N))
    assert scores["alignment"] == pytest.approx(agreed / N, abs=1.5 / N)  # batches round differently
    floor = frechet_from_features(*(model.features(data.images(indices, 16, "val"), 64)[0] for indices in (near, far)))
    assert scores["fd"] == pytest.approx(floor, rel=1e-6)
    noise_score, _ = run_score(Score(generator=Noisy(), reference=reference_recipe(), n=N), inputs, tmp_path / "noisy")
    assert noise_score["scores"]["fd"] > 3 * floor
    assert noise_score["scores"]["precision"] < scores["precision"]
    protocol = Protocol.load(found["protocol"])
    assert (protocol.n, protocol.reference_n, protocol.k, protocol.reference) == (N, N, 3, recipe.reference.key)


def test_score_payload(inputs: dict[str, Path], tmp_path: Path) -> None:
    recipe = Score(generator=Noisy(nfe=7), reference=reference_recipe(), n=N, first=13, neighbours=5)
    found, ctx = run_score(recipe, inputs, tmp_path)
    assert sorted(path.name for path in ctx.out.iterdir()) == ["samples.png", "score.json"]
    assert (found["scores"]["nfe"], found["scores"]["parameters"], found["protocol"]["k"]) == (7, 5, 5)
    assert (ctx.facts["nfe"], ctx.facts["parameters"]) == (7, 5)
    assert ctx.facts["images_per_second"] > 0
    assert "images_per_second" not in found["scores"]
    # Column = class, row = how many of that class came before in the block.
    with Image.open(ctx.out / "samples.png") as picture:
        grid = np.asarray(picture).reshape(5, 16, 10, 16, 3)
    for row, column in [(0, 0), (0, 3), (2, 2), (4, 9)]:
        index = [i for i in range(13, 13 + N) if i % 10 == column][row]
        expected, _ = NoisySampler(7).sample(np.array([index]), np.array([column]))
        np.testing.assert_array_equal(grid[row, :, column], expected[0])
    # The distance is that of the features of exactly these samples.
    indices = np.arange(13, 13 + N)
    images, _ = NoisySampler(7).sample(indices, indices % 10)
    features, _ = load_features(FEATURES, ctx).features(images)
    real = np.load(inputs[recipe.reference.key] / "features.npy")
    assert found["scores"]["fd"] == pytest.approx(frechet_from_features(real, features), rel=1e-4)


@pytest.mark.parametrize("stops", [(1,), (2,), (1, 1, 1)])
def test_an_interrupted_score_ends_in_the_same_bytes(
    stops: tuple[int, ...], inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after some batches, several times; every batch is kept, and none is sampled twice."""
    recipe = Score(generator=Noisy(), reference=reference_recipe(), n=300)
    _, whole = run_score(recipe, inputs, tmp_path / "whole")
    sampled: list[int] = []
    original = NoisySampler.sample

    def spy(self: NoisySampler, indices: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, int]:
        sampled.extend(indices.tolist())
        return original(self, indices, labels)

    monkeypatch.setattr(NoisySampler, "sample", spy)
    for stop in stops:
        ctx = context(tmp_path / "cut", inputs=inputs)
        calls = [0]

        def report(done: int, total: int, info: Any, calls: list[int] = calls, stop: int = stop) -> None:
            calls[0] += 1
            if calls[0] == stop:
                raise KeyboardInterrupt

        ctx.report = report
        with pytest.raises(KeyboardInterrupt):
            stages.score(recipe, ctx)
        assert not list(ctx.out.iterdir())
    _, resumed = run_score(recipe, inputs, tmp_path / "cut")
    assert sorted(sampled) == list(range(300))
    for name in ("score.json", "samples.png"):
        assert (resumed.out / name).read_bytes() == (whole.out / name).read_bytes()


def test_a_score_in_shards_is_the_same_bytes(inputs: dict[str, Path], tmp_path: Path) -> None:
    recipe = Score(generator=Noisy(), reference=reference_recipe(), n=300)
    _, whole = run_score(recipe, inputs, tmp_path / "whole")
    shared = context(tmp_path / "shared", inputs=inputs)
    assert [stages.shard(recipe, shared, index, 3) for index in (2, 0)] == [False, False]
    assert stages.shard(recipe, shared, 1, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NoisySampler, "sample", None)  # nothing is sampled again
        _, found = run_score(recipe, inputs, tmp_path / "shared")
    for name in ("score.json", "samples.png"):
        assert (found.out / name).read_bytes() == (whole.out / name).read_bytes()


def test_scores_that_cannot_be_are_refused_before_sampling(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="raise n"):
        run_score(Score(generator=Noisy(), reference=reference_recipe(), n=3), inputs, tmp_path)
    wrong = Score(generator=Upsampled(of=Noisy(), to=32), reference=reference_recipe(), n=20)

    def sample(self: NoisySampler, indices: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, int]:
        return np.zeros((len(indices), 16, 16), np.uint8), 1

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NoisySampler, "sample", sample)
        with pytest.raises(UserError, match=r"gave uint8 \(20, 16, 16\), not uint8 \(20, 16, 16, 3\)"):
            run_score(wrong.model_copy(update={"generator": Noisy()}), inputs, tmp_path)
