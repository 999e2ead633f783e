"""Training steps of the baselines against the same steps on the nearest public classes: ratios, not seconds.

    python -m pytest -m slow tests/bench_steps.py -s        prints rows of the table of docs/baselines.md

A step is what a runner does with a batch that is there: all forward passes, the backward pass, the check of the gradients, the
update of weights and of an averaged target. No public class trains these methods on a CPU but the GAN's: elsewhere the loss is
the same on both sides, and the networks are exchanged for diffusers'. Theirs makes no check of the gradients.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from baselines.cascade.augment import condition
from baselines.cascade.net import SuperResolutionUNet
from baselines.cascade.train import augmented
from baselines.consistency import train as consistency
from baselines.gan.net import StyleNet
from baselines.gan.train import Step
from baselines.latent.net import Autoencoder
from baselines.lcm import functions as formulas
from baselines.lcm import train as lcm
from pagoda_bench.diffusion.edm import SIGMA_DATA, training_loss
from pagoda_bench.nets.features import FeatureModel
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda.looks import EmbeddedLook, judge_of
from pagoda_bench.pagoda.losses import feature_distance
from pagoda_bench.recipes.losses import LossConfig
from pagoda_bench.training.updates import optimizer
from tests.peers import (
    CLASSES,
    SHAPES,
    Case,
    DiffusersUNet,
    Side,
    compare,
    diffusers_coder,
    generator,
    lightweight_gan,
    parameters,
    plain_step,
    step,
)

pytestmark = pytest.mark.slow
Stepper = Callable[..., Callable[[], None]]


def super_resolution() -> Case:
    """The upper stage of the cascade, with the augmentation of the low-resolution images."""
    stage: Any = generator("cascade", 64).stages[-1]  # type: ignore[attr-defined]
    batch, rng = stage.train.batch, np.random.default_rng(0)
    ours, theirs = SuperResolutionUNet(stage.net).train(), DiffusersUNet(stage.net, beside=3).train()
    small, (image, noise) = torch.randn(batch, 3, stage.low, stage.low), torch.randn(2, batch, 3, 64, 64)
    sigma, labels = torch.linspace(0.1, 10, batch), torch.arange(batch) % CLASSES

    def loss(net: nn.Module) -> Tensor:
        seen, level = augmented(small, stage.augment, rng, batch)
        low = condition(seen, level, stage.net.resolution, stage.filter)
        return training_loss(lambda x, s, y: net(x, s, y, low, level), image, labels, noise, sigma).mean()

    update, plain = step(ours, lambda: loss(ours)), plain_step(theirs, lambda: loss(theirs))
    return Case(Side(update, parameters(ours)), Side(plain, parameters(theirs)), batch)


def consistency_model(method: str) -> Case:
    """At 8 px, as in the table. Teacher and averaged target are networks of the same class on either side."""
    model: Any = generator(method, 8).of  # type: ignore[attr-defined]
    batch, choice = model.train.batch, model.objective
    high, low = consistency.levels(choice.last, batch, choice, np.random.default_rng(0))
    (image, noise), labels = torch.randn(2, batch, 3, 8, 8), torch.arange(batch) % CLASSES
    eyes = FeatureModel(CLASSES, folded=True).eval().requires_grad_(False)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        if choice.distance == "features":
            return feature_distance(eyes.maps(a), eyes.maps(b), choice.eps)
        return consistency.distance_of(model, None)(a, b)

    def side(net: nn.Module, stepper: Stepper) -> Side:
        net.train()
        target, lower = net, lambda x, image, high, low, labels: consistency.data_step(x, image, high, low)
        if method == "cd":
            target = copy.deepcopy(net).requires_grad_(False)
            lower = consistency.from_teacher(copy.deepcopy(net).eval().requires_grad_(False), model)
        update = stepper(
            net,
            lambda: consistency.losses(net, target, lower, distance, image, noise, labels, high, low, choice.weight).mean(),
            model.optimizer,
        )

        def run() -> None:
            update()
            if target is not net:
                consistency.follow(target, net, choice.decay)

        return Side(run, parameters(net))

    return Case(side(UNet(model.unet), step), side(DiffusersUNet(model.unet), plain_step), batch)


def latent_consistency() -> Case:
    """Encoder, guided teacher, averaged target and student."""
    model: Any = generator("lcm", 64).of  # type: ignore[attr-defined]
    batch, choice, config = model.train.batch, model.objective, model.teacher.unet
    start, end = lcm.times(choice.points, np.linspace(0.01, 0.99, batch))
    of, labels = formulas.process(choice.beta_min, choice.beta_max), torch.arange(batch) % CLASSES
    w = torch.linspace(*choice.w, batch)
    image, (coding, noise) = torch.randn(batch, 3, 64, 64), torch.randn(2, batch, 3, 16, 16)

    def side(net: nn.Module, teacher: nn.Module, latents: Callable[[], Tensor], stepper: Stepper) -> Side:
        target = copy.deepcopy(net.train()).requires_grad_(False)
        teacher.eval().requires_grad_(False)

        def loss() -> Tensor:
            with torch.no_grad():
                z = latents() / SIGMA_DATA
            ask: lcm.Teacher = lambda x, t, w: lcm.guided_by(teacher, x, t, labels, w, CLASSES, of)  # noqa: E731
            return lcm.losses(net, target, ask, z, noise, labels, start, end, w, of, choice).mean()

        update = stepper(net, loss)

        def run() -> None:
            update()
            lcm.follow(target, net, choice.decay)

        return Side(run, parameters(net))

    last = torch.channels_last  # what is frozen, as the runner has it
    coder = Autoencoder(model.teacher.autoencoder.net).to(memory_format=last).eval().requires_grad_(False)
    peer = diffusers_coder(model.teacher.autoencoder.net).eval().requires_grad_(False)
    teacher = UNet(config).to(memory_format=last)
    ours = side(
        UNet(config.model_copy(update={"guidance": choice.width})),
        teacher,
        lambda: coder.normalised(coder.latents_of(image, coding)),
        step,
    )
    theirs = side(DiffusersUNet(config), DiffusersUNet(config), lambda: peer.encode(image).latent_dist.sample(), plain_step)
    return Case(ours, theirs, batch)


class Still:
    """A data set of one batch."""

    def __init__(self, batch: int) -> None:
        self.batch = np.random.default_rng(0).integers(0, 256, (batch, 64, 64, 3), dtype=np.uint8)

    def size(self, split: str) -> None:
        return None

    def images(self, numbers: Any, resolution: int, split: str) -> np.ndarray:
        return self.batch

    def labels(self, numbers: Any, split: str) -> np.ndarray:
        return np.arange(len(self.batch)) % CLASSES


def adversaries() -> Case:
    """Generator and discriminator, all of the generator in training: the presets train one block of it at a time."""
    peer = lightweight_gan()
    recipe: Any = generator("gan", 64).of  # type: ignore[attr-defined]
    batch, choice = 4, recipe.adversary  # a quarter of the preset's: theirs takes seconds an image
    recipe = recipe.model_copy(update={"train": recipe.train.model_copy(update={"batch": batch})})
    net = StyleNet(recipe.style).to(memory_format=torch.channels_last)
    eyes = FeatureModel(CLASSES, folded=True).eval().requires_grad_(False)
    judged = LossConfig(features="embedded", discriminator=choice.discriminator, discriminator_width=choice.width)
    judge = judge_of(judged, eyes, CLASSES, 0).to(memory_format=torch.channels_last)
    theirs_of_ours = [p for p in judge.parameters() if p.requires_grad]
    optimizers = {
        "generator": optimizer(list(net.parameters()), recipe.train),
        "discriminator": optimizer(theirs_of_ours, recipe.train, choice.lr, betas=choice.betas),
    }
    look = EmbeddedLook(eyes, augmented=choice.augment, eps=0.0)
    ours: Any = Step(recipe, net, 0, look, judge, optimizers, Still(batch))  # type: ignore[arg-type]
    made, critic = peer.Generator(latent_dim=96, **SHAPES), peer.Discriminator(**SHAPES)
    adam_made, adam_critic = (torch.optim.Adam(side.parameters(), fused=True) for side in (made, critic))
    real = torch.randn(batch, 3, 64, 64)

    def theirs() -> None:
        """One turn of its trainer, without augmentation and without the penalty that it has every fourth time."""
        adam_critic.zero_grad()
        with torch.no_grad():
            fake = made(torch.randn(batch, 96))
        (no, no_small, _), (yes, yes_small, auxiliary) = critic(fake), critic(real, calc_aux_loss=True)
        (peer.hinge_loss(yes, no) + peer.hinge_loss(yes_small, no_small) + auxiliary).backward()
        adam_critic.step()
        adam_made.zero_grad()
        logits, logits_small, _ = critic(made(torch.randn(batch, 96)))
        (peer.gen_hinge_loss(logits, None) + peer.gen_hinge_loss(logits_small, None)).backward()
        adam_made.step()

    rng = np.random.default_rng(0)
    return Case(Side(lambda: ours(1, rng), parameters(net, judge)), Side(theirs, parameters(made, critic)), batch)


CASES: dict[str, Callable[[], Case]] = {
    "super-resolution, 16 to 64 px (cascade)": super_resolution,
    "consistency distillation, 8 px": lambda: consistency_model("cd"),
    "improved consistency training, 8 px": lambda: consistency_model("ict"),
    "latent consistency": latent_consistency,
    "generator and discriminator (GAN)": adversaries,
}


@pytest.mark.parametrize("name", CASES)
def test_no_slower_than_the_public_counterpart(name: str) -> None:
    torch.manual_seed(0)
    assert compare(f"{name}: training step", CASES[name]()) >= 1.0
