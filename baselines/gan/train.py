"""The two kinds of stages: the stem, and a block on a frozen generator.

A step makes one batch of images, the generator learns from it, and the discriminator's updates look at the same maps: the
feature network, which costs most of a step, sees every image once.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from baselines.batches import images_of_step, mine
from baselines.gan.net import StyleNet
from baselines.gan.recipes import Adversary, Gan, GanGrown, GanStem, StyleConfig
from baselines.training import fit, together
from pagoda_bench.data import Dataset, open_dataset
from pagoda_bench.errors import UserError
from pagoda_bench.nets.device import compute_device
from pagoda_bench.nets.discriminator import Judge, hinge_discriminator
from pagoda_bench.nets.features import from_network, load_features, save_half
from pagoda_bench.nets.weights import load_file_whole
from pagoda_bench.pagoda.looks import EmbeddedLook, Look, ProjectedLook, build_eyes, drawn_for, judge_of
from pagoda_bench.pagoda.losses import generator_loss
from pagoda_bench.recipes.losses import LossConfig
from pagoda_bench.sampling.noise import noise
from pagoda_bench.training import parallel
from pagoda_bench.training.alarm import PINS
from pagoda_bench.training.averages import averaged
from pagoda_bench.training.loop import EMA, Task, autocast, count_step
from pagoda_bench.training.updates import apply, optimizer

WEIGHTS = "model.safetensors"
SHOWN = 64  # samples in a grid


class Tally(nn.Module):
    """How many updates the discriminator has had: a buffer, so that a checkpoint holds it."""

    updates: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))


class Step:
    """`step(index, rng)` for the training loop. `start` is the first block that trains; `exactly` fixes the number of the
    discriminator's updates, to find out what one costs."""

    def __init__(
        self,
        recipe: Gan,
        net: StyleNet,
        start: int,
        look: Look,
        judge: Judge,
        optimizers: dict[str, torch.optim.Optimizer],
        data: Dataset,
    ) -> None:
        self.recipe, self.net, self.start, self.look, self.judge = recipe, net, start, look, judge
        self.optimizers, self.data = optimizers, data
        self.tally, self.exactly = Tally(), 0
        self.moved = False  # whether the last step changed the generator

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, float]:
        batch, size = self.recipe.train.batch, self.net.config.resolution
        (real,), labels = images_of_step(self.data, (size,), batch, index, self.recipe.seed)
        (z,) = mine(torch.randn(batch, self.net.config.latent))
        (part,), device = parallel.parts(batch), next(self.net.parameters()).device
        draws = [drawn_for(self.look.draws(batch, size), part, device) for _ in range(2)]
        real, labels, z = (t.to(device) for t in (real, labels, z))
        fake = generate(self.net, z, labels, self.start)
        maps = self.judge.see(self.look.maps(fake, draws[0]))
        loss = generator_loss(self.judge.decide(maps, labels), "hinge")
        # By way of the image, so that the discriminator's weights get no gradients here.
        (at_image,) = torch.autograd.grad(loss, fake)
        self.optimizers["generator"].zero_grad(set_to_none=True)
        fake.backward(at_image)
        values = {"adv": float(loss.detach())}
        norm = apply(self.optimizers["generator"], [values["adv"]], clip=self.recipe.train.clip)
        self.moved = math.isfinite(norm)
        if not self.moved:
            return {**values, "norm": norm}
        with torch.no_grad():
            real_maps = self.judge.see(self.look.maps(real, draws[1]))
        return values | self._discriminator(real_maps, [m.detach() for m in maps], labels, index)

    def _discriminator(self, real: list[Tensor], fake: list[Tensor], labels: Tensor, index: int) -> dict[str, float]:
        """Updates on the maps of a step. The first step makes all of them: it is the one whose work is counted. One that is
        not finite is not applied, and told to the loop."""
        choice, own, done = self.recipe.adversary, self.optimizers["discriminator"], 0
        loss, norm = math.inf, 0.0
        for _ in range(self.exactly or choice.updates):
            if done and index and not self.exactly and choice.until and loss <= choice.until:
                break
            own.zero_grad(set_to_none=True)
            found = hinge_discriminator(self.judge.decide(real, labels), self.judge.decide(fake, labels))
            loss = parallel.averaged({"d": float(found.detach())})["d"]
            found.backward()
            norm += apply(own, [loss])
            done += 1
        self.tally.updates += done
        return {"d": loss} if math.isfinite(norm) else {"d": loss, "norm_d": norm}


def generate(net: StyleNet, z: Tensor, labels: Tensor, start: int) -> Tensor:
    """Images (N, 3, R, R). With `start` above 0 the mapping and the blocks below it run without a graph: they are frozen."""
    with torch.set_grad_enabled(start == 0):
        state = net.trunk(net.mapping(z, labels), start)
    return net.finish(state, start)


