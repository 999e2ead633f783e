"""Reading weights: whole or not at all, and without a second copy in memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from pagoda_bench.errors import UserError
from pagoda_bench.nets.features import load_half, save_half
from pagoda_bench.nets.weights import load_file_whole


def network(seed: int, width: int = 8) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(*(nn.Linear(width, width) for _ in range(4)), nn.BatchNorm1d(width))


def halved(net: nn.Module) -> dict[str, Tensor]:
    return {k: v.half().float() if v.is_floating_point() else v for k, v in net.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_a_file_is_loaded_as_float32(tmp_path: Path) -> None:
    source, net = network(0), network(1)
    save_half(source.state_dict(), tmp_path / "w.safetensors")
    assert equal(load_half(tmp_path / "w.safetensors"), halved(source))
    load_file_whole(net, tmp_path / "w.safetensors")
    assert equal(dict(net.state_dict()), halved(source))
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("2.bias"), "lacks 2.bias;"),
        (lambda state: state.update(more=torch.zeros(1)), "has more, which the network does not;"),
        (lambda state: state.update({"3.weight": torch.zeros(8, 7)}), r"holds 3.weight as \(8, 7\), not \(8, 8\);"),
        (lambda state: state.clear(), r"lacks 0.weight \(and 12 more such\);"),
    ],
)
def test_a_file_that_does_not_fit_changes_nothing(change: object, says: str, tmp_path: Path) -> None:
    assert callable(change)
    net = network(1)
    before, state = {k: v.clone() for k, v in net.state_dict().items()}, dict(network(0).state_dict())
    change(state)
    save_half(state, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match=says):
        load_file_whole(net, tmp_path / "w.safetensors")
    assert equal(before, dict(net.state_dict()))


@pytest.mark.parametrize("damage", ["missing", "empty", "cut"])
def test_a_file_that_cannot_be_read_changes_nothing(damage: str, tmp_path: Path) -> None:
    path, net = tmp_path / "w.safetensors", network(1)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    save_half(network(0).state_dict(), path)
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: 0 if damage == "empty" else -10])
    with pytest.raises(UserError, match="cannot be read"):
        load_file_whole(net, path)
    assert equal(before, dict(net.state_dict()))


def test_loading_takes_no_memory_beside_the_networks(tmp_path: Path) -> None:
    net = network(1, 256)
    save_half(network(0, 256).state_dict(), tmp_path / "w.safetensors")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        load_file_whole(net, tmp_path / "w.safetensors")
    largest = 4 * max(p.numel() for p in net.parameters())
    taken = sum(event.self_cpu_memory_usage for event in seen.key_averages() if event.self_cpu_memory_usage > 0)
    assert taken <= largest
