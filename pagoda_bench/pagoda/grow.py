"""Stage 3: one more level on the decoder. The latent stays what it was; what lies below `train_from` is frozen."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pagoda_bench.diffusion.edm import SIGMA_MAX, preconditioning
from pagoda_bench.errors import UserError
from pagoda_bench.nets.growth import grow, train_start, trainable_keys
from pagoda_bench.nets.unet import Hidden, UNet
from pagoda_bench.nets.winograd import winograd
from pagoda_bench.pagoda.adversarial import fit
from pagoda_bench.pagoda.sources import Source
from pagoda_bench.recipes.stages import Grow
from pagoda_bench.training.building import build, weights
from pagoda_bench.training.distributed import group

ROWS = 64  # latents that go through the frozen part at once when their states are kept


class Frozen:
    """`generate(z, labels, rows)`: the frozen part without a graph, then what trains.

    States of the pairs before output block `start` never change, so they may be kept: then only fresh noise goes through the
    frozen part. They are made in the same batches whenever they are made, so a resumed run has the same bytes.
    """

    def __init__(self, net: UNet, start: int) -> None:
        self.net, self.start = winograd(net), start
        self.c_in = float(preconditioning(torch.tensor(SIGMA_MAX, dtype=torch.float64)).c_in)
        self.kept: Hidden | None = None

    def __call__(self, z: Tensor, labels: Tensor, rows: NDArray[np.int64] | None = None, w: Tensor | None = None) -> Tensor:
        """Images of latents (N, 3, R, R), which are those of the pairs `rows` where these are given; `w` (N,) guides them."""
        if self.kept is None or rows is None:
            return self.net.finish(self._state(z, labels, w), self.start)
        rows = rows % len(self.kept.h)  # the first pairs stand for all where only the work is asked for
        return self.net.finish(_taken(self.kept, torch.from_numpy(rows), z.device), self.start)

    def keep(self, source: Source, size: int, limit: float, counting: bool = False) -> int:
        """Makes the states of all pairs; returns the operations that took. With `counting`, of the first ones alone, and the
        operations of all. `UserError` above `limit` GB."""
        device, parts = next(self.net.parameters()).device, []
        with FlopCounterMode(display=False) as counter:
            for first in range(0, source.used, ROWS):
                rows = np.arange(first, min(first + ROWS, source.used))
                _, z, labels = source.batch(rows, size)
                parts.append(_taken(self._state(z.to(device), labels.to(device)), slice(None), torch.device("cpu")))
                needed = sum(t.numel() * t.element_size() for t in _tensors(parts[0])) * source.used / len(parts[0].h) / 1e9
                if needed > limit:
                    raise UserError(
                        f"grow.cache: the states of {source.used:,} pairs take {needed:.3g} GB, more than {limit:g}: raise it, "
                        "set it to 0, or use fewer pairs"
                    )
                if counting:
                    break
        self.kept = _joined(parts)
        return counter.get_total_flops() * source.used // len(self.kept.h)

    @torch.no_grad()
    def _state(self, z: Tensor, labels: Tensor, w: Tensor | None = None) -> Hidden:
        return self.net.trunk(self.c_in * z, SIGMA_MAX, labels, stop=self.start, w=w)


def run(recipe: Grow, ctx: Any) -> None:
    """The frozen part runs without a graph: the cost of a level is its own, plus one forward pass of what lies below."""
    with group():
        _run(recipe, ctx)


def _run(recipe: Grow, ctx: Any) -> None:
    torch.manual_seed(recipe.seed)
    net, values = build(recipe.net, recipe.train.shard)
    fresh = grow(weights(ctx.input(recipe.base) / "model.safetensors", values), net, train_from=recipe.train_from)
    trained = set(trainable_keys(net, recipe.train_from))
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name in trained)
    net.train()
    start = train_start(net, recipe.train_from)
    generate = Frozen(net, start)
    keep = partial(generate.keep, size=recipe.net.output_resolution, limit=recipe.cache, counting=ctx.counting)
    fit(recipe, net, generate, ctx, keep if recipe.cache else None, values)
    ctx.record(fresh=len(fresh), train_start=start)


def _tensors(state: Hidden) -> list[Tensor]:
    return [state.h, *state.skips, state.emb]


def _taken(state: Hidden, rows: Tensor | slice, device: torch.device) -> Hidden:
    return Hidden(state.h[rows].to(device), tuple(s[rows].to(device) for s in state.skips), state.emb[rows].to(device))


def _joined(states: Sequence[Hidden]) -> Hidden:
    skips = tuple(torch.cat(parts) for parts in zip(*(s.skips for s in states), strict=True))
    return Hidden(torch.cat([s.h for s in states]), skips, torch.cat([s.emb for s in states]))
