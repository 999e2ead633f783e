"""The training of one super-resolution stage: EDM's loss, with the augmented low-resolution image beside the noisy one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from baselines.batches import images_of_step, mine, stratified_sigma
from baselines.cascade.augment import blur_some, condition, corrupt, draw_blur, draw_levels
from baselines.cascade.net import SuperResolutionUNet
from baselines.cascade.recipes import Augmentation, SuperResolution
from baselines.training import descend, fit, together
from pagoda_bench.data import open_dataset
from pagoda_bench.diffusion.edm import SIGMA_MIN, stratified, training_loss
from pagoda_bench.nets.device import compute_device
from pagoda_bench.nets.features import save_half
from pagoda_bench.training.loop import EMA, Task
from pagoda_bench.training.updates import optimizer


@together
def run(recipe: SuperResolution, ctx: Any) -> None:
    """Payload: `model.safetensors`, the averaged weights as float16. The stage learns from real images alone: the models
    below it are not asked."""
    torch.manual_seed(recipe.seed)
    data = open_dataset(recipe.data, ctx.data_path)
    device, batch = compute_device(), recipe.train.batch
    net = SuperResolutionUNet(recipe.net).to(device).train()
    adam = optimizer(list(net.parameters()), recipe.train)
    ema = EMA(net, recipe.train.ema)
    resolutions = (recipe.low, recipe.net.resolution)

    def step(index: int, rng: np.random.Generator) -> dict[str, float]:
        (small, image), labels = images_of_step(data, resolutions, batch, index, recipe.seed)
        (sigma,) = mine(stratified_sigma(batch, recipe.p_mean, recipe.p_std, shuffled=recipe.strata == "shuffled"))
        small, level = augmented(small, recipe.augment, rng, batch)
        (noise,) = mine(torch.randn(batch, *image.shape[1:]))
        small, level, image, labels, noise, sigma = (t.to(device) for t in (small, level, image, labels, noise, sigma))
        low = condition(small, level, recipe.net.resolution, recipe.filter)
        loss = training_loss(lambda x, s, y: net(x, s, y, low, level), image, labels, noise, sigma).mean()
        return descend(adam, loss, recipe.train)

    fit(recipe, Task(step, {"net": net}, {"adam": adam}, {"net": ema}), ctx)
    save_half(ema.state(net), ctx.out / "model.safetensors")
    ctx.record(parameters=sum(p.numel() for p in net.parameters()), device=str(device))


def augmented(small: Tensor, augment: Augmentation, rng: np.random.Generator, batch: int) -> tuple[Tensor, Tensor]:
    """Low-resolution images, this process's of a `batch`, as the stage is trained on them, and the noise level of each."""
    if augment.blur is not None:
        chosen, sigma = mine(*draw_blur(batch, augment.blur_share, *augment.blur))
        small = blur_some(small, chosen, sigma, augment.blur_size)
    if augment.noise == 0:
        return small, torch.full((len(small),), SIGMA_MIN)
    # Shuffled, so that the augmentation level of an image says nothing about its noise level.
    levels = draw_levels(stratified(batch)[torch.from_numpy(rng.permutation(batch))], augment.noise).float()
    level, noise = mine(levels, torch.randn(batch, *small.shape[1:]))
    return corrupt(small, level, noise), level
