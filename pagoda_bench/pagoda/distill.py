"""Stage 2: one network evaluation from noise to image, at the teacher's resolution, starting from the teacher's weights."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagoda_bench.diffusion.edm import one_step
from pagoda_bench.pagoda.adversarial import fit
from pagoda_bench.recipes.stages import Distill
from pagoda_bench.training.building import build, weights
from pagoda_bench.training.distributed import group


def run(recipe: Distill, ctx: Any) -> None:
    with group():
        _run(recipe, ctx)


def _run(recipe: Distill, ctx: Any) -> None:
    torch.manual_seed(recipe.seed)
    net, values = build(recipe.net, recipe.train.shard)
    net.start_from(weights(ctx.input(recipe.pairs.teacher) / "model.safetensors", values))
    net.train()

    def generate(z: Tensor, labels: Tensor, rows: NDArray[np.int64] | None = None, w: Tensor | None = None) -> Tensor:
        return one_step(partial(net, w=w), z, labels)

    fit(recipe, net, generate, ctx, values=values)
