"""One step of the official Stage 2 and 3 training, as functions of given noise: with random-projection features, the
multi-scale discriminator, and the official order of augmentation and resizing.

The training loop (`pagoda.steps`) uses the same looks, losses and discriminator, but updates generator and discriminator in
each step; this is the reading of the official scripts, step by step, and what the parts are held against.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from pagoda_bench.diffusion.edm import SIGMA_MAX, one_step
from pagoda_bench.nets.discriminator import hinge_discriminator
from pagoda_bench.nets.multiscale_discriminator import MultiscaleDiscriminator
from pagoda_bench.nets.projection import Eyes
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda.looks import ProjectedLook, projected_terms
from pagoda_bench.pagoda.losses import EPS, adaptive_weight, last_layer


def reconstruction_terms(eyes: Eyes, estimate: Tensor, target: Tensor, *, augmented: bool) -> Tensor:
    """The terms of L_rec, (backbones * scales, N): their sum over the first axis is the loss of an image.

    As in the official code, images are resized for the backbone *before* they are augmented, and the two arguments share
    one set of draws a backbone.
    """
    look = ProjectedLook(eyes, augmented=augmented, eps=EPS)
    return projected_terms(eyes, estimate, target, look.distance_draws(len(estimate), estimate.shape[-1]), EPS)


def logits(judge: MultiscaleDiscriminator, eyes: Eyes, image: Tensor, labels: Tensor, *, augmented: bool) -> Tensor:
    """What the discriminator says of images. Here they are augmented at their own size, and resized after."""
    look = ProjectedLook(eyes, augmented=augmented, eps=EPS)
    return judge(look.maps(image, look.draws(len(image), image.shape[-1])), labels)


class GeneratorStep(NamedTuple):
    l_rec: Tensor  # (N,)
    terms: Tensor  # (backbones * scales, N)
    fake_logits: Tensor
    l_adv: Tensor  # -mean logit
    norm_rec: Tensor  # of the gradients at the last decoder convolution
    norm_adv: Tensor
    factor: Tensor  # adaptive weight, clipped
    loss: Tensor  # mean L_rec + weight * factor * L_adv


def generator_step(
    net: UNet,
    judge: MultiscaleDiscriminator,
    eyes: Eyes,
    pair: tuple[Tensor, Tensor, Tensor],
    noise: Tensor,
    *,
    weight: float = 1.0,
    adaptive: bool = True,
    augmented: bool = True,
) -> GeneratorStep:
    """The losses of an even step; `loss.backward()` gives the generator's gradients. `pair` is (image, latent, labels),
    `noise` is standard normal of the latent's shape. The discriminator must not ask for gradients of its own."""
    image, z, labels = pair
    terms = reconstruction_terms(eyes, one_step(net, z, labels), image, augmented=augmented)
    l_rec = terms.sum(0)
    fake = logits(judge, eyes, one_step(net, SIGMA_MAX * noise, labels), labels, augmented=augmented)
    l_adv = -fake.mean()
    at = last_layer(net)
    g_rec, g_adv = (torch.autograd.grad(value, at, retain_graph=True)[0] for value in (l_rec.mean(), l_adv))
    factor = adaptive_weight(g_rec, g_adv) if adaptive else torch.ones(())
    return GeneratorStep(l_rec, terms, fake, l_adv, g_rec.norm(), g_adv.norm(), factor, l_rec.mean() + weight * factor * l_adv)


class DiscriminatorStep(NamedTuple):
    fake_logits: Tensor
    real_logits: Tensor
    loss: Tensor


def discriminator_step(
    net: UNet,
    judge: MultiscaleDiscriminator,
    eyes: Eyes,
    real: tuple[Tensor, Tensor],
    noise: Tensor,
    *,
    augmented: bool = True,
) -> DiscriminatorStep:
    """The hinge loss of an odd step. Fakes go first: spectral norms iterate at each call, and batch norms see one kind of
    images at a time."""
    image, labels = real
    with torch.no_grad():
        fake_images = one_step(net, SIGMA_MAX * noise, labels)
    fake = logits(judge, eyes, fake_images, labels, augmented=augmented)
    seen = logits(judge, eyes, image, labels, augmented=augmented)
    return DiscriminatorStep(fake, seen, hinge_discriminator(seen, fake))
