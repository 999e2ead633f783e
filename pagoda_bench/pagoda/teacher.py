"""Stage 1: an EDM diffusion model, on downsampled images as PaGoDA's teacher, or at full size as the multi-step row."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from pagoda_bench.artifacts.provenance import FLOPS, UPSTREAM_FLOPS
from pagoda_bench.data import open_dataset
from pagoda_bench.diffusion.edm import lognormal_sigma, normal_from_uniform, training_loss
from pagoda_bench.nets.features import save_half, to_network
from pagoda_bench.nets.unet import UNet
from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.stages import EDM, FeatureNet
from pagoda_bench.training.loop import EMA, Task, batch_indices, train


def run(recipe: EDM, ctx: Any) -> None:
    """Payload: `model.safetensors`, the averaged weights as float16."""
    torch.manual_seed(recipe.seed)
    data = open_dataset(recipe.data, ctx.data_path)
    net = UNet(recipe.net).train()
    optimizer = torch.optim.Adam(net.parameters(), lr=recipe.train.lr, betas=recipe.train.betas)
    ema = EMA(net, recipe.train.ema)
    mirror = data.size("train") is not None  # photographs may be mirrored; the embedded data need no such help

    def step(index: int, rng: np.random.Generator) -> dict[str, float]:
        numbers = batch_indices(data.size("train"), recipe.train.batch, index, recipe.seed)
        image = to_network(data.images(numbers, recipe.net.resolution, "train"))
        if mirror:
            image = torch.where((torch.rand(len(image)) < 0.5)[:, None, None, None], image.flip(3), image)
        labels = torch.from_numpy(data.labels(numbers, "train"))
        # One noise level from every 1/N of the distribution: less variance from batch to batch.
        uniform = ((torch.arange(len(image)) + torch.rand(len(image), dtype=torch.float64)) / len(image)).clamp(1e-6, 1 - 1e-6)
        sigma = lognormal_sigma(normal_from_uniform(uniform), recipe.p_mean, recipe.p_std).float()
        loss = training_loss(net, image, labels, torch.randn_like(image), sigma).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        return {"loss": float(loss.detach())}

    work = recipe.share * upstream_work(recipe.match, ctx) if recipe.match else 0.0
    total = (lambda flops: max(1, round(work / flops))) if recipe.match else None
    train(Task(step, {"net": net}, {"adam": optimizer}, {"net": ema}), recipe.train, recipe.seed, ctx, total)
    save_half(ema.state(net), ctx.out / "model.safetensors")
    ctx.record(parameters=sum(p.numel() for p in net.parameters()), device="cpu", **({"matched_flops": work} if work else {}))


def upstream_work(recipe: Recipe, ctx: Any) -> float:
    """Counted training work of `recipe` and everything upstream of it, each artifact once; the feature network, which judges
    all rows alike, is not part of it."""
    provenance = ctx.provenance(recipe)
    parts = {**provenance[UPSTREAM_FLOPS], recipe.kind: provenance[FLOPS]}
    return float(sum(flops for name, flops in parts.items() if not name.startswith(f"{FeatureNet.kind}/")))
