"""What scores the rows of a table: a network trained here or a published one, against as many real images as are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.data import open_dataset
from pagoda_bench.data.imagenet import describe, prepare
from pagoda_bench.errors import UserError
from pagoda_bench.metrics import judges, stages
from pagoda_bench.metrics.extractors.base import Extractor
from pagoda_bench.metrics.judges import Published, load_judge
from pagoda_bench.nets.features import FeatureModel, fold, save_half
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.recipes.features import Features, Pretrained
from pagoda_bench.recipes.losses import LossConfig
from pagoda_bench.recipes.scores import Reference
from pagoda_bench.recipes.stages import Distill, FeatureNet, TrainConfig
from tests.image_files import folder_of
from tests.test_imagenet import tree_files
from tests.test_steps import PAIRS

DATA = EmbeddedData(master=16)
NET = FeatureNet(data=DATA, train=TrainConfig(steps=1, batch=4), width=8, resolution=16)


class Means(Extractor):
    """Channel means, and logits that follow from them in closed form."""

    def __init__(self, weights: str = "0" * 64) -> None:
        super().__init__("means", weights, "none", {"pool3": 3, "logits_unbiased": 3})

    def extract(self, images: torch.Tensor, wanted: object) -> dict[str, torch.Tensor]:
        pool = images.float().mean((2, 3))
        return {"pool3": pool, "logits_unbiased": pool.log()}


@pytest.fixture
def trained(tmp_path: Path) -> dict[str, Path]:
    torch.manual_seed(0)
    folder = tmp_path / "net"
    folder.mkdir()
    save_half(fold(FeatureModel(10, 8, 16)), folder / "features.safetensors")
    return {NET.key: folder}


def context(tmp_path: Path, inputs: dict[str, Path], name: str) -> StageContext:
    return StageContext.for_test(tmp_path / name / "out", tmp_path / name / "work", inputs)


def test_a_published_network_gives_features_and_what_its_softmax_says() -> None:
    images = np.random.default_rng(0).integers(1, 255, (5, 4, 4, 3), dtype=np.uint8)
    features, logits = Published(Means()).features(images, batch=2)
    np.testing.assert_allclose(features, images.mean((1, 2)), rtol=1e-5)
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(shares, features / features.sum(1, keepdims=True), rtol=1e-5)
    assert Published(Means()).protocol == {"extractor": "means", "weights": "0" * 64, "resize": "none"}


def test_a_part_of_the_features_is_kept_and_the_moments_are_of_all(tmp_path: Path, trained: dict[str, Path]) -> None:
    made = {}
    for keep in (None, 70, 150):
        ctx = context(tmp_path, trained, str(keep))
        stages.reference(Reference(data=DATA, features=NET, resolution=8, n=150, keep=keep), ctx)
        made[keep] = (np.load(ctx.out / "features.npy"), dict(np.load(ctx.out / "moments.npz")))
    features, moments = made[None]
    np.testing.assert_array_equal(made[150][0], features)
    np.testing.assert_array_equal(made[70][0], features[:70])
    assert made[70][1]["n"] == 150
    np.testing.assert_allclose(made[70][1]["covariance"], moments["covariance"], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(moments["covariance"], np.cov(features.astype(np.float64).T), rtol=1e-9, atol=1e-12)


def test_the_distance_is_to_all_of_the_reference_however_few_features_are_kept(
    tmp_path: Path, trained: dict[str, Path]
) -> None:
    generated = np.random.default_rng(0).normal(size=(20, 128)).astype(np.float32)
    found = {}
    for keep in (None, 70):
        ctx = context(tmp_path, trained, str(keep))
        stages.reference(Reference(data=DATA, features=NET, resolution=8, n=150, keep=keep), ctx)
        found[keep] = stages._frechet(ctx.out, np.load(ctx.out / "features.npy"), generated)
    assert found[70] == pytest.approx(found[None], rel=1e-9)


def test_all_of_a_split_with_unequal_classes(tmp_path: Path, trained: dict[str, Path]) -> None:
    """18 images, 5 to 7 a class: they cannot take turns to the end, and yet each is there once."""
    store = tmp_path / "store"
    prepare(folder_of(tmp_path / "tree", tree_files()), store, (16,), any_counts=True, rows=4, workers=2)
    data = describe(store)
    net = NET.model_copy(update={"data": data})
    inputs = {net.key: trained[NET.key]}
    ctx = context(tmp_path, inputs, "all")
    ctx.data_path = lambda digest: store
    stages.reference(Reference(data=data, features=net, resolution=16, n=18, keep=6, split="train"), ctx)
    found = open_dataset(data, lambda digest: store)
    everything = load_judge(net, ctx).features(found.images(np.arange(18), 16, "train"), 64)[0].astype(np.float64)
    moments = np.load(ctx.out / "moments.npz")
    np.testing.assert_allclose(moments["mean"], everything.mean(0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moments["covariance"], np.cov(everything.T), rtol=1e-3, atol=1e-6)
    assert len(np.load(ctx.out / "features.npy")) == 6
    ctx = context(tmp_path, inputs, "kept")
    ctx.data_path = lambda digest: store
    stages.reference(Reference(data=data, features=net, resolution=16, n=18, split="train"), ctx)
    kept = np.load(ctx.out / "features.npy").astype(np.float64)
    assert len(kept) == 18
    np.testing.assert_allclose(np.sort(kept, 0), np.sort(everything, 0), rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="has 5 train images and number 6 is asked for"):
        stages.reference(Reference(data=data, features=net, resolution=16, n=17, split="train"), ctx)


def test_weights_that_the_recipe_does_not_name_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "load_extractor", lambda name, device: Means("1" * 64))
    ctx = context(tmp_path, {}, "net")
    with pytest.raises(UserError, match="have the SHA-256 111111111111, the recipe names 6726825d0af5"):
        judges.run(Pretrained(), ctx)
    judges.run(Pretrained(weights="1" * 64), ctx)
    assert (ctx.out / "network.json").is_file()


def test_absent_weights_are_named_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch_fidelity", reason="needs torch-fidelity: pip install 'pagoda-bench[eval]'")
    monkeypatch.setenv("PAGODA_BENCH_WEIGHTS", str(tmp_path))
    monkeypatch.setenv("PAGODA_BENCH_OFFLINE", "1")
    with pytest.raises(UserError, match=r"weights-inception-2015-12-05-6726825d\.pth") as caught:
        judges.run(Pretrained(), context(tmp_path, {}, "net"))
    assert "\n" not in str(caught.value)


def test_losses_look_through_a_network_that_is_trained_here() -> None:
    with pytest.raises(UserError, match=r"loss\.features 'embedded' looks through .* 'features'"):
        Distill.load({"pairs": PAIRS, "features": Pretrained(), "train": {"steps": 1, "batch": 2}}, "distill")
    projected = LossConfig(features="projected")
    assert Distill(pairs=PAIRS, features=Pretrained(), train=TrainConfig(steps=1, batch=2), loss=projected).key
    assert isinstance(Pretrained(), Features)
