"""Networks that are built without memory: the values that they get are those of a network that was built whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from pagoda_bench.nets.features import load_half, save_half
from pagoda_bench.nets.growth import grow
from pagoda_bench.nets.unet import UNet
from pagoda_bench.recipes.stages import UNetConfig
from pagoda_bench.training import building, parallel

BASE = UNetConfig(resolution=8, channels=16, encoder=(1, 2), attention=(4, 8), grown_blocks=1)
GROWN = BASE.model_copy(update={"decoder": (1, 1, 2)})
WIDE = BASE.model_copy(update={"decoder": (2, 1, 2)})  # its head is no longer the base's
TALL = BASE.model_copy(update={"patch": 2, "encoder": (1, 1, 2), "resolution": 16, "attention": (4,)})


@pytest.fixture(autouse=True)
def _two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "world", lambda: 2)


def seeded(config: UNetConfig) -> UNet:
    torch.manual_seed(5)
    return UNet(config)


def unbuilt(config: UNetConfig) -> tuple[UNet, building.Values]:
    torch.manual_seed(5)
    net, values = building.build(config, True)
    assert values is not None
    assert {value.device.type for value in net.state_dict().values()} == {"meta"}
    return net, values


def filled(net: UNet, values: building.Values) -> dict[str, torch.Tensor]:
    net.to_empty(device="cpu")
    for value in net.state_dict().values():
        value.fill_(float("nan"))
    before = torch.get_rng_state()
    values(net)
    assert torch.equal(torch.get_rng_state(), before)
    return net.state_dict()


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    assert not [name for name in a if not torch.equal(a[name], b[name])]


@pytest.mark.parametrize("config", [BASE, GROWN, TALL], ids=["base", "grown", "tall"])
def test_initial_values_are_those_of_a_network_built_whole(config: UNetConfig) -> None:
    whole = seeded(config)
    follows = torch.get_rng_state()
    net, values = unbuilt(config)
    assert torch.equal(torch.get_rng_state(), follows), "what is built next is the same too"
    torch.manual_seed(99)  # what is drawn in between changes nothing
    same(filled(net, values), whole.state_dict())


@pytest.mark.parametrize("config", [GROWN, WIDE], ids=["other names", "other shapes too"])
def test_a_grown_network_has_the_tensors_of_the_file_and_its_own_new_ones(config: UNetConfig, tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_half({k: v + 0.1 * torch.randn_like(v) for k, v in UNet(BASE).state_dict().items()}, tmp_path / "model.safetensors")
    held = load_half(tmp_path / "model.safetensors")
    whole = seeded(config)
    fresh = grow(held, whole, train_from="new")
    net, values = unbuilt(config)
    base = building.weights(tmp_path / "model.safetensors", values)
    assert {k: (v.shape, v.dtype) for k, v in base.items()} == {k: (v.shape, v.dtype) for k, v in held.items()}
    assert grow(base, net, train_from="new") == fresh
    assert bool(set(fresh) & held.keys()) == (config is WIDE)
    assert fresh
    assert values.files.keys() == net.state_dict().keys() - set(fresh)
    same(filled(net, values), whole.state_dict())


def test_where_all_comes_from_a_file_nothing_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(1)
    save_half(UNet(BASE).state_dict(), tmp_path / "model.safetensors")
    net, values = unbuilt(BASE)
    net.load_state_dict(building.weights(tmp_path / "model.safetensors", values))
    monkeypatch.setattr(torch, "set_rng_state", lambda state: pytest.fail("drawn"))
    net.to_empty(device="cpu")
    values(net)
    same(net.state_dict(), load_half(tmp_path / "model.safetensors"))


def test_alone_or_not_to_be_sharded_a_network_is_built_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(5)
    net, values = building.build(BASE, False)
    assert values is None
    same(net.state_dict(), seeded(BASE).state_dict())
    save_half(net.state_dict(), tmp_path / "model.safetensors")
    same(building.weights(tmp_path / "model.safetensors", values), load_half(tmp_path / "model.safetensors"))
    monkeypatch.setattr(parallel, "world", lambda: 1)
    assert building.build(BASE, True)[1] is None


def test_a_layer_that_is_initialised_in_an_unknown_way_is_seen() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.place = nn.Parameter(0.02 * torch.randn(3))

    with torch.device("meta"), building._Noted() as noted:
        net = Odd()
    with pytest.raises(AssertionError, match="place"):
        building.Values(net, noted)
