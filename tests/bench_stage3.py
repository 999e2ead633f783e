"""Speed of the Stage 3 step against the official way, on the same networks, batch and device: a ratio, not seconds.

The official loop runs the whole grown network for the pairs, for the fakes of the generator's turn, and once more for those of
the discriminator's turn, and walks back to the last layer twice for the adaptive weight. Here the frozen part has no graph,
the fakes serve both turns, and one pass back serves the weight too. Run with: pytest -m slow tests/bench_stage3.py -s
(the published size, 64 to 128 px at batch 1, takes some minutes a round and 8 GB).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from pagoda_bench.diffusion.edm import SIGMA_MAX
from pagoda_bench.nets.growth import TrainFrom, train_start, trainable_keys
from pagoda_bench.nets.multiscale_discriminator import MultiscaleDiscriminator
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda.grow import Frozen
from pagoda_bench.pagoda.looks import ProjectedLook, build_eyes
from pagoda_bench.pagoda.losses import Term, accumulate, discriminator_loss, generator_loss, last_layer
from pagoda_bench.pagoda.official_step import discriminator_step, generator_step
from pagoda_bench.recipes.losses import ProjectedConfig
from pagoda_bench.recipes.stages import UNetConfig
from tests.official import FULL
from tests.ratios import ratio
from tests.test_projection import NEEDS_TIMM

# Widths and depths of the published base in small: the frozen part is most of the network, as there.
SMALL = UNetConfig(
    resolution=32,
    channels=64,
    encoder=(1, 2, 3),
    decoder=(1, 1, 2, 3),
    blocks=2,
    attention=(16, 8),
    head_channels=32,
    classes=5,
)


def sides(config: UNetConfig, train_from: TrainFrom, batch: int, cached: bool) -> tuple[Callable[[], None], Callable[[], None]]:
    """A step in the official order of passes, and one of ours, with the same weights and one set of judges; `cached`: the
    frozen part's states of the pairs are there already (`Grow.cache`)."""
    torch.manual_seed(0)
    with torch.device("meta"):
        theirs, net = UNet(config), UNet(config)
    theirs.to_empty(device="cpu")
    net.load_state_dict(theirs.state_dict(), assign=True)  # the same memory; what is frozen computes as `Frozen` lets it
    trained = set(trainable_keys(net, train_from))
    with torch.no_grad():
        for one in (theirs, net):
            for name, p in one.named_parameters():
                p.normal_(std=0.02).requires_grad_(name in trained)
    eyes = build_eyes(ProjectedConfig(backbones=("cnn",), weights="random"))
    judge, look = MultiscaleDiscriminator(5, kinds=("cnn",)), ProjectedLook(eyes, augmented=True, eps=1e-10)
    low, high = config.resolution, config.output_resolution
    image, labels = torch.rand(batch, 3, high, high) * 2 - 1, torch.arange(batch) % 5
    z, noise = torch.randn(2, batch, 3, low, low)
    z = z * SIGMA_MAX
    generate, at = Frozen(net, train_start(net, train_from)), last_layer(net)
    rows = np.arange(batch) if cached else None
    generate.kept = generate._state(z, labels) if cached else None

    def official() -> None:
        judge.requires_grad_(False)
        generator_step(theirs, judge, eyes, (image, z, labels), noise).loss.backward()
        judge.requires_grad_(True)
        discriminator_step(theirs, judge, eyes, (image, labels), noise).loss.backward()

    def ours() -> None:
        rebuilt, fake = generate(z, labels, rows), generate(SIGMA_MAX * noise, labels)
        l_rec = look.distance(rebuilt, image, look.distance_draws(batch, high)).mean()
        maps = look.maps(fake, look.draws(batch, high))
        terms = [Term(rebuilt, l_rec), Term(fake, generator_loss(judge(maps, labels), "hinge"), 1.0, True)]
        accumulate(terms, [p for p in net.parameters() if p.requires_grad], at)
        with torch.no_grad():
            real = look.maps(image, look.draws(batch, high))
        logits = judge([m.detach() for m in maps], labels)
        discriminator_loss(judge(real, labels), logits, "hinge").backward()

    return official, ours


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True], ids=["", "cached"])
@pytest.mark.parametrize(("config", "train_from", "batch"), [(SMALL, "new", 4), (FULL["64to128"], 9, 1)], ids=["small", "full"])
def test_the_step_against_the_official_way(config: UNetConfig, train_from: TrainFrom, batch: int, cached: bool) -> None:
    pytest.importorskip("timm", reason=NEEDS_TIMM)
    found = ratio(*sides(config, train_from, batch, cached))
    print(f"\nStage 3 step, official way / ours: {found:.2f}")
    assert found > 1.0
