"""Stage 2: one network evaluation from noise to image, at the teacher's resolution, starting from the teacher's weights."""

from __future__ import annotations

from typing import Any

import torch

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
    net.load_state_dict(weights(ctx.input(recipe.pairs.teacher) / "model.safetensors", values))
    net.train()
    fit(recipe, net, lambda z, labels, rows=None: one_step(net, z, labels), ctx, values=values)