@together
def stem(recipe: GanStem, ctx: Any) -> None:
    """Payload: `model.safetensors`, the averaged weights as float16."""
    torch.manual_seed(recipe.seed)
    _fit(recipe, StyleNet(recipe.style), 0, ctx)


@together
def grown(recipe: GanGrown, ctx: Any) -> None:
    """Payload: as of the stem; the tensors of the stage below are in it, bit by bit."""
    torch.manual_seed(recipe.seed)
    net = StyleNet(recipe.style)
    start = start_from(net, recipe.base.style, ctx.input(recipe.base) / WEIGHTS)
    _fit(recipe, net, start, ctx)


def start_from(net: StyleNet, below: StyleConfig, path: Path) -> int:
    """Takes over a generator, whole or not at all, and freezes it; returns the number of the first block that is new. That
    block adds nothing to the image at first: the stage starts from its base, enlarged.

    Raises:
        UserError: a tensor of the generator below is missing, left over or of another shape.
    """
    base, start = StyleNet(below), len(below.channels)
    load_file_whole(base, path)
    left = net.load_state_dict(base.state_dict(), strict=False)
    assert not left.unexpected_keys
    assert all(name.startswith(f"blocks.{start}.") for name in left.missing_keys)
    net.requires_grad_(False)
    for block in list(net.blocks)[start:]:
        block.requires_grad_(True)
        nn.init.zeros_(block.get_submodule("to_rgb").get_parameter("weight"))
    return start


def _fit(recipe: Gan, net: StyleNet, start: int, ctx: Any) -> None:
    data, train, choice = open_dataset(recipe.data, ctx.data_path), recipe.train, recipe.adversary
    if net.config.classes != len(data.classes):
        raise UserError(f"{recipe.title}: net.classes is {net.config.classes}, the data have {len(data.classes)}: set it")
    look, judge = eyes_of(recipe, choice, len(data.classes), ctx)
    device = compute_device()
    net.to(device).to(memory_format=torch.channels_last)
    parallel.synced(judge).to(device).to(memory_format=torch.channels_last)
    trained = [p for p in net.parameters() if p.requires_grad]
    theirs = [p for p in judge.parameters() if p.requires_grad]
    optimizers = {
        "generator": optimizer(trained, train),
        "discriminator": optimizer(theirs, train, choice.lr, betas=choice.betas),
    }
    ema = EMA(net, train.ema)
    step = Step(recipe, net, start, look, judge, optimizers, data)
    nets: dict[str, nn.Module] = {"generator": net, "discriminator": judge, "tally": step.tally}
    if (stored := look.stored()) is not None:
        nets["projections"] = stored

    def samples() -> NDArray[np.uint8]:
        z, labels = torch.from_numpy(noise(np.arange(SHOWN), (net.config.latent,))), torch.arange(SHOWN) % len(data.classes)
        with averaged(net, ema):
            return from_network(net(z.to(device), labels.to(device)).cpu())

    task = Task(step, nets, optimizers, {"generator": ema}, samples=samples, watched={"d": PINS["hinge"]})
    task.moved = lambda: step.moved
    price = price_of_update(step, task) if choice.until and not ctx.counting else 0
    fit(recipe, task, ctx)
    if price:
        steps, done = int(ctx.facts["steps"]), int(step.tally.updates)
        spared = price * (steps * choice.updates - done)
        ctx.record(training_flops=ctx.facts["training_flops"] - spared, discriminator_updates=done / steps)
    save_half(ema.state(net), ctx.out / WEIGHTS)
    ctx.record(
        parameters=sum(p.numel() for p in net.parameters()),
        trainable=sum(p.numel() for p in trained),
        device=str(device),
    )


def price_of_update(step: Step, task: Task) -> int:
    """The counted work of one update of the discriminator."""
    found = []
    with autocast(step.recipe.train.precision, compute_device().type):
        for step.exactly in (1, 2):
            found.append(count_step(task, step.recipe.seed, 0) * parallel.world())
    step.exactly = 0
    return found[1] - found[0]


def eyes_of(recipe: Gan, choice: Adversary, classes: int, ctx: Any) -> tuple[Look, Judge]:
    """What the discriminator looks through, and its heads, drawn from the recipe's seed."""
    features = load_features(recipe.features, ctx).to(compute_device()) if recipe.features is not None else None
    look: Look
    if features is not None:
        look = EmbeddedLook(features, augmented=choice.augment, eps=0.0)
    else:
        look = ProjectedLook(build_eyes(choice.projected).to(compute_device()), augmented=choice.augment, eps=0.0)
    loss = LossConfig(
        features=choice.features,
        projected=choice.projected,
        discriminator=choice.discriminator,
        discriminator_width=choice.width,
    )
    return look, judge_of(loss, features, classes, recipe.seed)
