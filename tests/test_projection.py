"""Random-projection features against outputs of the official implementation; seeds, storage and restoration."""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from torch import Tensor

from pagoda_bench.errors import UserError
from pagoda_bench.nets.projection import CHANNELS, BatchNorm, Eyes, Kind, ProjectedFeatures, RandomProjection, timm_backbone
from tests.official import OFFICIAL
from tests.official_eyes import backbone, backbone_weights, check_fill, fill_all, projected

ATOL = 3e-4  # stated with the fixture: the official outputs move by a tenth of it with threads and kernels
NEEDS_TIMM = "needs timm: pip install timm"


def image(n: int, size: int) -> Tensor:
    """The fixture's image, which is not in the file: 0.9 sin(2000 + k^2)."""
    k = np.arange(n * 3 * size * size, dtype=np.float64)
    return torch.from_numpy((0.9 * np.sin(2000 + k**2)).astype(np.float32).reshape(n, 3, size, size))


def summary(found: Tensor) -> np.ndarray:
    """Mean, root mean square, and 16 values at floor(j n / 16)."""
    values = found.flatten().double().numpy()
    return np.r_[values.mean(), np.sqrt((values**2).mean()), values[[j * len(values) // 16 for j in range(16)]]]


def check_features(kind: Kind, batch_norm: BatchNorm) -> None:
    part = projected(kind, batch_norm)
    with np.load(OFFICIAL / "features.npz") as stored:
        for size, n in ((64, 2), (256, 1)):
            with torch.inference_mode():
                maps = part.maps(image(n, size))
            seen = 224 if size < 256 else size
            assert [tuple(m.shape) for m in maps] == [(n, c, seen >> i + 1, seen >> i + 1) for i, c in enumerate(CHANNELS)]
            for scale, found in enumerate(maps):
                stated = stored[f"{batch_norm}_{kind}_{size}_scale{scale}"]
                np.testing.assert_allclose(summary(found), stated, atol=ATOL, rtol=0)


@pytest.mark.parametrize("batch_norm", get_args(BatchNorm))
def test_efficientnet_features_are_the_official_ones(batch_norm: BatchNorm) -> None:
    pytest.importorskip("timm", reason=NEEDS_TIMM)
    check_features("cnn", batch_norm)


@pytest.mark.slow
def test_vit_features_are_the_official_ones() -> None:
    pytest.importorskip("timm", reason=NEEDS_TIMM)
    check_fill("backbone_vit", backbone_weights("vit"))
    check_features("vit", "official")


def test_the_two_readings_of_the_batch_norms_are_far_apart() -> None:
    """The fixture alone: without this the test above could not tell them apart."""
    with np.load(OFFICIAL / "features.npz") as stored:
        apart = {
            kind: np.abs(stored[f"official_{kind}_64_scale0"] - stored[f"cleanbn_{kind}_64_scale0"]).max()
            for kind in ("vit", "cnn")
        }
    assert apart["vit"] == 0
    assert apart["cnn"] > 100 * ATOL


def test_the_probe_moves_every_batch_norm_by_a_tenth() -> None:
    pytest.importorskip("timm", reason=NEEDS_TIMM)
    check_fill("backbone_cnn", backbone_weights("cnn"))
    before = backbone_weights("cnn")
    after = ProjectedFeatures("cnn", backbone("cnn"), batch_norm="official").backbone.state_dict()
    # A black image gives the stem, which has no bias, zeros only.
    torch.testing.assert_close(after["bn1.running_mean"], 0.9 * before["bn1.running_mean"])
    torch.testing.assert_close(after["bn1.running_var"], 0.9 * before["bn1.running_var"])
    clean = ProjectedFeatures("cnn", backbone("cnn"), batch_norm="cleanbn").backbone.state_dict()
    assert torch.equal(clean["bn1.running_mean"], before["bn1.running_mean"])


@pytest.mark.parametrize("kind", get_args(Kind))
def test_the_random_part_has_the_official_names_and_its_seed_alone_draws_it(kind: Kind) -> None:
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first, again, other = (RandomProjection(kind, seed).state_dict() for seed in (5, 5, 6))
    assert torch.equal(torch.rand(3), expected)  # the global generator did not move
    check_fill(f"projection_{kind}", fill_all(first))
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not any(torch.equal(first[key], other[key]) for key in first)
    assert not any(p.requires_grad for p in RandomProjection(kind, 5).parameters())


def small_eyes(seed: int) -> Eyes:
    return Eyes({"cnn": ProjectedFeatures("cnn", backbone("cnn"), seed=seed)})


def test_a_restored_projection_gives_the_same_loss() -> None:
    pytest.importorskip("timm", reason=NEEDS_TIMM)
    mine, other = small_eyes(1), small_eyes(2)
    x = image(1, 64)
    before = mine.maps(x)[0]
    assert not torch.equal(before, other.maps(x)[0])
    other.load_projections(mine.projections())
    assert torch.equal(before, other.maps(x)[0])
    wrong = {**mine.projections(), "cnn.scratch.layer0_ccm.bias": torch.zeros(3)}
    with pytest.raises(UserError, match=r"do not fit \(1 of 16 tensors, first 'cnn.scratch.layer0_ccm.bias'\)"):
        other.load_projections(wrong)


def test_features_stay_frozen_and_pass_the_gradient_to_the_image() -> None:
    pytest.importorskip("timm", reason=NEEDS_TIMM)
    eyes = small_eyes(0).train()
    assert not eyes.each()[0].backbone.training
    x = image(1, 32).requires_grad_()
    sum(m.square().mean() for m in eyes.maps(x)).backward()
    assert x.grad is not None
    assert float(x.grad.norm()) > 0
    assert not any(p.requires_grad for p in eyes.parameters())


def test_without_timm_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(UserError, match=r"pip install .pagoda-bench\[eval\]"):
        timm_backbone("cnn")
