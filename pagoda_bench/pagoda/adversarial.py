"""The step that Stages 2 and 3 share: L_rec on data-latent pairs, L_adv on fresh noise, then the discriminator's turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pagoda_bench.data import open_dataset
from pagoda_bench.diffusion.edm import SIGMA_MAX
from pagoda_bench.nets.augment import augment, draw
from pagoda_bench.nets.discriminator import ProjectedDiscriminator, hinge_discriminator
from pagoda_bench.nets.features import load_features, save_half, to_network
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda.losses import accumulate, feature_distance, last_layer
from pagoda_bench.recipes.stages import Distill, Grow
from pagoda_bench.training.loop import EMA, Task, batch_indices, train

FIRST_FRESH = 2**30
"""Real images for the discriminator start here in an endless data set, so that they are not the pairs'."""


def fit(recipe: Distill | Grow, net: UNet, generate: Callable[[Tensor, Tensor], Tensor], ctx: Any) -> None:
    """Trains those parameters of `net` that ask for gradients; `generate(z, labels)` is the one-step generator.

    Writes the payload `model.safetensors` (averaged weights, float16).
    """
    data = open_dataset(recipe.pairs.teacher.data, ctx.data_path)
    features = load_features(recipe.features, ctx)
    latents = np.load(ctx.input(recipe.pairs) / "latents.npy", mmap_mode="r")
    count, size = recipe.pairs.count, recipe.net.output_resolution
    low = recipe.pairs.teacher.net.resolution
    judge = ProjectedDiscriminator(features.channels, len(data.classes), recipe.loss.discriminator_width, recipe.seed)
    judge = judge.to(memory_format=torch.channels_last)
    mine = [p for p in net.parameters() if p.requires_grad]
    theirs = [p for p in judge.parameters() if p.requires_grad]
    optimizers: dict[str, torch.optim.Optimizer] = {
        "generator": torch.optim.Adam(mine, lr=recipe.train.lr, betas=recipe.train.betas),
        "discriminator": torch.optim.Adam(theirs, lr=recipe.loss.lr_discriminator, betas=(0.0, 0.99)),
    }
    loss, batch = recipe.loss, recipe.train.batch
    ema = EMA(net, recipe.train.ema)
    at = last_layer(net)

    def eyes(x: Tensor) -> list[Tensor]:
        return features.maps(augment(x, draw(len(x), x.shape[-1])) if loss.augment else x)

    def real_images(index: int) -> tuple[Tensor, Tensor]:
        total = data.size("train")
        numbers = batch_indices(total, batch, index, recipe.seed + 1)
        if total is None:
            numbers = numbers + FIRST_FRESH
        image = to_network(data.images(numbers, size, "train"))
        if recipe.pairs.flip:
            image = torch.where((torch.rand(len(image)) < 0.5)[:, None, None, None], image.flip(3), image)
        return image, torch.from_numpy(data.labels(numbers, "train"))

    def paired(index: int) -> tuple[Tensor, Tensor, Tensor]:
        rows = batch_indices(len(latents), batch, index, recipe.seed)
        numbers = rows % count
        image = to_network(data.images(numbers, size, "train"))
        image = torch.where(torch.from_numpy(rows >= count)[:, None, None, None], image.flip(3), image)
        z = torch.from_numpy(latents[np.sort(rows)][np.argsort(np.argsort(rows))].astype(np.float32))
        return image, z, torch.from_numpy(data.labels(numbers, "train"))

    def step(index: int, rng: np.random.Generator) -> dict[str, float]:
        x, z, labels = paired(index)
        real, real_labels = real_images(index)
        fresh = torch.randn(batch, 3, low, low) * SIGMA_MAX
        made = generate(torch.cat([z, fresh]), torch.cat([labels, real_labels])).float()
        rebuilt, fake = made[:batch], made[batch:]

        # L_rec: both images under the same augmentation, which draws once for the two.
        if loss.augment:
            draws = draw(batch, size)
            seen, target = augment(rebuilt, draws), augment(x, draws)
        else:
            seen, target = rebuilt, x
        with torch.no_grad():
            target_maps = features.maps(target)
        l_rec = feature_distance(features.maps(seen), target_maps, loss.eps).mean() + loss.pixel * (rebuilt - x).abs().mean()

        fake_maps = eyes(fake)
        l_adv = -judge(fake_maps, real_labels).mean()
        optimizers["generator"].zero_grad(set_to_none=True)
        factor, _ = accumulate((rebuilt, fake), (loss.reconstruction * l_rec, l_adv), at, loss.adversarial, loss.adaptive)
        optimizers["generator"].step()

        with torch.no_grad():
            real_maps = eyes(real)
        fake_maps = [m.detach() for m in fake_maps]
        for _ in range(loss.discriminator_steps):
            l_d = hinge_discriminator(judge(real_maps, real_labels), judge(fake_maps, real_labels))
            optimizers["discriminator"].zero_grad(set_to_none=True)
            l_d.backward()
            optimizers["discriminator"].step()
        return {"rec": float(l_rec.detach()), "adv": float(l_adv.detach()), "d": float(l_d.detach()), "lambda": factor}

    nets = {"generator": net, "discriminator": judge}
    train(Task(step, nets, optimizers, {"generator": ema}), recipe.train, recipe.seed, ctx)
    save_half(ema.state(net), ctx.out / "model.safetensors")
    total_parameters = sum(p.numel() for p in net.parameters())
    ctx.record(parameters=total_parameters, trainable=sum(p.numel() for p in mine), device="cpu")
