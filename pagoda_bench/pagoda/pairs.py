"""Data-latent pairs: the encoder E of PaGoDA is the teacher's probability-flow ODE walked from the image to noise."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pagoda_bench.artifacts.checkpoint import save_atomic
from pagoda_bench.data import open_dataset
from pagoda_bench.diffusion.edm import denoise, karras_grid
from pagoda_bench.diffusion.solvers import invert
from pagoda_bench.errors import UserError
from pagoda_bench.nets.features import to_network
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda.generate import load
from pagoda_bench.recipes.stages import Pairs

CHUNK = 250


def run(recipe: Pairs, ctx: Any) -> None:
    """Payload: `latents.npy`, float16 (count, 3, R, R), the latent of training image i in row i; with `flip`, rows
    count ... 2 count - 1 are the latents of the mirrored images. Chunks already in the work folder are not made again."""
    net = load(recipe.teacher, ctx)
    data = open_dataset(recipe.teacher.data, ctx.data_path)
    resolution = recipe.teacher.net.resolution
    grid = karras_grid(recipe.points)
    size = data.size("train")
    if size is not None and recipe.count > size:
        raise UserError(f"pairs: {recipe.count} asked for, the data hold {size} training images: lower pairs.count")
    starts = range(0, recipe.count, CHUNK)
    turns = (False, True) if recipe.flip else (False,)
    total, flops, latents = len(starts) * len(turns), 0.0, []
    for mirrored in turns:
        for start in starts:
            path = ctx.work / f"chunk-{int(mirrored)}-{start}.npy"
            if not path.exists():
                numbers = np.arange(start, min(start + CHUNK, recipe.count))
                image = to_network(data.images(numbers, resolution, "train"))
                labels = torch.from_numpy(data.labels(numbers, "train"))
                z = _latents(net, image.flip(3) if mirrored else image, labels, grid, recipe).numpy()
                save_atomic(path, partial(_save, z))
            latents.append(np.load(path))
            ctx.progress(len(latents), total)
    z = np.concatenate(latents)
    np.save(ctx.out / "latents.npy", z)
    # Counted on two images: inversion does the same operations for each.
    with FlopCounterMode(display=False) as counter:
        sample = to_network(data.images(np.arange(2), resolution, "train"))
        _latents(net, sample, torch.from_numpy(data.labels(np.arange(2), "train")), grid, recipe)
    flops = counter.get_total_flops() / 2 * len(z)
    ctx.record(training_flops=flops, latent_std=float(z.astype(np.float64).std()), pairs=len(z), device="cpu")


@torch.no_grad()
def _latents(net: UNet, image: Tensor, labels: Tensor, grid: np.ndarray, recipe: Pairs) -> Tensor:
    z = invert(lambda x, sigma: denoise(net, x, sigma, labels), image, grid, recipe.solver, recipe.clamp)
    return z.half().contiguous()


def _save(array: np.ndarray, path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, array)
