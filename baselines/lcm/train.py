"""Latent consistency distillation (2310.04378, Algorithm 1)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from baselines.batches import images_of_step, mine
from baselines.consistency.train import follow
from baselines.latent.train import WEIGHTS, load_coder
from baselines.lcm import functions as lcm
from baselines.lcm.recipes import GuidedObjective, LatentConsistency
from baselines.training import descend, fit, together
from pagoda_bench.data import open_dataset
from pagoda_bench.diffusion import edm
from pagoda_bench.diffusion.edm import SIGMA_DATA, stratified
from pagoda_bench.nets.device import compute_device
from pagoda_bench.nets.features import save_half
from pagoda_bench.nets.unet import UNet
from pagoda_bench.nets.weights import load_file_whole
from pagoda_bench.training.loop import EMA, Task
from pagoda_bench.training.updates import optimizer

Teacher = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(x, times, w) -> the guided z."""


@together
def run(recipe: LatentConsistency, ctx: Any) -> None:
    """Payload: `model.safetensors`, the averaged weights as float16."""
    torch.manual_seed(recipe.seed)
    device = compute_device()
    data, coder = open_dataset(recipe.data, ctx.data_path), load_coder(recipe.teacher.autoencoder, ctx).to(device)
    teacher = UNet(recipe.teacher.unet).to(device)
    load_file_whole(teacher, ctx.input(recipe.teacher) / WEIGHTS)
    teacher = teacher.to(memory_format=torch.channels_last).eval().requires_grad_(False)
    choice = recipe.objective
    net = UNet(recipe.net).to(device)
    net.start_from(teacher.state_dict())
    net.train()
    target = copy.deepcopy(net).requires_grad_(False) if choice.decay else net
    adam = optimizer(list(net.parameters()), recipe.train)
    ema = EMA(net, recipe.train.ema)
    of = lcm.process(choice.beta_min, choice.beta_max, device)
    none = recipe.teacher.net.classes
    size, side, batch = recipe.teacher.autoencoder.resolution, recipe.teacher.net.resolution, recipe.train.batch

    def step(index: int, rng: np.random.Generator) -> dict[str, float]:
        (image,), labels = images_of_step(data, (size,), batch, index, recipe.seed)
        coding = torch.randn(batch, 3, side, side)
        start, end = times(choice.points, rng.permutation(stratified(batch).numpy()))
        w = choice.w[0] + (choice.w[1] - choice.w[0]) * torch.rand(batch)
        drawn = mine(coding, start, end, w, torch.randn(batch, 3, side, side))
        image, labels, coding, start, end, w, noise = (t.to(device) for t in (image, labels, *drawn))
        with torch.no_grad():
            z = coder.normalised(coder.latents_of(image, coding)) / SIGMA_DATA
        ask: Teacher = lambda x, t, w: guided_by(teacher, x, t, labels, w, none, of)  # noqa: E731
        loss = losses(net, target, ask, z, noise, labels, start, end, w, of, choice).mean()
        found = descend(adam, loss, recipe.train)
        if choice.decay and "norm" not in found:
            follow(target, net, choice.decay)
        return found

    nets: dict[str, nn.Module] = {"net": net, **({"target": target} if choice.decay else {})}
    fit(recipe, Task(step, nets, {"adam": adam}, {"net": ema}), ctx)
    save_half(ema.state(net), ctx.out / WEIGHTS)
    ctx.record(parameters=sum(p.numel() for p in net.parameters()), device=str(device))


def times(points: int, uniform: np.ndarray) -> tuple[Tensor, Tensor]:
    """Times t_{n+k} of the grid from uniform draws in (0, 1), and t_n one skipping step below, at least 0. int64 (N,) each."""
    at = torch.from_numpy(np.minimum((uniform * points).astype(np.int64), points - 1))
    start = lcm.grid(points)[at]
    return start, (start - lcm.TIMES // points).clamp(min=0)


def guided_by(teacher: nn.Module, x: Tensor, t: Tensor, labels: Tensor, w: Tensor, none: int, of: lcm.Process) -> Tensor:
    """The teacher's guided z: images with and without their labels in one batch."""
    both = torch.cat([labels, torch.full_like(labels, none)])
    conditional, unconditional = lcm.denoised(teacher, torch.cat([x, x]), torch.cat([t, t]), both, of).chunk(2)
    return edm.guided(conditional, unconditional, w)


def losses(
    net: nn.Module,
    target: nn.Module,
    ask: Teacher,
    z: Tensor,
    noise: Tensor,
    labels: Tensor,
    start: Tensor,
    end: Tensor,
    w: Tensor,
    of: lcm.Process,
    choice: GuidedObjective,
) -> Tensor:
    """(N,): the distance of f at the time `start` from the target's f at `end`, where no gradient flows."""
    alpha, sigma = of.at(start, z)
    x = alpha * z + sigma * noise
    with torch.no_grad():
        below = lcm.ddim_step(x, ask(x, start, w), start, end, of)
        aim = lcm.consistency(told(target, w), below, end, labels, of)
    found = lcm.consistency(told(net, w), x, start, labels, of)
    if choice.distance == "l2":
        return (found - aim).square().flatten(1).mean(1)
    return lcm.huber(found, aim, choice.huber)


def told(net: nn.Module, w: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The network with w given."""
    return lambda x, sigma, labels: net(x, sigma, labels, w)
