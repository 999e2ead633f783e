"""Speed of the Stage 3 step against the official way, on the same networks, batch and device: a ratio, not seconds.

The official loop runs the whole grown network for the pairs, for the fakes of the generator's turn, and once more for those of
the discriminator's turn, and walks back to the last layer twice for the adaptive weight. Here the frozen part has no graph,
the fakes serve both turns, and one pass back serves the weight too. Run with: pytest -m slow tests/bench_stage3.py -s
"""

from __future__ import annotations

import pytest
import torch

from pagoda_bench.diffusion.edm import SIGMA_MAX
from pagoda_bench.nets.growth import train_start, trainable_keys
from pagoda_bench.nets.multiscale_discriminator import MultiscaleDiscriminator
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda.grow import Frozen
from pagoda_bench.pagoda.looks import ProjectedLook, build_eyes
from pagoda_bench.pagoda.losses import Term, accumulate, discriminator_loss, generator_loss, last_layer
from pagoda_bench.pagoda.official_step import discriminator_step, generator_step
from pagoda_bench.recipes.stages import ProjectedConfig, UNetConfig
from tests.ratios import ratio
from tests.test_projection import NEEDS_TIMM

BATCH = 4
# Widths and depths of the published base in small: the frozen part is most of the network, as there.
NET = UNetConfig(
    resolution=32,
    channels=64,
    encoder=(1, 2, 3),
    decoder=(1, 1, 2, 3),
    blocks=2,
    attention=(16, 8),
    head_channels=32,
    classes=5,
)


@pytest.mark.slow
def test_the_step_against_the_official_way() -> None:
    pytest.importorskip("timm", reason=NEEDS_TIMM)
    torch.manual_seed(0)
    net = UNet(NET)
    trained = set(trainable_keys(net, "new"))
    for name, p in net.named_parameters():
        p.requires_grad_(name in trained)
    eyes = build_eyes(ProjectedConfig(backbones=("cnn",), weights="random"))
    judge, look = MultiscaleDiscriminator(5, kinds=("cnn",)), ProjectedLook(eyes, augmented=True, eps=1e-10)
    image, labels = torch.rand(BATCH, 3, 64, 64) * 2 - 1, torch.arange(BATCH) % 5
    z, noise = torch.randn(2, BATCH, 3, 32, 32)
    z = z * SIGMA_MAX
    generate, at = Frozen(net, train_start(net, "new")), last_layer(net)

    def official() -> None:
        judge.requires_grad_(False)
        generator_step(net, judge, eyes, (image, z, labels), noise).loss.backward()
        judge.requires_grad_(True)
        discriminator_step(net, judge, eyes, (image, labels), noise).loss.backward()

    def ours() -> None:
        rebuilt, fake = (generate(latent, labels) for latent in (z, SIGMA_MAX * noise))
        l_rec = look.distance(rebuilt, image, look.distance_draws(BATCH, 64)).mean()
        maps = look.maps(fake, look.draws(BATCH, 64))
        terms = [Term(rebuilt, l_rec), Term(fake, generator_loss(judge(maps, labels), "hinge"), 1.0, True)]
        accumulate(terms, [p for p in net.parameters() if p.requires_grad], at)
        with torch.no_grad():
            real = look.maps(image, look.draws(BATCH, 64))
        logits = judge([m.detach() for m in maps], labels)
        discriminator_loss(judge(real, labels), logits, "hinge").backward()

    found = ratio(official, ours)
    print(f"\nStage 3 step, official way / ours: {found:.2f}")
    assert found > 1.0
