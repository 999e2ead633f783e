"""Whole runs against whole runs of the reference programs, on the same weights and images."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_evaluate import images
from test_extractors import scrambled

from pagoda_bench.metrics import suite
from pagoda_bench.metrics.evaluate import evaluate
from pagoda_bench.metrics.extractors import load_extractor
from pagoda_bench.metrics.extractors.lpips import LPIPS
from pagoda_bench.metrics.extractors.weights import Found
from pagoda_bench.metrics.settings import PROTOCOLS

pytestmark = pytest.mark.slow
INSTALL = "pip install 'pagoda-bench[eval]'"
N, SUBSET = 32, 24
NAMES = {
    "fid": "frechet_inception_distance",
    "is": "inception_score_mean",
    "kid": "kernel_inception_distance_mean",
    "precision": "precision",
    "recall": "recall",
}


class Pixels(torch.utils.data.Dataset[torch.Tensor]):
    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self.pixels[index]


@pytest.fixture(scope="module")
def sets() -> tuple[np.ndarray, np.ndarray]:
    """Half of the second set is darker, so that no metric is 0 or 1."""
    a, b = images(N, 1, 32), images(N, 2, 32)
    b[: N // 2] //= 4
    return a, b


@pytest.fixture(scope="module")
def fidelity(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """torch-fidelity, its Inception with seeded weights, and the same network handing its features on as float64."""
    package: Any = pytest.importorskip("torch_fidelity", reason=INSTALL)
    inception: Any = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3", reason=INSTALL)
    from pagoda_bench.metrics.extractors.inception import Network

    class Wide(inception.FeatureExtractorInceptionV3):  # type: ignore[misc]
        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(feature.double() for feature in super().forward(x))

    package.register_feature_extractor("inception-float64", Wide)
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(scrambled(Network()), path)
    return SimpleNamespace(package=package, path=path)


def theirs(fidelity: SimpleNamespace, sets: tuple[np.ndarray, np.ndarray], extractor: str, **options: Any) -> dict[str, float]:
    found: dict[str, float] = fidelity.package.calculate_metrics(
        input1=Pixels(sets[0]), input2=Pixels(sets[1]), cuda=False, batch_size=16, feature_extractor=extractor, cache=False,
        verbose=False, save_cpu_ram=True, kid_subset_size=SUBSET, kid_subsets=10, **options,
    )  # fmt: skip
    return found


def test_torch_fidelity_agrees_on_the_same_weights_and_images(
    fidelity: SimpleNamespace, sets: tuple[np.ndarray, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All five to 1e-5 of its whole program, in which only one thing is changed: the statistics are taken in float64.

    As it comes, it computes the kernels of KID in float32, as the features are, and KID is a small difference of their means:
    5e-6 away from float64 on such images, more where sets are alike.
    """
    weights = {"feature_extractor_weights_path": str(fidelity.path)}
    wide = theirs(fidelity, sets, "inception-float64", **weights, isc=True, fid=True, kid=True, prc=True)
    narrow = theirs(fidelity, sets, "inception-v3-compat", **weights, kid=True)
    small = PROTOCOLS["torch-fidelity"].model_copy(update={"subset": SUBSET, "subsets": 10, "draws": 0})
    monkeypatch.setitem(PROTOCOLS, "torch-fidelity", small)
    for metric in ("precision", "recall"):  # one extractor serves all metrics there when it is named
        monkeypatch.setitem(suite.PLACES["torch-fidelity"], metric, ("inception", "pool3"))
    network = load_extractor("inception", fidelity.path)
    scores = evaluate(*sets, protocol="torch-fidelity", batch=16, extractors={"inception": network})
    ours = {score.metric: score.value for score in scores}
    for name, its_name in NAMES.items():
        assert ours[name] == pytest.approx(wide[its_name], rel=1e-5), name
    assert 0 < ours["recall"] < 1
    assert 0 < ours["precision"] < 1
    assert narrow[NAMES["kid"]] == pytest.approx(wide[NAMES["kid"]], rel=1e-3)
    assert narrow[NAMES["kid"]] != wide[NAMES["kid"]]


def test_lpips_is_torch_fidelitys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = pytest.importorskip("torch_fidelity.sample_similarity_lpips", reason=INSTALL)
    models: Any = pytest.importorskip("torchvision.models", reason=INSTALL)
    vgg = models.vgg16(weights=None, init_weights=False)
    vgg.load_state_dict(scrambled(vgg))
    rng = torch.Generator().manual_seed(0)
    sizes = enumerate((64, 128, 256, 512, 512))
    heads = {f"lin{i}.model.1.weight": torch.rand(1, channels, 1, 1, generator=rng) for i, channels in sizes}
    torch.save(vgg.state_dict(), tmp_path / "mine.pth")
    torch.save(heads, tmp_path / "heads.pth")
    monkeypatch.setattr(module, "load_state_dict_from_url", lambda *a, **k: heads)
    monkeypatch.setattr(module, "torchvision_load_pretrained_vgg16", lambda **k: vgg)
    oracle = module.SampleSimilarityLPIPS("lpips-vgg16")
    found = LPIPS(Found(tmp_path / "heads.pth", "a"), Found(tmp_path / "mine.pth", "b"))
    a, b = (torch.from_numpy(images(3, seed, 40)).permute(0, 3, 1, 2).contiguous() for seed in (1, 2))
    torch.testing.assert_close(found.distance(a, b), oracle(a, b), rtol=1e-4, atol=1e-6)
    assert found.distance(a, a).max() == 0


def test_precision_and_recall_of_torch_fidelity_through_vgg(
    fidelity: SimpleNamespace, sets: tuple[np.ndarray, np.ndarray], tmp_path: Path
) -> None:
    """Where no extractor is named, its precision and recall look through VGG16, and so does the protocol."""
    models: Any = pytest.importorskip("torchvision.models", reason=INSTALL)
    path = tmp_path / "vgg16.pth"
    torch.save(scrambled(models.vgg16(weights=None, init_weights=False)), path)
    some = sets[0][:20], sets[1][6:26]
    expected = theirs(fidelity, some, "vgg16", feature_extractor_weights_path=str(path), prc=True)
    scores = evaluate(*some, ["pr"], protocol="torch-fidelity", batch=16, weights={"vgg16": path})
    assert [score.protocol["feature"] for score in scores] == ["fc2_relu", "fc2_relu"]
    for score in scores:
        assert score.value == pytest.approx(expected[score.metric], rel=1e-5)
        assert 0 < score.value < 1
