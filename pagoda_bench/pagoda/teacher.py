"""Stage 1: an EDM diffusion model, on downsampled images as PaGoDA's teacher, or at full size as the multi-step row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pagoda_bench.artifacts.provenance import FLOPS, UPSTREAM_FLOPS, counted_work
from pagoda_bench.data import open_dataset
from pagoda_bench.diffusion.edm import (
    SIGMA_MAX,
    denoise,
    karras_grid,
    lognormal_sigma,
    normal_from_uniform,
    stratified,
    training_loss,
)
from pagoda_bench.diffusion.solvers import heun
from pagoda_bench.errors import UserError
from pagoda_bench.nets.device import compute_device
from pagoda_bench.nets.features import from_network, to_network
from pagoda_bench.nets.unet import NO_LABEL, UNet
from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.stages import EDM, FeatureNet
from pagoda_bench.recipes.work import Work
from pagoda_bench.sampling.noise import noise
from pagoda_bench.training import parallel
from pagoda_bench.training.averages import averaged, averages, save_averages
from pagoda_bench.training.building import build
from pagoda_bench.training.distributed import group
from pagoda_bench.training.evaluation import Evaluation
from pagoda_bench.training.loop import EMA, Task, batch_indices, train
from pagoda_bench.training.sharding import shard
from pagoda_bench.training.updates import LossScale, apply, optimizer

POINTS = 18  # of Heun's method, for samples while it trains
SHOWN = 64  # samples in a grid


def run(recipe: EDM, ctx: Any) -> None:
    """Payload: `model.safetensors`, the averaged weights as float16, and one more for each further average."""
    with group():
        _run(recipe, ctx)


def _run(recipe: EDM, ctx: Any) -> None:
    torch.manual_seed(recipe.seed)
    config, device = recipe.train, compute_device()
    data = open_dataset(recipe.data, ctx.data_path)
    net, values = build(recipe.net, config.shard)
    shard(net.train(), config.shard, values)
    adam = optimizer(list(net.parameters()), config)
    emas, scale = averages(net, config, "net"), LossScale(config.precision)
    mirror = data.size("train") is not None  # photographs may be mirrored; the embedded data need no such help
    batch, size = config.batch, recipe.net.resolution
    moved = True

    def step(index: int, rng: np.random.Generator) -> dict[str, float]:
        nonlocal moved
        numbers = batch_indices(data.size("train"), batch, index, recipe.seed)
        flips = torch.rand(batch) < 0.5 if mirror else None
        uniform = stratified(batch, shuffled=recipe.strata == "shuffled")
        sigma = lognormal_sigma(normal_from_uniform(uniform), recipe.p_mean, recipe.p_std).float()
        eps = torch.randn(batch, 3, recipe.net.output_resolution, recipe.net.output_resolution)
        dropped = torch.rand(batch) < recipe.drop if recipe.drop else None
        total = 0.0
        adam.zero_grad(set_to_none=True)
        for part in parallel.parts(batch, config.accumulate):
            image = to_network(data.images(numbers[part], size, "train"))
            if flips is not None:
                image = torch.where(flips[part][:, None, None, None], image.flip(3), image)
            labels = torch.from_numpy(data.labels(numbers[part], "train"))
            if dropped is not None:
                labels = torch.where(dropped[part], NO_LABEL, labels)
            x, y, n, s = (t.to(device) for t in (image, labels, eps[part], sigma[part]))
            loss = training_loss(net, x, y, n, s).mean() / config.accumulate
            (scale.value * loss).backward()
            total += float(loss.detach())
        norm = apply(adam, [total], clip=config.clip, scale=scale)
        moved = math.isfinite(norm)
        return {"loss": total} if moved or scale.active else {"loss": total, "norm": norm}

    work = recipe.share * upstream_work(recipe.match, ctx) if recipe.match else 0.0
    total = (lambda flops: max(1, round(work / flops))) if recipe.match else None
    task = Task(step, {"net": net}, {"adam": adam}, emas, scale=scale, moved=lambda: moved)
    task.samples = lambda: _samples(net, emas["net"], np.arange(SHOWN), np.arange(SHOWN) % len(data.classes))
    if config.evaluate:
        task.evaluation = Evaluation(
            config, recipe.data, data, recipe.net.output_resolution, lambda i, y: _samples(net, emas["net"], i, y), ctx.work
        )
    train(task, config, recipe.seed, ctx, total)
    save_averages(net, emas, ctx)
    parameters = sum(p.numel() for p in net.parameters())
    ctx.record(parameters=parameters, device=str(device), **({"matched_flops": work} if work else {}))


def _samples(net: UNet, ema: EMA, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> NDArray[np.uint8]:
    """What the averaged model makes of the noise of these indices."""
    at, r = next(net.parameters()).device, net.config.resolution
    z = (torch.from_numpy(noise(indices, (3, r, r))) * SIGMA_MAX).to(at)
    y = torch.from_numpy(labels).to(at)
    with averaged(net, ema):
        return from_network(heun(lambda x, sigma: denoise(net, x, sigma, y), z, karras_grid(POINTS)).cpu())


def upstream_work(recipe: Recipe, ctx: Any) -> float:
    """Counted training work of `recipe` and everything upstream of it, each artifact once; the feature network, which judges
    all rows alike, is not part of it. Of a `Work`, that of the chain which it counted."""
    if isinstance(recipe, Work):
        return counted_work(ctx.input(recipe))
    provenance = ctx.provenance(recipe)
    parts = {**provenance[UPSTREAM_FLOPS], recipe.kind: provenance.get(FLOPS)}
    if unknown := sorted(name for name, flops in parts.items() if flops is None):
        raise UserError(
            f"the training work of {unknown[0]} is not known, so no row can be matched with it: leave this row away"
        )
    return float(sum(flops for name, flops in parts.items() if not name.startswith(f"{FeatureNet.kind}/")))
