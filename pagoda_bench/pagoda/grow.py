"""Stage 3: one more level on the decoder. The latent stays what it was; what lies below `train_from` is frozen."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pagoda_bench.diffusion.edm import SIGMA_MAX, preconditioning
from pagoda_bench.nets.features import load_half
from pagoda_bench.nets.growth import grow, train_start, trainable_keys
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda.adversarial import fit
from pagoda_bench.recipes.stages import Grow


def run(recipe: Grow, ctx: Any) -> None:
    """The frozen part runs without a graph: the cost of a level is its own, plus one forward pass of what lies below."""
    torch.manual_seed(recipe.seed)
    net = UNet(recipe.net)
    fresh = grow(load_half(ctx.input(recipe.base) / "model.safetensors"), net, train_from=recipe.train_from)
    trained = set(trainable_keys(net, recipe.train_from))
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in trained)
    net.train()
    start = train_start(net, recipe.train_from)
    c_in = float(preconditioning(torch.tensor(SIGMA_MAX, dtype=torch.float64)).c_in)

    def generate(z: Tensor, labels: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = net.trunk(c_in * z, SIGMA_MAX, labels, stop=start)
        return net.finish(hidden, start)

    fit(recipe, net, generate, ctx)
    ctx.record(fresh=len(fresh), train_start=start)
