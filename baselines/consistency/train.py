"""The training of a consistency model, with a teacher (2303.01469, Algorithm 2) or without (Algorithm 3)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from baselines.batches import images_of_step, mine
from baselines.consistency.functions import (
    data_step,
    huber_constant,
    lognormal_probabilities,
    pick,
    points_at,
    pseudo_huber,
    target_decay,
    teacher_step,
)
from baselines.consistency.recipes import ConsistencyDistillation, ConsistencyTraining, Objective
from baselines.training import descend, fit, together
from pagoda_bench.data import open_dataset
from pagoda_bench.diffusion.consistency import consistency
from pagoda_bench.diffusion.edm import denoise, karras_grid, stratified
from pagoda_bench.errors import UserError
from pagoda_bench.nets.device import compute_device
from pagoda_bench.nets.features import load_features, save_half
from pagoda_bench.nets.unet import UNet
from pagoda_bench.nets.weights import load_file_whole
from pagoda_bench.pagoda.losses import feature_distance
from pagoda_bench.training.loop import EMA, Task
from pagoda_bench.training.updates import optimizer

Lower = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""(x at the higher level, image, higher level, lower level, labels) -> x at the lower level."""
Distance = Callable[[Tensor, Tensor], Tensor]


@together
def run(recipe: ConsistencyDistillation | ConsistencyTraining, ctx: Any) -> None:
    """Payload: `model.safetensors`, the averaged weights as float16."""
    torch.manual_seed(recipe.seed)
    data = open_dataset(recipe.data, ctx.data_path)
    device, batch = compute_device(), recipe.train.batch
    net = UNet(recipe.unet).to(device)
    lower: Lower = lambda x, image, high, low, _labels: data_step(x, image, high, low)  # noqa: E731
    if isinstance(recipe, ConsistencyDistillation):
        teacher = UNet(recipe.unet).to(device)
        load_file_whole(teacher, ctx.input(recipe.teacher) / "model.safetensors")
        net.load_state_dict(teacher.state_dict())
        lower = from_teacher(teacher.eval().requires_grad_(False), recipe)
    net.train()
    averaged = recipe.objective.decay > 0
    target = copy.deepcopy(net).requires_grad_(False) if averaged else net
    if recipe.train.optimizer != "adam":
        raise UserError(f"{recipe.title}: train.optimizer is not for this method: set `optimizer` beside `train`")
    adam = optimizer(list(net.parameters()), recipe.train.model_copy(update={"optimizer": recipe.optimizer}))
    ema = EMA(net, recipe.train.ema)
    distance = distance_of(recipe, ctx)

    def step(index: int, rng: np.random.Generator) -> dict[str, float]:
        (image,), labels = images_of_step(data, (recipe.unet.resolution,), batch, index, recipe.seed)
        choice = recipe.objective
        points = points_at(index, task.steps, choice.schedule, choice.first, choice.last)
        drawn = mine(*levels(points, batch, choice, rng), torch.randn(batch, *image.shape[1:]))
        image, labels, high, low, noise = (t.to(device) for t in (image, labels, *drawn))
        loss = losses(net, target, lower, distance, image, noise, labels, high, low, choice.weight).mean()
        found = descend(adam, loss, recipe.train)
        if averaged and "norm" not in found:
            follow(target, net, target_decay(points, choice.first, choice.decay) if choice.adaptive else choice.decay)
        return {**found, "points": float(points)}

    nets: dict[str, nn.Module] = {"net": net, **({"target": target} if averaged else {})}
    task = Task(step, nets, {"optimizer": adam}, {"net": ema})
    fit(recipe, task, ctx)
    save_half(ema.state(net), ctx.out / "model.safetensors")
    ctx.record(parameters=sum(p.numel() for p in net.parameters()), device=str(device))


def from_teacher(teacher: nn.Module, recipe: ConsistencyDistillation) -> Lower:
    """The step down the teacher's ODE."""

    def lower(x: Tensor, image: Tensor, high: Tensor, low: Tensor, labels: Tensor) -> Tensor:
        return teacher_step(lambda at, sigma: denoise(teacher, at, sigma, labels), x, high, low, recipe.solver)

    return lower


def distance_of(recipe: ConsistencyDistillation | ConsistencyTraining, ctx: Any) -> Distance:
    """(a, b) -> one value an image, (N,). Squares and absolute values are averaged over the values of an image."""
    choice = recipe.objective
    if choice.distance == "l1":
        return lambda a, b: (a - b).abs().flatten(1).mean(1)
    if choice.distance == "l2":
        return lambda a, b: (a - b).square().flatten(1).mean(1)
    if choice.distance == "pseudo-huber":
        return lambda a, b: pseudo_huber(a, b, huber_constant(choice.huber, a.shape[1:]))
    assert recipe.features is not None  # the recipe sees to it
    eyes = load_features(recipe.features, ctx).to(compute_device())
    return lambda a, b: feature_distance(eyes.maps(a), eyes.maps(b), choice.eps)


def levels(points: int, batch: int, choice: Objective, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Neighbouring noise levels of the grid for each image of a batch, higher and lower, float64 (batch,)."""
    grid = karras_grid(points)
    even = np.full(points - 1, 1 / (points - 1))
    chances = lognormal_probabilities(grid, choice.p_mean, choice.p_std) if choice.levels == "lognormal" else even
    at = pick(chances, rng.permutation(stratified(batch).numpy()))
    return torch.from_numpy(grid[at]), torch.from_numpy(grid[at + 1])


def losses(
    net: nn.Module,
    target: nn.Module,
    lower: Lower,
    distance: Distance,
    image: Tensor,
    noise: Tensor,
    labels: Tensor,
    high: Tensor,
    low: Tensor,
    weight: str,
) -> Tensor:
    """(N,): the weighted distance of f at the higher level from the target's f at the lower one, where no gradient flows."""
    x = image + high.to(image.dtype).view(-1, 1, 1, 1) * noise
    with torch.no_grad():
        aim = consistency(target, lower(x, image, high, low, labels), low, labels)
    found = distance(consistency(net, x, high, labels), aim)
    return found / (high - low).to(found.dtype) if weight == "inverse-step" else found


@torch.no_grad()
def follow(target: nn.Module, net: nn.Module, decay: float) -> None:
    """The target's weights become decay * target + (1 - decay) * net."""
    torch._foreach_lerp_(list(target.parameters()), list(net.parameters()), 1 - decay)
