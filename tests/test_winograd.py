"""Winograd's convolution against the direct one in float64, and where it must stand back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pagoda_bench.nets import winograd
from pagoda_bench.nets.unet import UNet
from pagoda_bench.recipes.stages import UNetConfig
from tests.official import ATOL, FULL, NETS, arrays, filled_net, largest, one_step

EVEN = st.integers(1, 5).map(lambda k: 2 * k)


def exact(x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
    return F.conv2d(x.double(), w.double(), None if bias is None else bias.double(), padding=1)


@given(st.integers(1, 3), st.integers(1, 9), st.integers(1, 9), EVEN, EVEN, st.booleans(), st.sampled_from([1, 2**12, 2**24]))
@settings(deadline=None)
def test_it_is_the_convolution(n: int, wide: int, to: int, h: int, w: int, biased: bool, working_set: int) -> None:
    """In float64 to the last digits, whatever fits into a part."""
    g = torch.Generator().manual_seed(n + 10 * h + 100 * w)
    x, weight = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((n, wide, h, w), (to, wide, 3, 3)))
    bias = torch.randn(to, generator=g, dtype=torch.float64) if biased else None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "WORKING_SET", working_set)
        found = winograd.conv2d(x, winograd.transform_weight(weight), bias)
    torch.testing.assert_close(found, exact(x, weight, bias), rtol=1e-12, atol=1e-12)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_in_float32_it_is_as_exact_as_the_direct_convolution() -> None:
    """Errors of both against float64, at a width of the published networks; values are of unit size."""
    torch.manual_seed(0)
    x, weight, bias = torch.randn(2, 192, 16, 16), torch.randn(192, 192, 3, 3) / 192**0.5 / 3, torch.randn(192)
    truth = exact(x, weight, bias)
    mine = (winograd.conv2d(x, winograd.transform_weight(weight), bias) - truth).abs().max()
    direct = (F.conv2d(x, weight, bias, padding=1) - truth).abs().max()
    assert mine < 1e-5
    assert mine < 3 * direct


def test_tiles_must_be_whole() -> None:
    with pytest.raises(ValueError, match="5x4"):
        winograd.conv2d(torch.zeros(1, 2, 5, 4), torch.zeros(16, 2, 2))


@pytest.mark.parametrize("name", NETS)
def test_official_fixtures(name: str) -> None:
    """The official outputs, where every convolution that can be is changed. These networks are narrow (32 and 64 channels), so
    that direct sums are short and round less: 9e-5 was measured, where the tolerance without it is 2e-5."""
    case, net = arrays(f"tiny_{name}"), winograd.winograd(filled_net(NETS[name]).requires_grad_(False), least=1)
    with used() as calls:
        assert largest(one_step(net, case["z"], case["labels"]), case["out"]) < 7 * ATOL
    assert len(calls) > 20


@contextmanager
def used() -> Iterator[list[torch.Size]]:
    """The shapes that are convolved by Winograd's way."""
    calls: list[torch.Size] = []
    plain = winograd.WinogradConv2d._applies

    def noted(own: winograd.WinogradConv2d, x: Tensor) -> bool:
        if found := plain(own, x):
            calls.append(x.shape)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd.WinogradConv2d, "_applies", noted)
        yield calls


def layer(**how: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return winograd.winograd(nn.Conv2d(8, 8, **{"kernel_size": 3, "padding": 1, **how}).requires_grad_(False), least=8)


OTHERS: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"stride": 2},
    {"padding": 0},
    {"dilation": 2},
    {"groups": 2},
    {"padding_mode": "circular"},
]


@pytest.mark.parametrize("how", OTHERS)
def test_other_convolutions_are_left_alone(how: dict[str, Any]) -> None:
    assert type(layer(**how)) is nn.Conv2d


def test_it_stands_back_where_it_must() -> None:
    mine, plain, x = layer(), nn.Conv2d(8, 8, 3, padding=1), torch.randn(2, 8, 6, 6)
    plain.load_state_dict(mine.state_dict())
    with used() as calls:
        assert torch.equal(mine(x), plain(x))  # a graph
        with torch.no_grad():
            assert torch.equal(mine(x[:, :, 1:]), plain(x[:, :, 1:]))  # an odd size
            with torch.autocast("cpu", torch.bfloat16):
                assert torch.equal(mine(x), plain(x))
            assert torch.equal(mine.double()(x.double()), plain.double()(x.double()))
        assert not calls
        with torch.no_grad():
            torch.testing.assert_close(mine.float()(x), plain.float()(x))
        assert calls == [x.shape]


def test_counted_work_is_that_of_the_direct_convolution() -> None:
    mine, plain, x = layer(), nn.Conv2d(8, 8, 3, padding=1), torch.randn(2, 8, 4, 6)
    counts = []
    for one in (mine, plain):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            one(x)
        counts.append(counter.get_total_flops())
    assert counts[0] == counts[1] == 2 * 9 * 8 * 8 * 2 * 4 * 6


def test_changed_weights_are_seen() -> None:
    mine, x = layer(), torch.randn(1, 8, 4, 4)
    with torch.inference_mode():
        mine(x)
    with torch.no_grad():
        mine.weight.mul_(2)
        torch.testing.assert_close(mine(x), F.conv2d(x, mine.weight, mine.bias, padding=1))
    mine.load_state_dict({"weight": torch.ones(8, 8, 3, 3), "bias": torch.zeros(8)})
    with torch.no_grad():
        torch.testing.assert_close(mine(torch.ones(1, 8, 4, 4))[0, 0, 1, 1], torch.tensor(72.0))


def test_a_changed_network_keeps_its_names_and_narrow_ones_are_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks of the embedded scale have at most 80 channels, so their outputs stay what they were, bit by bit."""
    with torch.device("meta"):
        net = UNet(FULL["64to128"]).requires_grad_(False)
    keys = list(net.state_dict())
    monkeypatch.setenv(winograd.SWITCH, "off")
    assert not changed(winograd.winograd(net))
    monkeypatch.delenv(winograd.SWITCH)
    assert len(changed(winograd.winograd(net))) > 50
    assert list(net.state_dict()) == keys
    with torch.device("meta"):
        narrow = UNet(UNetConfig(resolution=8, channels=80, encoder=(1, 1), head_channels=16)).requires_grad_(False)
        trained = UNet(FULL["64to64"])
    assert not changed(winograd.winograd(narrow))
    assert not changed(winograd.winograd(trained))


def changed(net: nn.Module) -> list[nn.Module]:
    return [m for m in net.modules() if isinstance(m, winograd.WinogradConv2d)]
