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
    net, data, grid = _open(recipe, ctx)
    resolution = recipe.teacher.net.resolution
    chunks, latents = _chunks(recipe), []
    for chunk in chunks:
        _make(recipe, ctx, net, data, grid, chunk)
        latents.append(np.load(_path(ctx, chunk)))
        ctx.progress(len(latents), len(chunks))
    z = np.concatenate(latents)
    np.save(ctx.out / "latents.npy", z)
    # Counted on two images: inversion does the same operations for each.
    with FlopCounterMode(display=False) as counter:
        sample = to_network(data.images(np.arange(2), resolution, "train"))
        _latents(net, sample, torch.from_numpy(data.labels(np.arange(2), "train")), grid, recipe)
    flops = counter.get_total_flops() / 2 * len(z)
    ctx.record(training_flops=flops, latent_std=float(z.astype(np.float64).std()), pairs=len(z), device="cpu")


def shard(recipe: Pairs, ctx: Any, index: int, count: int) -> bool:
    """Share `index` of `count` of the work: every `count`-th chunk, left in the work folder, where `run` takes it up. Returns
    whether all chunks are there."""
    chunks = _chunks(recipe)
    mine = [chunk for chunk in chunks[index::count] if not _path(ctx, chunk).exists()]
    opened = _open(recipe, ctx) if mine else None
    for done, chunk in enumerate(mine, 1):
        if opened is not None:
            _make(recipe, ctx, *opened, chunk)
        ctx.progress(done, len(mine))
    return all(_path(ctx, chunk).exists() for chunk in chunks)


def _open(recipe: Pairs, ctx: Any) -> tuple[UNet, Any, np.ndarray]:
    """The teacher, the images and the noise levels."""
    net, data = load(recipe.teacher, ctx), open_dataset(recipe.teacher.data, ctx.data_path)
    size = data.size("train")
    if size is not None and recipe.count > size:
        raise UserError(f"pairs: {recipe.count} asked for, the data hold {size} training images: lower pairs.count")
    return net, data, karras_grid(recipe.points)


def _chunks(recipe: Pairs) -> list[tuple[bool, int]]:
    """(mirrored, first image) of each chunk, in the order of the payload's rows."""
    return [(turn, start) for turn in ((False, True) if recipe.flip else (False,)) for start in range(0, recipe.count, CHUNK)]


def _path(ctx: Any, chunk: tuple[bool, int]) -> Path:
    path: Path = ctx.work / f"chunk-{int(chunk[0])}-{chunk[1]}.npy"
    return path


def _make(recipe: Pairs, ctx: Any, net: UNet, data: Any, grid: np.ndarray, chunk: tuple[bool, int]) -> None:
    """A chunk's file, unless it is there."""
    if (path := _path(ctx, chunk)).exists():
        return
    mirrored, start = chunk
    numbers = np.arange(start, min(start + CHUNK, recipe.count))
    image = to_network(data.images(numbers, recipe.teacher.net.resolution, "train"))
    labels = torch.from_numpy(data.labels(numbers, "train"))
    z = _latents(net, image.flip(3) if mirrored else image, labels, grid, recipe).numpy()
    save_atomic(path, partial(_save, z))


@torch.no_grad()
def _latents(net: UNet, image: Tensor, labels: Tensor, grid: np.ndarray, recipe: Pairs) -> Tensor:
    z = invert(lambda x, sigma: denoise(net, x, sigma, labels), image, grid, recipe.solver, recipe.clamp)
    return z.half().contiguous()


def _save(array: np.ndarray, path: Path) -> None:
    with open(path, "wb") as file:
        np.save(file, array)
