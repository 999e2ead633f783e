"""Training of a one-step generator, Stages 2 and 3 alike: what judges is built from the recipe, the loop runs `steps.Step`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pagoda_bench.data import open_dataset
from pagoda_bench.diffusion.edm import SIGMA_MAX
from pagoda_bench.nets.device import compute_device
from pagoda_bench.nets.discriminator import Judge
from pagoda_bench.nets.features import from_network, load_features
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda.diversity import Diversity
from pagoda_bench.pagoda.looks import EmbeddedLook, Look, ProjectedLook, build_eyes, judge_of
from pagoda_bench.pagoda.sources import GuidedSource, Source, source_of
from pagoda_bench.pagoda.steps import Generate, Step
from pagoda_bench.recipes.stages import Distill, FeatureNet, Grow
from pagoda_bench.sampling.noise import noise
from pagoda_bench.training import parallel
from pagoda_bench.training.alarm import PINS
from pagoda_bench.training.averages import averaged, averages, save_averages
from pagoda_bench.training.building import Values
from pagoda_bench.training.evaluation import Evaluation
from pagoda_bench.training.loop import EMA, Task, autocast, train
from pagoda_bench.training.sharding import shard
from pagoda_bench.training.updates import LossScale, optimizer

SHOWN = 64  # samples in a grid


def fit(
    recipe: Distill | Grow,
    net: UNet,
    generate: Generate,
    ctx: Any,
    prepare: Callable[[Source], int] | None = None,
    values: Values | None = None,
) -> None:
    """Trains those parameters of `net` that ask for gradients; `prepare` is given the pairs before the first step, and returns
    the operations that it took. `values`: of a network that was built without memory.

    Writes the payload `model.safetensors` (averaged weights, float16), and one more for each further average.
    """
    device, loss, config = compute_device(), recipe.loss, recipe.train
    data = open_dataset(recipe.pairs.teacher.data, ctx.data_path)
    features = None
    if loss.features == "embedded" and isinstance(recipe.features, FeatureNet):  # the recipe refuses any other
        features = load_features(recipe.features, ctx).to(device)
    look: Look
    if features is not None:
        look = EmbeddedLook(features, augmented=loss.augment, eps=loss.eps)
    else:
        look = ProjectedLook(build_eyes(loss.projected).to(device), augmented=loss.augment, eps=loss.eps)
    judges: dict[str, Judge] = {"discriminator": judge_of(loss, features, len(data.classes), recipe.seed)}
    if loss.adversarial_rec:
        judges["reconstructions"] = judge_of(loss, features, len(data.classes), recipe.seed + 1)
    judges = {k: parallel.synced(j).to(device).to(memory_format=torch.channels_last) for k, j in judges.items()}
    shard(net, config.shard, values)
    mine = [p for p in net.parameters() if p.requires_grad]
    optimizers = {"generator": optimizer(mine, config)}
    for name, judge in judges.items():
        theirs = [p for p in judge.parameters() if p.requires_grad]
        optimizers[name] = optimizer(theirs, config, loss.lr_discriminator, betas=loss.betas_discriminator)
    emas, scale = averages(net, config, "generator"), LossScale(config.precision)
    source = source_of(recipe, data, ctx)
    guided = GuidedSource(recipe.guided, ctx) if recipe.guided else None
    with autocast(config.precision, device.type):  # as in a step
        before = prepare(source) if prepare else 0
    step = Step(recipe, net, generate, look, judges, optimizers, source, data, scale, guided)

    nets: dict[str, nn.Module] = {"generator": net, **judges}
    if (stored := look.stored()) is not None:
        nets["projections"] = stored
    ema = emas["generator"]

    def draw(indices: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
        return _samples(net, ema, generate, indices, labels)

    numbers = np.arange(SHOWN)
    task = Task(step, nets, optimizers, emas, scale=scale, samples=lambda: draw(numbers, numbers % len(data.classes)))
    task.moved = lambda: step.moved
    if config.alarm != "off" and (config.grids or config.evaluate):
        diversity = Diversity(draw, look, data, net, recipe.net.output_resolution)
        task.diversity = diversity if len(diversity.labels) else None
    task.watched = {"d" if name == "discriminator" else "d_rec": PINS[loss.gan] for name in judges}
    if config.evaluate:
        of, size = recipe.pairs.teacher.data, recipe.net.output_resolution
        own = {"embedded": ctx.input(recipe.features)} if isinstance(recipe.features, FeatureNet) else {}
        task.evaluation = Evaluation(config, of, data, size, draw, ctx.work, own)
    train(task, config, recipe.seed, ctx)
    if before:
        ctx.record(training_flops=ctx.facts["training_flops"] + before * parallel.world())
    save_averages(net, emas, ctx)
    total_parameters = sum(p.numel() for p in net.parameters())
    ctx.record(parameters=total_parameters, trainable=sum(p.numel() for p in mine), device=str(device))


def _samples(
    net: UNet, ema: EMA, generate: Generate, indices: NDArray[np.int64], labels: NDArray[np.int64]
) -> NDArray[np.uint8]:
    """What the averaged generator makes of the latents of these indices."""
    at, r = next(net.parameters()).device, net.config.resolution
    z = (torch.from_numpy(noise(indices, (3, r, r))) * SIGMA_MAX).to(at)
    with averaged(net, ema):
        return from_network(generate(z, torch.from_numpy(labels).to(at)).cpu())
