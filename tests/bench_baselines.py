"""Networks of the baselines against the nearest public classes, of the same shapes: ratios, not seconds.

    python -m pytest -m slow tests/bench_baselines.py -s        prints rows of the table of docs/baselines.md

A training step is a forward and a backward pass and an update, in float32: ours with the check of the gradients that runners
make, theirs by the fastest Adam of PyTorch and nothing else. An evaluation is a forward pass as a sampler makes it. Both sides
run in turns, and the median ratio of CPU seconds counts. Whole steps: bench_steps.py; samplers:
bench_samplers.py.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from baselines.greedy.net import Core, GreedyNet
from baselines.latent.net import Autoencoder
from pagoda_bench.nets.unet import UNet
from pagoda_bench.recipes.stages import UNetConfig
from tests.peers import (
    CLASSES,
    INSTALL,
    Case,
    DiffusersUNet,
    Side,
    compare,
    diffusers_coder,
    generator,
    lucidrains_uvit,
    parameters,
    plain_step,
    step,
)

pytestmark = pytest.mark.slow
BATCH = 16
Call = Callable[[nn.Module], Tensor]


def evaluation(net: nn.Module, call: Call) -> Callable[[], None]:
    def run() -> None:
        with torch.inference_mode():
            call(net)

    return run


def like(x: Tensor, net: nn.Module) -> Tensor:
    """In the memory format of the network, as samplers hand it over."""
    weight = next(p for p in net.parameters() if p.dim() == 4)
    last = weight.is_contiguous(memory_format=torch.channels_last) and not weight.is_contiguous()
    return x.contiguous(memory_format=torch.channels_last) if last else x


def network(ours: nn.Module, theirs: nn.Module, call: Call, call_theirs: Call, images: int = BATCH) -> dict[str, Case]:
    """A training step on any loss, and an evaluation, for which ours is prepared as `sampling` does it on a CPU."""
    sizes = parameters(ours), parameters(theirs)
    trained = Case(
        Side(step(ours.train(), lambda: call(ours).square().mean()), sizes[0]),
        Side(plain_step(theirs.train(), lambda: call_theirs(theirs).square().mean()), sizes[1]),
        images,
    )
    fast = copy.deepcopy(ours).to(memory_format=torch.channels_last).eval()
    still = copy.deepcopy(theirs).eval()
    evaluated = Case(Side(evaluation(fast, call), sizes[0]), Side(evaluation(still, call_theirs), sizes[1]), images)
    return {"training step": trained, "evaluation": evaluated}


def unet(config: UNetConfig) -> dict[str, Case]:
    x, labels = torch.randn(BATCH, 3, config.resolution, config.resolution), torch.arange(BATCH) % config.classes
    sigma = torch.linspace(0.1, 10, BATCH)
    call: Call = lambda net: net(like(x, net), sigma, labels)  # noqa: E731
    return network(UNet(config), DiffusersUNet(config), call, call)


def pixel_diffusion() -> dict[str, Case]:
    return unet(generator("edm", 64).of.net)  # type: ignore[attr-defined]


def latent_diffusion() -> dict[str, Case]:
    return unet(generator("latent", 64).of.net)  # type: ignore[attr-defined]


def autoencoder() -> dict[str, Case]:
    config = generator("latent", 64).through.net  # type: ignore[attr-defined]
    x = torch.randn(BATCH // 2, 3, 64, 64)
    return network(
        Autoencoder(config),
        diffusers_coder(config),
        lambda net: net.decode(net.encode(like(x, net)).latents),  # type: ignore[operator,union-attr]
        lambda net: net.decode(net.encode(like(x, net)).latent_dist.mode()).sample,  # type: ignore[operator,union-attr]
        len(x),
    )


def transformer_core() -> dict[str, Case]:
    """Greedy growing's core against the transformer of DiT."""
    diffusers = pytest.importorskip("diffusers", reason=INSTALL)
    config = generator("greedy", 64).of.core  # type: ignore[attr-defined]
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
    return network(
        Core(config),
        theirs,
        lambda net: net(h, net.conditions(t, labels)),  # type: ignore[operator]
        lambda net: net(h, timestep=t, class_labels=labels).sample,
    )


def uvit() -> dict[str, Case]:
    """Greedy growing's whole network, end to end: a frozen core would spare ours a part of a step."""
    model: Any = generator("greedy", 64).of  # type: ignore[attr-defined]
    z, logsnr, labels = torch.randn(BATCH, 3, 64, 64), torch.linspace(-5, 5, BATCH), torch.arange(BATCH) % CLASSES
    return network(
        GreedyNet(model.core, model.outer),
        lucidrains_uvit(),
        lambda net: net(like(z, net), logsnr, labels),
        lambda net: net(z, logsnr),
    )


CASES: dict[str, Callable[[], dict[str, Case]]] = {
    "U-Net of 64 px (EDM)": pixel_diffusion,
    "U-Net of 16 px latents (latent diffusion)": latent_diffusion,
    "autoencoder (latent diffusion)": autoencoder,
    "transformer core (greedy growing)": transformer_core,
    "U-ViT of 64 px (greedy growing)": uvit,
}


@pytest.mark.parametrize("name", CASES)
def test_no_slower_than_the_public_counterpart(name: str) -> None:
    torch.manual_seed(0)
    found = {what: compare(f"{name}: {what}", case) for what, case in CASES[name]().items()}
    assert min(found.values()) >= 1.0, found
