"""Noise-to-data pairs: z ~ N(0, 80^2) by index, x = the teacher's sample of z. What L_dstl compares G(z) with.

PaGoDA's L_rec turns this round: its target is the real image, and the teacher's errors enter through the latent alone. The
shards are written as those of `pairs`; the payload `images/` holds x, the noise is drawn again from its index.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pagoda_bench.artifacts.digests import sha256
from pagoda_bench.data.shards import Layout, Sharded, Writer, identity_of
from pagoda_bench.diffusion import solvers
from pagoda_bench.diffusion.edm import SIGMA_MAX, karras_grid
from pagoda_bench.errors import UserError
from pagoda_bench.nets.device import compute_device, computed_precision
from pagoda_bench.nets.unet import UNet
from pagoda_bench.nets.winograd import winograd
from pagoda_bench.pagoda.generate import denoiser, load
from pagoda_bench.recipes.stages import TeacherPairs
from pagoda_bench.sampling.noise import noise
from pagoda_bench.training.loop import autocast

FOLDER = "images"
SEED = 2**32  # far from the seeds of samples that are scored
GOLDEN = (5**0.5 - 1) / 2  # the fractional parts of its multiples are the most evenly spread of any number's


def run(recipe: TeacherPairs, ctx: Any) -> None:
    """Payload: `images/`, shards of `dtype`, (count, 3, R, R) in about [-1, 1]."""
    net = winograd(load(recipe.teacher, ctx).to(compute_device()))
    with FlopCounterMode(display=False) as counter:
        samples(recipe, net, np.arange(2))
    device = next(net.parameters()).device
    precision = computed_precision(recipe.precision, device.type)
    flops = counter.get_total_flops() / 2 * recipe.count
    ctx.record(training_flops=flops, pairs=recipe.count, device=str(device), precision=precision)
    if ctx.counting:
        return
    about, writer = _writer(recipe, ctx)
    writer.finish(partial(_rows, recipe, net), progress=ctx.progress)
    writer.publish(ctx.out / FOLDER, about)


def shard(recipe: TeacherPairs, ctx: Any, index: int, count: int) -> bool:
    """As `pairs.shard`."""
    net = winograd(load(recipe.teacher, ctx).to(compute_device()))
    _, writer = _writer(recipe, ctx)
    writer.run(partial(_rows, recipe, net), part=(index, count), wait=False, progress=ctx.progress)
    return not writer.missing()


def _writer(recipe: TeacherPairs, ctx: Any) -> tuple[dict[str, Any], Writer]:
    if recipe.flip:
        raise UserError("teacher-pairs: the noise of a mirrored sample is not mirrored noise: leave flip off")
    about = {
        "recipe": recipe.key,
        "teacher": {"key": recipe.teacher.key, "sha256": sha256(ctx.input(recipe.teacher) / "model.safetensors")},
    }
    r = recipe.teacher.net.resolution
    layout = Layout(recipe.count, (3, r, r), recipe.dtype, recipe.shard)
    return about, Writer(ctx.work / "shards", layout, identity_of(**about, shard=recipe.shard))


def _rows(recipe: TeacherPairs, net: UNet, start: int, stop: int) -> NDArray[Any]:
    batches = range(start, stop, recipe.batch)
    return np.concatenate([samples(recipe, net, np.arange(a, min(a + recipe.batch, stop))) for a in batches])


@torch.no_grad()
def samples(recipe: TeacherPairs, net: UNet, rows: NDArray[np.int64]) -> NDArray[Any]:
    """The teacher's images of rows, (N, 3, R, R) in the recipe's dtype."""
    device = next(net.parameters()).device
    z, labels = (t.to(device) for t in latents(recipe, rows))
    w = weights(recipe, rows)
    sample = solvers.heun if recipe.solver == "heun" else solvers.ddim
    with autocast(recipe.precision, device.type):
        denoise = denoiser(net, labels, 0.0 if w is None else w.to(device))
        x = sample(denoise, z, karras_grid(recipe.points), recipe.clamp)
    found: NDArray[Any] = x.to(getattr(torch, recipe.dtype)).cpu().numpy()
    return found


def latents(recipe: TeacherPairs, rows: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
    """The noise z of rows, (N, 3, R, R), and their labels: balanced, row mod classes."""
    r = recipe.teacher.net.resolution
    z = torch.from_numpy(noise(rows, (3, r, r), SEED + recipe.seed)) * SIGMA_MAX
    return z, torch.from_numpy(rows % recipe.teacher.net.classes)


def weights(recipe: TeacherPairs, rows: NDArray[np.int64]) -> Tensor | None:
    """The guidance weights of rows, float32 (N,), by the multiples of the golden ratio: even over the range in any stretch of
    rows. Those of one of C classes go in steps of C times the ratio, less whole ranges: of 10 classes even from 20 of each on,
    of 1,000 from 30, of a Fibonacci number, whose steps are shortest, from more (55: 100, 144: 300). None where the samples
    are not guided."""
    if recipe.guidance is None:
        return None
    low, high = recipe.guidance
    return torch.from_numpy(low + (high - low) * np.modf(rows * GOLDEN)[0]).float()


class TeacherImages:
    """The images of a `TeacherPairs` artifact: `images[rows]` is float32 (N, 3, R, R). `UserError` when they are those of
    another recipe, or of other weights than the teacher's beside them."""

    def __init__(self, recipe: TeacherPairs, ctx: Any) -> None:
        self._rows: Sharded | NDArray[Any]
        if ctx.counting:
            r = recipe.teacher.net.resolution
            self._rows = np.broadcast_to(np.zeros((), np.float32), (recipe.count, 3, r, r))
            return
        self._rows = Sharded(ctx.input(recipe) / FOLDER)
        if self._rows.about.get("recipe") != recipe.key or len(self._rows) != recipe.count:
            raise UserError(f"the pairs in {ctx.input(recipe)} are of another recipe than {recipe.key}: make them again")
        teacher = ctx.inputs.get(recipe.teacher.key)
        if teacher is not None and sha256(teacher / "model.safetensors") != self._rows.about["teacher"]["sha256"]:
            raise UserError(
                f"the pairs in {ctx.input(recipe)} were made with other weights than those of their teacher in {teacher}: make "
                "the pairs again"
            )

    def __getitem__(self, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._rows[rows].astype(np.float32)
