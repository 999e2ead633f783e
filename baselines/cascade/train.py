"""The training of one super-resolution stage: EDM's loss, with the augmented low-resolution image beside the noisy one."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from baselines.batches import images_of_step, stratified, stratified_sigma
from baselines.cascade.augment import blur_some, condition, corrupt, draw_levels
from baselines.cascade.net import SuperResolutionUNet
from baselines.cascade.recipes import Augmentation, SuperResolution
from baselines.training import descend, fit
from pagoda_bench.data import open_dataset
from pagoda_bench.diffusion.edm import SIGMA_MIN, training_loss
from pagoda_bench.nets.features import save_half
from pagoda_bench.training.loop import EMA, Task
from pagoda_bench.training.updates import optimizer


def run(recipe: SuperResolution, ctx: Any) -> None:
    """Payload: `model.safetensors`, the averaged weights as float16. The stage learns from real images alone: the models
    below it are not asked."""
    torch.manual_seed(recipe.seed)
    data = open_dataset(recipe.data, ctx.data_path)
    net = SuperResolutionUNet(recipe.net).train()
    adam = optimizer(list(net.parameters()), recipe.train)
    ema = EMA(net, recipe.train.ema)
    resolutions = (recipe.low, recipe.net.resolution)

    def step(index: int, rng: np.random.Generator) -> dict[str, float]:
        (small, image), labels = images_of_step(data, resolutions, recipe.train.batch, index, recipe.seed)
        sigma = stratified_sigma(len(image), recipe.p_mean, recipe.p_std)
        seen, level = augmented(small, recipe.augment, rng)
        low = condition(seen, level, recipe.net.resolution, recipe.filter)
        loss = training_loss(lambda x, s, y: net(x, s, y, low, level), image, labels, torch.randn_like(image), sigma).mean()
        return descend(adam, loss, recipe.train)

    fit(recipe, Task(step, {"net": net}, {"adam": adam}, {"net": ema}), ctx)
    save_half(ema.state(net), ctx.out / "model.safetensors")
    ctx.record(parameters=sum(p.numel() for p in net.parameters()), device="cpu")


def augmented(small: Tensor, augment: Augmentation, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Low-resolution images as the stage is trained on them, and the noise level of each, (N,)."""
    count = len(small)
    if augment.blur is not None:
        small = blur_some(small, augment.blur_share, *augment.blur, augment.blur_size)
    if augment.noise == 0:
        return small, torch.full((count,), SIGMA_MIN)
    # Shuffled, so that the augmentation level of an image says nothing about its noise level.
    level = draw_levels(stratified(count)[torch.from_numpy(rng.permutation(count))], augment.noise).float()
    return corrupt(small, level, torch.randn_like(small)), level
