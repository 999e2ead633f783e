"""The two phases: the core inside a shallow UViT, then a U-Net around it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from baselines.batches import mine
from baselines.greedy import process
from baselines.greedy.net import GreedyNet, shard
from baselines.greedy.recipes import CoreConfig, GreedyCore, GreedyGrown, OuterConfig
from baselines.greedy.text import captions_of, encoder
from baselines.training import descend, fit, together
from pagoda_bench.data import Dataset, open_dataset
from pagoda_bench.diffusion.edm import stratified
from pagoda_bench.errors import UserError
from pagoda_bench.nets.device import compute_device
from pagoda_bench.nets.features import save_half, to_network
from pagoda_bench.nets.weights import load_file_whole, load_whole, read_weights
from pagoda_bench.training import parallel
from pagoda_bench.training.loop import EMA, Task, batch_indices
from pagoda_bench.training.updates import optimizer

WEIGHTS = "model.safetensors"
CORE = "core."


class Condition:
    """What the network is conditioned on: labels, or captions by the recipe's text encoder."""

    def __init__(self, core: CoreConfig, data: Dataset) -> None:
        if core.text is None and core.classes != len(data.classes):
            raise UserError(f"the core knows {core.classes} classes, the data have {len(data.classes)}: set core.classes")
        self.data = data
        self.encoder = encoder(core.text) if core.text else None
        self.nothing = self.encoder.encode([""]) if self.encoder is not None else torch.tensor([core.classes])

    def of(self, numbers: np.ndarray, split: str) -> Tensor:
        if self.encoder is not None:
            return self.encoder.encode(captions_of(self.data, numbers, split))
        return torch.from_numpy(self.data.labels(numbers, split))  # type: ignore[arg-type]

    def null(self, count: int) -> Tensor:
        """Conditions that say nothing."""
        return self.nothing.expand(count, *self.nothing.shape[1:])


@together
def core(recipe: GreedyCore, ctx: Any) -> None:
    """Phase 1. Payload: `model.safetensors`, the averaged weights as float16."""
    torch.manual_seed(recipe.seed)
    net = GreedyNet(recipe.core, recipe.outer)
    _fit(recipe, net, ctx)


@together
def grown(recipe: GreedyGrown, ctx: Any) -> None:
    """Phase 2. Payload: as in phase 1, the core's tensors bit by bit those of phase 1 where it stays frozen."""
    torch.manual_seed(recipe.seed)
    net = GreedyNet(recipe.core, recipe.outer)
    if recipe.base is not None:
        start_from(net, ctx.input(recipe.base) / WEIGHTS, octaves=isinstance(recipe.base, GreedyGrown))
    if recipe.freeze == "always":
        net.core.requires_grad_(False)
    _fit(recipe, net, ctx)


def start_from(net: GreedyNet, path: Path, octaves: bool) -> None:
    """Takes over the core, whole or not at all; with `octaves` also the levels that both networks have, which must fit.

    Raises:
        UserError: a tensor of the core is missing, left over or of another shape.
    """
    state = read_weights(path)
    held = {name.removeprefix(CORE): value for name, value in state.items() if name.startswith(CORE)}
    load_whole(net.core, held, f"the core in {path}")
    if not octaves:
        return
    parts = ["shallow_in", "shallow_out"]
    parts += sorted({".".join(name.split(".")[:2]) for name in state if name.startswith(("down.", "up."))})
    for part in parts:
        inner = {name.removeprefix(f"{part}."): value for name, value in state.items() if name.startswith(f"{part}.")}
        load_whole(net.get_submodule(part), inner, f"{part} in {path}")


def _fit(recipe: GreedyCore | GreedyGrown, net: GreedyNet, ctx: Any) -> None:
    data = open_dataset(recipe.data, ctx.data_path)
    condition = Condition(recipe.core, data)
    how, outer, train = recipe.process, recipe.outer, recipe.train
    thaw_at = recipe.thaw_at if isinstance(recipe, GreedyGrown) else 0
    device, batch = compute_device(), train.batch
    if train.shard and parallel.world() > 1:
        if thaw_at:
            raise UserError(f"{recipe.title}: train.shard does not go with a core that thaws: leave it out")
        shard(net)
    else:
        net.to(device)
    trained = [p for p in net.parameters() if p.requires_grad]
    adam = optimizer(trained, train)
    ema = EMA(net, train.ema)
    mirror = data.size("train") is not None
    net.train()

    def step(index: int, rng: np.random.Generator) -> dict[str, float]:
        if thaw_at:
            net.core.requires_grad_(index >= thaw_at)
        (part,) = parallel.parts(batch)
        numbers = batch_indices(data.size("train"), batch, index, recipe.seed)[part]
        image = to_network(data.images(numbers, outer.resolution, "train")) / how.deviation
        if mirror:
            image = torch.where((torch.rand(batch) < 0.5)[part, None, None, None], image.flip(3), image)
        given = condition.of(numbers, "train")
        if how.drop:
            left_out = (torch.rand(batch) < how.drop)[part].view(-1, *[1] * (given.dim() - 1))
            given = torch.where(left_out, condition.null(len(image)).to(given.dtype), given)
        drawn_at = stratified(batch, shuffled=how.strata == "shuffled")
        logsnr = process.logsnr_of(drawn_at, outer.resolution, how.shift, how.logsnr_min, how.logsnr_max).float()
        drawn = mine(torch.randn(batch, *image.shape[1:]), logsnr)
        image, given, noise, logsnr = (t.to(device) for t in (image, given, *drawn))
        loss = process.training_loss(net, image, noise, logsnr, given, how.loss).mean()
        return descend(adam, loss, train)

    fit(recipe, Task(step, {"net": net}, {"adam": adam}, {"net": ema}), ctx, dearer_from=thaw_at)
    save_half(ema.state(net), ctx.out / WEIGHTS)
    own = sum(p.numel() for p in net.core.parameters())
    ctx.record(parameters=sum(p.numel() for p in net.parameters()), core_parameters=own, device=str(device))


def network(core: CoreConfig, outer: OuterConfig, path: Path) -> GreedyNet:
    """The averaged network of an artifact, whole or not at all, in evaluation mode."""
    net = GreedyNet(core, outer)
    load_file_whole(net, path)
    return net.to(memory_format=torch.channels_last).eval().requires_grad_(False)
