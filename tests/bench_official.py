"""Speed against the official network, on the same weights, batch and device: ratios, not seconds.

The official code is not part of this project. Where a checkout of github.com/sony/pagoda (e6c850d) is at hand:

    PAGODA_OFFICIAL=path/to/checkout python -m pytest -m slow tests/bench_official.py -s

Its network file does not compile as committed (a `return` at module level at its end), so it is read without that last block.
Its attention needs flash-attn on CUDA; PyTorch's exact attention stands in, on the same packed layout, which is the fastest
there is on a CPU. Both sides run in turns, and the median ratio of CPU seconds counts.
"""

from __future__ import annotations

import os
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pagoda_bench.diffusion.edm import SIGMA_MAX, one_step, training_loss
from pagoda_bench.nets.unet import UNet
from pagoda_bench.nets.winograd import winograd
from pagoda_bench.recipes.stages import UNetConfig
from pagoda_bench.training.loop import autocast
from tests.official import FULL
from tests.ratios import ratio

pytestmark = pytest.mark.slow


class Packed(nn.Module):
    """Attention on (N, 3 * heads * C, T), packed as (query | key | value), each (head, channel), as flash-attn takes it."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, qkv: Tensor) -> Tensor:
        n, _, t = qkv.shape
        q, k, v = qkv.view(n, 3, self.heads, -1, t).transpose(3, 4).unbind(1)
        return F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(n, -1, t)


@pytest.fixture(scope="module")
def official() -> Iterator[Any]:
    place = os.environ.get("PAGODA_OFFICIAL")
    if not place:
        pytest.skip("PAGODA_OFFICIAL names no checkout of github.com/sony/pagoda")
    source = (Path(place) / "cm" / "unet.py").read_text().partition('if __name__ == "__main__":')[0]
    module = types.ModuleType("cm.unet")
    module.__package__ = "cm"
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(place)
        # Imported there for what is not called here, and with dependencies of its own.
        conversions = ("convert_module_to_f16", "convert_module_to_f32")
        for name, used in {"einops": ("rearrange",), "cm.fp16_util": conversions}.items():
            stand_in = types.ModuleType(name)
            vars(stand_in).update(dict.fromkeys(used))
            patch.setitem(sys.modules, name, stand_in)
        exec(compile(source, "cm/unet.py", "exec"), module.__dict__)
        yield module


def pair(official: Any, config: UNetConfig) -> tuple[nn.Module, UNet]:
    """The official network and ours with the same weights, none of them zero."""
    decoder = config.decoder or config.encoder
    with torch.device("meta"):
        theirs = official.UNetModel(
            input_size=config.resolution,
            output_size=config.output_resolution,
            model_channels_high=config.channels,
            use_scale_shift_norm_high=config.scale_shift_grown,
            num_res_blocks_high=config.grown_blocks,
            encoder_channel_mult=config.encoder,
            decoder_channel_mult=decoder,
            attention_resolutions=tuple(config.resolution // size for size in config.attention),
            in_channels=3,
            model_channels=config.channels,
            out_channels=3,
            num_res_blocks=config.blocks,
            num_classes=config.classes,
            num_head_channels=config.head_channels,
            use_scale_shift_norm=True,
            resblock_updown=True,
            attention_type="exact",
        )
    for block in theirs.modules():
        if isinstance(block, official.AttentionBlock):
            block.attention, block.use_attention_checkpoint = Packed(block.num_heads), False
    theirs.to_empty(device="cpu")
    torch.manual_seed(0)
    with torch.no_grad():
        for p in theirs.parameters():
            p.normal_(std=0.02)
    with torch.device("meta"):
        ours = UNet(config)
    ours.load_state_dict({k: v.clone() for k, v in theirs.state_dict().items()}, assign=True)
    return theirs, ours


def fast(net: UNet) -> UNet:
    """As sampling and inversion prepare a network on a CPU."""
    return winograd(net.to(memory_format=torch.channels_last).eval().requires_grad_(False))


def test_one_step_at_512(official: Any) -> None:
    theirs, ours = pair(official, FULL["64to512_consistent"])
    ours = fast(ours)
    z, labels = SIGMA_MAX * torch.randn(1, 3, 64, 64), torch.tensor([3])
    with torch.inference_mode():
        a, b = (one_step(net, z, labels) for net in (theirs, ours))
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
        found = ratio(lambda: one_step(theirs, z, labels), lambda: one_step(ours, z, labels))
    print(f"\none step at 512 px: {found:.2f}")
    assert found > 1.0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_evaluations_of_the_teacher(official: Any, precision: str) -> None:
    """What an inversion consists of. The official one makes 79 evaluations of it, ours 78. With `pairs.precision: bf16` ours is
    measured against theirs in float32, the only way that theirs runs on a CPU."""
    theirs, ours = pair(official, FULL["64to64"])
    ours = fast(ours)
    x, sigma, labels = torch.randn(2, 3, 64, 64), torch.tensor([0.1, 20.0]), torch.arange(2)

    def run() -> Tensor:
        with autocast(precision):
            return ours(x, sigma, labels).float()

    near = {"rtol": 1e-3, "atol": 1e-4} if precision == "fp32" else {"rtol": 0.1, "atol": 0.05}
    with torch.inference_mode():
        torch.testing.assert_close(theirs(x, sigma, labels), run(), **near)
        found = ratio(lambda: theirs(x, sigma, labels), run)
    print(f"\nevaluations at 64 px, {precision}: {found:.2f}; an inversion: {found * 79 / 78:.2f}")
    assert found * 79 / 78 > 1.5


def test_step_of_the_teacher(official: Any) -> None:
    theirs, ours = pair(official, FULL["64to64"])
    image, noise, sigma, labels = *torch.randn(2, 2, 3, 64, 64), torch.tensor([0.5, 5.0]), torch.arange(2)

    def step(net: nn.Module) -> Tensor:
        net.zero_grad(set_to_none=True)
        loss = training_loss(net, image, labels, noise, sigma).mean()
        loss.backward()
        return loss.detach()

    torch.testing.assert_close(step(theirs), step(ours), rtol=1e-3, atol=1e-4)
    found = ratio(lambda: step(theirs), lambda: step(ours))
    print(f"\nstep of the teacher at 64 px: {found:.2f}")
    assert found > 1.0
