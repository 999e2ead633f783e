"""LPIPS against the `lpips` package, on the same random VGG and the published factors."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch

from pagoda_bench.errors import UserError
from pagoda_bench.nets.lpips import CHANNELS, LPIPS, heads_path, load_heads, vgg_features


def test_lpips_is_the_packages() -> None:
    pytest.importorskip("torchvision", reason="needs torchvision: pip install torchvision")
    package = pytest.importorskip("lpips", reason="needs lpips: pip install lpips")
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package asks torchvision in an old way
        theirs = package.LPIPS(net="vgg", pnet_rand=True, verbose=False)
    features = vgg_features(pretrained=False)
    own = {}
    for k in range(1, 6):
        own |= getattr(theirs.net, f"slice{k}").state_dict()
    features.load_state_dict(own)
    mine = LPIPS(features, load_heads(heads_path()))
    a, b = torch.rand(2, 3, 32, 48) * 2 - 1, torch.rand(2, 3, 32, 48) * 2 - 1
    expected = theirs(a, b).flatten().detach()
    assert float(expected.min()) > 1e-3
    torch.testing.assert_close(mine(a, b), expected, rtol=1e-4, atol=1e-6)
    assert float(mine(a, a).abs().max()) == 0
    a.requires_grad_()
    gradient, wanted = (torch.autograd.grad(f(a, b).sum(), a)[0] for f in (mine, theirs))
    torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-7)
    assert not any(p.requires_grad for p in mine.parameters())


def test_other_factors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "vgg.pth"
    with pytest.raises(UserError, match="is no file"):
        load_heads(path)
    torch.save({f"lin{i}.model.1.weight": torch.ones(1, c, 1, 1) for i, c in enumerate(CHANNELS)}, path)
    with pytest.raises(UserError, match=r"not vgg.pth of version 0.1 \(SHA-256"):
        load_heads(path)


def test_without_the_factors_one_line_says_where_they_come_from(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PAGODA_BENCH_LPIPS", raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match="PAGODA_BENCH_LPIPS"):
        heads_path()
    monkeypatch.setenv("PAGODA_BENCH_LPIPS", str(tmp_path))
    assert heads_path() == tmp_path
