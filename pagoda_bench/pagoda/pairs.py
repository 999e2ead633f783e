"""Data-latent pairs: the encoder E of PaGoDA is the teacher's probability-flow ODE walked from the image to noise.

Pairs are written in shards, by any number of processes, in any order (`data.shards`): `shard` is what each of them runs in
the stage's work folder, and `run`, the stage itself, makes what is missing then and publishes. The same rows come out
whoever wrote them, since a row depends on its batch alone, and batches never change.

Payload: `latents/00000.npy` ... and `latents/index.json`, which says of which teacher (SHA-256 of its weights) and of which
data the pairs are. Earlier payloads, one `latents.npy` under the same key, are read too.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pagoda_bench.artifacts.digests import sha256
from pagoda_bench.data import Dataset, open_dataset
from pagoda_bench.data.shards import Layout, Sharded, Writer, identity_of
from pagoda_bench.diffusion.edm import denoise, karras_grid
from pagoda_bench.diffusion.solvers import invert
from pagoda_bench.errors import UserError
from pagoda_bench.nets.device import compute_device, computed_precision
from pagoda_bench.nets.features import to_network
from pagoda_bench.nets.unet import UNet
from pagoda_bench.nets.winograd import winograd
from pagoda_bench.pagoda.generate import load
from pagoda_bench.recipes.base import canonical
from pagoda_bench.recipes.stages import Pairs
from pagoda_bench.training.loop import autocast

FOLDER, SINGLE = "latents", "latents.npy"
MODEL = "model.safetensors"
PROBES = 16  # images whose content stands for that of the data


class Pairing:
    """The pairs of a recipe, as far as they can be told without making them: rows, their images, their identity.

    Row i is image i of the training split; with `flip`, rows count ... 2 count - 1 are the mirrored images.
    """

    def __init__(self, recipe: Pairs, ctx: Any) -> None:
        self.recipe = recipe
        self.data = open_dataset(recipe.teacher.data, ctx.data_path)
        self.resolution = recipe.teacher.net.resolution
        size = self.data.size("train")
        if size is not None and recipe.count > size:
            raise UserError(f"pairs: {recipe.count} asked for, the data hold {size} training images: lower pairs.count")
        if recipe.shard % recipe.batch:
            raise UserError(f"pairs: shards of {recipe.shard} rows are no whole number of batches of {recipe.batch}")
        shape = (3, self.resolution, self.resolution)
        self.layout = Layout(recipe.count * (2 if recipe.flip else 1), shape, recipe.dtype, recipe.shard)
        self.about = {
            "recipe": recipe.key,
            "teacher": {"key": recipe.teacher.key, "sha256": sha256(ctx.input(recipe.teacher) / MODEL)},
            "data": {"config": canonical(recipe.teacher.data), "probe": probe(self.data, recipe)},
        }

    def writer(self, folder: Path) -> Writer:
        return Writer(folder / "shards", self.layout, identity_of(**self.about, shard=self.recipe.shard))

    def latents(self, net: UNet, start: int, stop: int) -> NDArray[Any]:
        """Rows start ... stop - 1, in the batches that they belong to. Float16 holds latents to a thousandth of themselves."""
        parts, batch = [], self.recipe.batch
        for first in range(start, stop, batch):
            parts.append(self._batch(net, np.arange(first, min(first + batch, stop))).numpy())
        return np.concatenate(parts)

    @torch.no_grad()
    def _batch(self, net: UNet, rows: NDArray[np.int64]) -> Tensor:
        device = next(net.parameters()).device
        image, labels = (t.to(device) for t in self.images(rows, self.resolution))
        grid = karras_grid(self.recipe.points)
        with autocast(self.recipe.precision, device.type):
            z = invert(lambda x, sigma: denoise(net, x, sigma, labels), image, grid, self.recipe.solver, self.recipe.clamp)
        return z.to(getattr(torch, self.recipe.dtype)).cpu().contiguous()

    def images(self, rows: NDArray[np.int64], resolution: int) -> tuple[Tensor, Tensor]:
        """The images of rows at a resolution, (N, 3, R, R) in [-1, 1], mirrored where the row is, and their labels."""
        numbers = rows % self.recipe.count
        image = to_network(self.data.images(numbers, resolution, "train"))
        mirrored = torch.from_numpy(rows >= self.recipe.count)
        image = torch.where(mirrored[:, None, None, None], image.flip(3), image)
        return image, torch.from_numpy(self.data.labels(numbers, "train"))


def run(recipe: Pairs, ctx: Any) -> None:
    """The stage: makes the shards that nobody has made, waits for those in other hands, checks all, publishes."""
    pairing, net = Pairing(recipe, ctx), winograd(load(recipe.teacher, ctx).to(compute_device()))
    # Counted on two images: inversion does the same operations for each.
    with FlopCounterMode(display=False) as counter:
        pairing._batch(net, np.arange(2))
    ctx.record(training_flops=counter.get_total_flops() / 2 * pairing.layout.rows)
    if ctx.counting:
        return
    writer = pairing.writer(ctx.work)
    writer.finish(lambda start, stop: pairing.latents(net, start, stop), progress=ctx.progress)
    writer.publish(ctx.out / FOLDER, pairing.about)
    z, device = Sharded(ctx.out / FOLDER), next(net.parameters()).device
    ctx.record(
        latent_std=_std(z),
        pairs=len(z),
        device=str(device),
        precision=computed_precision(recipe.precision, device.type),
    )


def shard(recipe: Pairs, ctx: Any, index: int, count: int) -> bool:
    """Process `index` of `count` that fill the work folder of the same recipe: makes shards until none is left that nobody
    is making. Whether all are there."""
    pairing, net = Pairing(recipe, ctx), winograd(load(recipe.teacher, ctx).to(compute_device()))
    writer = pairing.writer(ctx.work)
    writer.run(lambda start, stop: pairing.latents(net, start, stop), part=(index, count), wait=False, progress=ctx.progress)
    return not writer.missing()


class Latents:
    """The latents of a `Pairs` artifact: `latents[rows]` is float32 (N, 3, R, R), in units of sigma.

    Raises:
        UserError: the folder holds no pairs of this recipe, or those of another teacher or other data than it says.
    """

    def __init__(self, recipe: Pairs, ctx: Any, data: Dataset) -> None:
        folder = ctx.input(recipe)
        self._rows: Sharded | NDArray[Any]
        rows, r = recipe.count * (2 if recipe.flip else 1), recipe.teacher.net.resolution
        if ctx.counting:
            self._rows = np.broadcast_to(np.zeros((), np.float16), (rows, 3, r, r))
            return
        if (folder / SINGLE).is_file():
            single: NDArray[Any] = np.load(folder / SINGLE, mmap_mode="r")
            self._rows, found = single, single.shape
        else:
            sharded = Sharded(folder / FOLDER)
            self._rows, found = sharded, (len(sharded), *sharded.layout.shape)
            _check(sharded.about, recipe, ctx, data, folder)
        if found != (rows, 3, r, r):
            raise UserError(f"the pairs in {folder} have the shape {found}, the recipe says {(rows, 3, r, r)}: make them again")

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        if isinstance(self._rows, Sharded):
            return self._rows[rows].astype(np.float32)
        return np.asarray(self._rows[np.sort(rows)][np.argsort(np.argsort(rows))], np.float32)


def probe(data: Dataset, recipe: Pairs) -> str:
    """SHA-256 of a few of the images, spread over the pairs, as the teacher sees them, and of their labels."""
    numbers = np.unique(np.linspace(0, recipe.count - 1, PROBES).astype(np.int64))
    digest = hashlib.sha256(np.ascontiguousarray(data.images(numbers, recipe.teacher.net.resolution, "train")).data)
    digest.update(np.ascontiguousarray(data.labels(numbers, "train"), dtype="<i8").data)
    return digest.hexdigest()


def _check(about: dict[str, Any], recipe: Pairs, ctx: Any, data: Dataset, folder: Path) -> None:
    """The pairs say of which teacher and data they are; a stage that has these beside it compares."""
    if about.get("recipe") != recipe.key:
        raise UserError(f"the pairs in {folder} are those of recipe {about.get('recipe')}, not {recipe.key}: make them again")
    weights = ctx.inputs.get(recipe.teacher.key)
    if weights is not None and sha256(weights / MODEL) != about["teacher"]["sha256"]:
        raise UserError(
            f"the pairs in {folder} were made with other weights than those of their teacher in {weights}: make the pairs again"
        )
    if probe(data, recipe) != about["data"]["probe"]:
        raise UserError(
            f"the images are not those that the pairs in {folder} were made of (another decoder or another version "
            "changes pixels): make the pairs again"
        )


def _std(z: Sharded) -> float:
    """Standard deviation over everything, shard by shard, in float64."""
    total, squares, count = 0.0, 0.0, 0
    for number in range(z.layout.count):
        part = z[np.arange(*z.layout.bounds(number))].astype(np.float64)
        total, squares, count = total + part.sum(), squares + np.square(part).sum(), count + part.size
    return float(np.sqrt(max(0.0, squares / count - (total / count) ** 2)))
