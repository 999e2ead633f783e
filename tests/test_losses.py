"""PaGoDA's losses and augmentation against outputs of the official implementation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from pagoda_bench.nets import augment
from pagoda_bench.nets.discriminator import ProjectedDiscriminator, hinge_discriminator
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda.losses import (
    Term,
    accumulate,
    adaptive_weight,
    discriminator_loss,
    feature_distance,
    generator_loss,
    last_layer,
)
from tests.official import OFFICIAL, TINY, fill


def read(name: str) -> dict[str, Tensor]:
    with np.load(OFFICIAL / name) as file:
        return {k: torch.from_numpy(file[k]) for k in file.files if file[k].dtype.kind in "fi"}


def test_feature_distance_is_the_official_one() -> None:
    toy = read("distance_toy.npz")
    estimate = [toy[k].requires_grad_() for k in ("est_a0", "est_a1", "est_b0", "est_b1")]
    loss = feature_distance(estimate, [toy[k] for k in ("tar_a0", "tar_a1", "tar_b0", "tar_b1")])
    torch.testing.assert_close(loss, toy["loss"], atol=1e-5, rtol=0)
    loss.mean().backward()
    torch.testing.assert_close(estimate[0].grad, toy["grad_a0"], atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(estimate[3].grad, toy["grad_b1"], atol=1e-6, rtol=1e-4)


def test_feature_distance_survives_a_place_where_nothing_fires() -> None:
    before = torch.tensor([-1.0, 2.0]).view(1, 2, 1, 1).expand(1, 2, 2, 1).clone()
    before[:, :, 0] = -1.0
    before.requires_grad_()
    feature_distance([before.relu()], [torch.ones(1, 2, 2, 1)]).sum().backward()
    assert before.grad is not None
    assert torch.isfinite(before.grad).all()


def test_hinge_is_the_official_one() -> None:
    toy = read("losses_toy.npz")
    found = hinge_discriminator(toy["real_logits"], toy["fake_logits"])
    torch.testing.assert_close(found, toy["hinge_d_loss"], atol=1e-6, rtol=0)


@pytest.mark.parametrize("row", range(4))
def test_adaptive_weight_and_gradients_are_the_official_ones(row: int) -> None:
    toy = read("losses_toy.npz")
    scale, _, generator_loss, rec_norm, gen_norm, _, weight, _ = toy["adaptive"][row].tolist()
    net = UNet(TINY)
    net.load_state_dict(fill(net.state_dict()))
    c_in = 1 / (80.0**2 + 0.25) ** 0.5
    rebuilt = net(c_in * toy["z"], 80.0, toy["labels"])
    fake = net(c_in * 80 * toy["generator_noise"], 80.0, toy["labels"])
    l_rec = (rebuilt - toy["image"]).square().mean()
    l_adv = -(scale * toy["logit_pattern"] * fake).mean()
    np.testing.assert_allclose(float(l_adv.detach()), generator_loss, rtol=1e-3)
    at = last_layer(net)
    norms = [torch.autograd.grad(loss, at, retain_graph=True)[0] for loss in (l_rec, l_adv)]
    np.testing.assert_allclose([float(n.norm()) for n in norms], [rec_norm, gen_norm], rtol=2e-3)
    np.testing.assert_allclose(float(adaptive_weight(*norms)), weight, rtol=2e-3)
    whole = torch.autograd.grad(l_rec + weight * l_adv, at, retain_graph=True)[0]
    _, factor = accumulate([Term(rebuilt, l_rec), Term(fake, l_adv, adaptive=True)], list(net.parameters()), at)
    np.testing.assert_allclose(factor, weight, rtol=2e-3)
    torch.testing.assert_close(at.grad, whole, atol=1e-5, rtol=5e-3)


def test_last_layer_has_the_official_name() -> None:
    net = UNet(TINY)
    with np.load(OFFICIAL / "losses_toy.npz") as toy:
        assert dict(net.named_parameters())[str(toy["last_layer"])] is last_layer(net)


def test_augmentation_is_the_official_one() -> None:
    d = read("diffaug.npz")
    draws = augment.Draws(
        d["brightness"], d["saturation"], d["contrast"], d["translation_x"], d["translation_y"], d["offset_x"], d["offset_y"]
    )
    color = augment.color(d["image"], draws)
    torch.testing.assert_close(color, d["after_color"], atol=2e-6, rtol=0)
    torch.testing.assert_close(augment.translate(color, draws), d["after_translation"], atol=2e-6, rtol=0)
    torch.testing.assert_close(augment.augment(d["image"], draws), d["out"], atol=2e-6, rtol=0)


@pytest.mark.parametrize("size", [8, 16, 33])
def test_draws_stay_in_their_ranges(size: int) -> None:
    torch.manual_seed(0)
    d = augment.draw(4000, size)
    shift = round(size / 8)
    assert (d.rows.min(), d.rows.max()) == (-shift, shift)
    assert d.brightness.abs().max() <= 0.5
    assert 0 <= d.saturation.min() <= d.saturation.max() <= 2
    assert 0.5 <= d.contrast.min() <= d.contrast.max() <= 1.5
    assert 0 <= d.cut_row.min() <= d.cut_row.max() <= size


def test_discriminator_is_seeded_and_conditional() -> None:
    torch.manual_seed(0)
    maps = [torch.randn(3, c, s, s) for c, s in ((8, 16), (12, 8), (16, 4))]
    nets = []
    for _ in range(2):
        torch.manual_seed(1)
        nets.append(ProjectedDiscriminator((8, 12, 16), classes=4, width=8, seed=5).eval())
    labels = torch.tensor([0, 1, 2])
    first, second = (net(maps, labels) for net in nets)
    assert torch.equal(first, second)
    assert not torch.equal(first, nets[0](maps, torch.tensor([3, 3, 3])))
    assert sum(p.requires_grad for p in nets[0].mix_channels.parameters()) == 0
    other = ProjectedDiscriminator((8, 12, 16), classes=4, width=8, seed=6)
    assert not torch.equal(other.mix_channels[0].weight, nets[0].mix_channels[0].weight)


@pytest.mark.parametrize("deep", [False, True])
def test_a_deep_discriminator_has_as_many_logits_at_every_scale_and_sees_a_quarter(deep: bool) -> None:
    """Of the finest map, 32x32 places, the corner logit of a light head sees 8x8, that of a deep head 16x16."""
    torch.manual_seed(0)
    net = ProjectedDiscriminator((8, 12, 16, 16), classes=4, width=8, seed=5, deep=deep).eval()
    maps = [torch.randn(2, c, s, s) for c, s in ((8, 32), (12, 16), (16, 8), (16, 4))]
    labels = torch.tensor([0, 3])
    logits = net(maps, labels)
    assert logits.shape == (2, 4 * 4 if deep else 4 + 16 + 16 + 16)
    finest = net.see(maps)[0].detach().requires_grad_()
    one = net.heads[0](finest, labels)[0, 0]
    (seen,) = torch.autograd.grad(one, finest)
    share = float((seen[0].abs().sum(0) > 0).float().mean())
    assert share == (1 / 4 if deep else 1 / 16)
    assert seen[1].abs().sum() == 0


def test_accumulated_gradients_are_those_of_the_weighted_sum() -> None:
    """Three terms, two of them of one image; a loss scale comes out in the gradients and not in the factors."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 5))
    at = net[2].weight
    x = torch.randn(2, 3)

    def terms() -> list[Term]:
        image, other = net(x), net(-x)
        return [
            Term(image, image.square().mean()),
            Term(image, image.sin().sum(), 0.5, adaptive=True),
            Term(other, other.exp().mean(), 2.0),
        ]

    norms = [torch.autograd.grad(t.loss, at, retain_graph=True)[0].norm() for t in terms()]
    expected = [1.0, 0.5 * float((norms[0] / (norms[1] + 1e-4)).clamp(0.01, 10)), 2.0]
    whole = torch.autograd.grad(sum(f * t.loss for f, t in zip(expected, terms(), strict=True)), list(net.parameters()))
    for times in (1, 2):  # a second pass adds to the first
        found = accumulate(terms(), list(net.parameters()), at, scale=8.0)
        np.testing.assert_allclose(found, expected, rtol=1e-5)
        for p, gradient in zip(net.parameters(), whole, strict=True):
            torch.testing.assert_close(p.grad, times * 8 * gradient, rtol=1e-4, atol=1e-5)


def test_the_non_saturating_losses_are_the_cross_entropy_of_real_and_fake() -> None:
    real, fake = torch.tensor([0.3, -2.0]), torch.tensor([1.5, -0.1])
    entropy = torch.nn.functional.binary_cross_entropy_with_logits
    expected = entropy(real, torch.ones(2)) + entropy(fake, torch.zeros(2))
    torch.testing.assert_close(discriminator_loss(real, fake, "non-saturating"), expected)
    torch.testing.assert_close(generator_loss(fake, "non-saturating"), entropy(fake, torch.ones(2)))
    torch.testing.assert_close(generator_loss(fake, "hinge"), torch.tensor(-0.7))
