"""Networks of the baselines against the nearest classes of diffusers, of the same shapes: ratios, not seconds.

    python -m pytest -m slow tests/bench_baselines.py -s        prints the table of docs/baselines.md

A training step is a forward and a backward pass and Adam, in float32; an evaluation a forward pass as a sampler makes it. Both
sides run in turns, and the median ratio of CPU seconds counts. Parameters and operations differ by a few percent where
diffusers' class has no equal of a layer; what a backward pass needs is counted in bytes, each tensor once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from baselines.greedy.net import Core
from baselines.greedy.presets import PRESETS as GREEDY
from baselines.greedy.recipes import CoreConfig
from baselines.latent.net import Autoencoder
from baselines.latent.presets import PRESETS as LATENT
from baselines.latent.recipes import AutoencoderConfig
from pagoda_bench import resources
from pagoda_bench.nets.unet import UNet
from pagoda_bench.recipes.stages import UNetConfig
from pagoda_bench.tables import spec
from tests.ratios import ratio

pytestmark = pytest.mark.slow
BATCH = 32


@dataclass(frozen=True)
class Case:
    """Two networks and what each is called with."""

    ours: nn.Module
    theirs: nn.Module
    call_ours: Callable[[nn.Module], Tensor]
    call_theirs: Callable[[nn.Module], Tensor]


def unet(config: UNetConfig) -> Case:
    """The ADM U-Net, of pixel and latent diffusion, cascades and consistency models."""
    diffusers = pytest.importorskip("diffusers")
    widths = tuple(int(m * config.channels) for m in config.encoder)
    size, colours = config.resolution // config.patch, 3 * config.patch**2
    attended = [size >> level in config.attention for level in range(len(widths))]
    theirs = diffusers.UNet2DModel(
        sample_size=size,
        in_channels=colours,
        out_channels=colours,
        layers_per_block=config.blocks,
        block_out_channels=widths,
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attended),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attended)),
        downsample_type="resnet",
        upsample_type="resnet",
        attention_head_dim=config.head_channels,
        norm_num_groups=8,
        resnet_time_scale_shift="scale_shift",
        num_class_embeds=config.classes,
    )
    x, labels = torch.randn(BATCH, 3, config.resolution, config.resolution), torch.arange(BATCH) % config.classes
    folded, sigma = torch.pixel_unshuffle(x, config.patch), torch.linspace(0.1, 10, BATCH)
    return Case(
        UNet(config),
        theirs,
        lambda net: net(like(x, net), sigma, labels),
        lambda net: net(like(folded, net), sigma, class_labels=labels).sample,
    )


def pixel_diffusion() -> Case:
    table = spec.read(resources.folder("experiments") / "table1.yaml")
    return unet(spec.load_scale(table, "embedded").edm_model().net)


def latent_diffusion() -> Case:
    return unet(UNetConfig.load({"resolution": 16, **LATENT["embedded"]["diffusion"]["net"]}, "latent"))


def autoencoder() -> Case:
    """The same weights on both sides."""
    diffusers = pytest.importorskip("diffusers")
    config = AutoencoderConfig.load(LATENT["embedded"]["autoencoder"]["net"], "autoencoder")
    ours = Autoencoder(config)
    theirs = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(config.widths),
        up_block_types=("UpDecoderBlock2D",) * len(config.widths),
        block_out_channels=tuple(config.widths),
        layers_per_block=config.layers,
        latent_channels=config.latent,
        norm_num_groups=config.groups,
    )
    x = torch.randn(BATCH // 2, 3, 64, 64)
    return Case(
        ours,
        theirs,
        lambda net: net.decode(net.encode(like(x, net)).latents),  # type: ignore[operator,union-attr]
        lambda net: net.decode(net.encode(like(x, net)).latent_dist.mode()).sample,  # type: ignore[operator,union-attr]
    )


def transformer_core() -> Case:
    """Greedy growing's core against the transformer of DiT."""
    diffusers = pytest.importorskip("diffusers")
    config = CoreConfig.load(GREEDY["embedded"]["core"], "core")
    theirs = diffusers.DiTTransformer2DModel(
        num_attention_heads=config.heads,
        attention_head_dim=config.width // config.heads,
        in_channels=config.width,
        out_channels=config.width,
        num_layers=config.depth,
        sample_size=config.grid,
        patch_size=1,
        num_embeds_ada_norm=config.classes,
    )
    h, labels = torch.randn(BATCH, config.width, config.grid, config.grid), torch.arange(BATCH) % config.classes
    t = torch.linspace(-10, 10, BATCH)
    return Case(
        Core(config),
        theirs,
        lambda net: net(h, net.conditions(t, labels)),  # type: ignore[operator]
        lambda net: net(h, timestep=t, class_labels=labels).sample,
    )


CASES: dict[str, Callable[[], Case]] = {
    "U-Net of 64 px (EDM, cascades, consistency)": pixel_diffusion,
    "U-Net of 16 px latents (latent diffusion)": latent_diffusion,
    "autoencoder (latent diffusion)": autoencoder,
    "transformer core (greedy growing)": transformer_core,
}


def like(x: Tensor, net: nn.Module) -> Tensor:
    """In the memory format of the network, as samplers hand it over."""
    weight = next(p for p in net.parameters() if p.dim() == 4)
    last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return x.contiguous(memory_format=torch.channels_last) if last else x


def training_step(net: nn.Module, call: Callable[[nn.Module], Tensor]) -> Callable[[], None]:
    adam = torch.optim.Adam(net.parameters(), fused=True)

    def step() -> None:
        call(net).square().mean().backward()
        adam.step()
        adam.zero_grad()

    return step


def evaluation(net: nn.Module, call: Callable[[nn.Module], Tensor]) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode():
            call(net)

    return run


def operations(net: nn.Module, call: Callable[[nn.Module], Tensor]) -> float:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call(net)
    return counter.get_total_flops() / BATCH


def kept(net: nn.Module, call: Callable[[nn.Module], Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward pass, weights left out, each storage once."""
    weights = {p.untyped_storage().data_ptr() for p in net.parameters()}
    found: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            found[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = call(net)
    del out
    return sum(found.values())


@pytest.mark.parametrize("name", CASES)
def test_no_slower_than_the_public_counterpart(name: str) -> None:
    torch.manual_seed(0)
    case = CASES[name]()
    train = ratio(training_step(case.theirs, case.call_theirs), training_step(case.ours, case.call_ours))
    fast = case.ours.to(memory_format=torch.channels_last).eval()  # as `sampling` prepares a network on a CPU
    sample = ratio(evaluation(case.theirs.eval(), case.call_theirs), evaluation(fast, case.call_ours))
    sides = [
        (sum(p.numel() for p in net.parameters()) / 1e6, operations(net, call) / 1e6, kept(net, call) / 1e6)
        for net, call in ((case.ours, case.call_ours), (case.theirs, case.call_theirs))
    ]
    (p, f, m), (q, g, n) = sides
    print(
        f"\n| {name} | {train:.2f} | {sample:.2f} | {p:.2f} M / {q:.2f} M | {f:.0f} M / {g:.0f} M | {m:.0f} MB / {n:.0f} MB |"
    )
    assert train >= 1.0
    assert sample >= 1.0
