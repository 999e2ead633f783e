"""What a chain of stages costs before it is run: operations counted on networks without values, storage from their shapes.

Operations are those of convolutions and matrix products, a multiply and an add counted apart, as the training loop counts
them: what milestones measure is not among them. Time follows from a GPU's peak and the share of it that is reached, which is
an assumption of the caller.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pagoda_bench.diffusion.edm import SIGMA_MAX
from pagoda_bench.diffusion.solvers import evaluations
from pagoda_bench.nets.growth import train_start, trainable_keys
from pagoda_bench.nets.multiscale_discriminator import MultiscaleDiscriminator
from pagoda_bench.nets.projection import CHANNELS, INPUT, NATIVE, timm_backbone
from pagoda_bench.nets.unet import UNet
from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.imported import ReleasedOneStep, ReleasedTeacher
from pagoda_bench.recipes.losses import LossConfig
from pagoda_bench.recipes.stages import EDM, Distill, Grow, Pairs, TeacherPairs, TrainConfig, UNetConfig


@dataclass(frozen=True)
class Cost:
    """Of one stage. `flops` for all of it; `storage` is the payload, `work` the checkpoints on the way, in bytes."""

    stage: str
    parameters: int
    flops: float
    storage: int
    work: int


def cost_of(recipe: Recipe) -> Cost | None:
    """None for kinds whose cost does not count beside the others, or is not known. Released weights cost their place."""
    if isinstance(recipe, (ReleasedTeacher, ReleasedOneStep)):
        parameters = sum(p.numel() for p in _meta(recipe.net).parameters())
        return Cost(recipe.title, parameters, 0.0, 4 * parameters, 0)
    if isinstance(recipe, EDM):
        net = _meta(recipe.net)
        flops = image_flops(net, trained=True) * recipe.train.batch * recipe.train.steps
        return _trained(recipe.title, net, flops, recipe.train)
    if isinstance(recipe, Pairs):
        net = _meta(recipe.teacher.net)
        each = evaluations(recipe.points, recipe.solver, inversion=not isinstance(recipe, TeacherPairs))
        each *= 2 if isinstance(recipe, TeacherPairs) and recipe.guidance else 1
        rows = recipe.count * (2 if recipe.flip else 1)
        size = rows * 3 * recipe.teacher.net.resolution**2 * (2 if recipe.dtype == "float16" else 4)
        return Cost(recipe.title, 0, image_flops(net, trained=False) * each * rows, size, size)
    if isinstance(recipe, (Distill, Grow)):
        net = _meta(recipe.net)
        start = 0
        if isinstance(recipe, Grow):
            start = train_start(net, recipe.train_from)
            trained = set(trainable_keys(net, recipe.train_from))
            for name, parameter in net.named_parameters():
                parameter.requires_grad_(name in trained)
        step = step_flops(net, recipe.loss, start, recipe.net.output_resolution, guided=recipe.guided is not None)
        flops = step * recipe.train.batch * recipe.train.steps
        return _trained(recipe.title, net, flops, recipe.train)
    return None


def step_flops(net: UNet, loss: LossConfig, start: int, size: int, guided: bool = False) -> float:
    """Of one fake in a step and the share of a pair that goes with it (and, where guidance is learnt, of a guided sample): the
    generator forward and backward for each; the judges' backbones on estimate, target, fake and real, and backward to two
    images; the discriminators forward for the generator and for themselves."""
    share = loss.pairs_share
    total = (1 + share * (1 + guided)) * image_flops(net, trained=True, start=start)
    if loss.features == "projected":
        # Of a fake and of a pair each: forward for two images, backward (to the image alone, as much again) for one; the
        # second discriminator's reconstructions and targets go through once more.
        passes = 3 + 3 * share * (2 if loss.adversarial_rec else 1)
        total += passes * sum(backbone_flops(kind, size) for kind in loss.projected.backbones)
        if guided:  # L_dstl, at the teacher's size
            total += 3 * share * sum(backbone_flops(kind, net.config.resolution) for kind in loss.projected.backbones)
    if loss.discriminator == "stylegan-xl":
        judges = 1 + (share if loss.adversarial_rec else 0)
        total += judges * 8 * judge_flops(len(loss.projected.backbones), size)
    return total


def image_flops(net: UNet, *, trained: bool, start: int = 0) -> float:
    """Of one image through a network without values: forward, and backward where it is `trained`, from output block `start`
    on (all of it at 0)."""
    size = net.config.resolution
    z, labels = torch.zeros(1, 3, size, size, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(trained):
        if start:
            with torch.no_grad():
                hidden = net.trunk(z, SIGMA_MAX, labels, stop=start)
            out = net.finish(hidden, start)
        else:
            out = net(z, SIGMA_MAX, labels)
        if trained:
            out.sum().backward()
    return float(counter.get_total_flops())


def backbone_flops(kind: str, size: int) -> float:
    """Of one image forward through a backbone as it sees images of `size`."""
    seen = INPUT if size < NATIVE else size
    net = timm_backbone(kind, device="meta")  # type: ignore[arg-type]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.forward_features(torch.zeros(1, 3, INPUT, INPUT, device="meta"))  # type: ignore[operator]
    return float(counter.get_total_flops()) * (seen / INPUT) ** 2


def judge_flops(backbones: int, size: int) -> float:
    """Of the maps of one image forward through StyleGAN-XL's discriminator."""
    seen = INPUT if size < NATIVE else size
    with torch.device("meta"):
        judge = MultiscaleDiscriminator(1000, kinds=("cnn",))
    maps = [torch.zeros(1, c, seen >> i + 1, seen >> i + 1, device="meta") for i, c in enumerate(CHANNELS)]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        judge(maps, torch.zeros(1, dtype=torch.int64, device="meta"))
    return backbones * float(counter.get_total_flops())


def _meta(config: UNetConfig) -> UNet:
    with torch.device("meta"):
        return UNet(config)


def _trained(stage: str, net: nn.Module, flops: float, config: TrainConfig) -> Cost:
    """With milestones that are evaluated, the best one's checkpoint and weights are kept beside the others."""
    averages, best = 1 + len(config.emas), int(config.evaluate > 0)
    parameters = sum(p.numel() for p in net.parameters())
    trained = sum(p.numel() for p in net.parameters() if p.requires_grad)
    payload = (averages + best) * 2 * parameters
    checkpoint = 4 * (parameters + (2 + averages) * trained)
    return Cost(stage, parameters, flops, payload, (config.keep + best) * checkpoint)
