"""The training of a baseline: the one loop, for a number of steps or for an amount of counted work."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pagoda_bench.artifacts.provenance import FLOPS, UPSTREAM_FLOPS
from pagoda_bench.errors import UserError
from pagoda_bench.nets.device import compute_device
from pagoda_bench.pagoda.teacher import upstream_work
from pagoda_bench.recipes.stages import TrainConfig
from pagoda_bench.recipes.trained import Trained, trained_upstream
from pagoda_bench.training import parallel
from pagoda_bench.training.distributed import group
from pagoda_bench.training.loop import Task, autocast, count_step, train
from pagoda_bench.training.options import refuse
from pagoda_bench.training.sharding import any_sharded
from pagoda_bench.training.updates import apply

NOT_HERE = ("accumulate", "emas", "evaluate")  # of `TrainConfig`: what only the models of `pagoda_bench` do


Runner = Callable[[Any, Any], None]


def together(run: Runner) -> Runner:
    """A runner inside the group of its processes (`training.distributed`), which share every batch; one alone is its own."""

    @functools.wraps(run)
    def joined(recipe: Any, ctx: Any) -> None:
        with group():
            run(recipe, ctx)

    return joined


def fit(recipe: Trained, task: Task, ctx: Any, dearer_from: int = 0) -> None:
    """Trains `task` for `recipe.train.steps` steps, or, with `match`, until the counted work is what it should be.

    `dearer_from` is the step from which on a step costs other work than before (more is trained then); 0 where none does.

    Raises:
        UserError: what comes before this stage has cost all of the work that there is, `train` asks for something that no
            baseline does, or a loss is not finite.
    """
    _check(recipe.train, recipe.title, task)
    later = 0
    if dearer_from:
        with autocast(recipe.train.precision, compute_device().type):
            later = count_step(task, recipe.seed, dearer_from) * parallel.world()
    if recipe.match is None:
        train(task, recipe.train, recipe.seed, ctx)
    else:
        work = recipe.share * upstream_work(recipe.match, ctx)
        before = spent(recipe, ctx)
        if work <= before:
            raise UserError(
                f"{recipe.title}: {recipe.share:g} of the matched work is {work:.3g} operations, and the stages before it took "
                f"{before:.3g}: raise its share, or lower theirs"
            )
        own = work - before
        train(task, recipe.train, recipe.seed, ctx, lambda flops: steps_for(own, flops, later or flops, dearer_from))
        ctx.record(matched_flops=own)
    if later:
        ctx.record(training_flops=_work(ctx.facts, dearer_from, later))


def descend(optimizer: torch.optim.Optimizer, loss: Tensor, config: TrainConfig) -> dict[str, float]:
    """One update along the gradient of `loss`, a single value. Nothing is changed where loss or gradient is not finite, and
    then one of the values that are returned for the log is not, so that the loop counts the step as skipped."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    value = float(loss.detach())
    norm = apply(optimizer, [value], clip=config.clip)
    return {"loss": value} if math.isfinite(norm) else {"loss": value, "norm": norm}


def _check(config: TrainConfig, title: str, task: Task) -> None:
    """Refuses what would be passed over in silence."""
    if config.shard and parallel.world() > 1 and not any(any_sharded(net.parameters()) for net in task.nets.values()):
        raise UserError(f"{title}: train.shard is not for this method: leave it out")
    refuse(config, title, NOT_HERE if task.samples else (*NOT_HERE, "grids"))


def steps_for(work: float, flops: int, later: int, dearer_from: int) -> int:
    """The number of steps, at least one, whose work is nearest to `work`: `flops` each up to step `dearer_from`, then
    `later`."""
    cheap = dearer_from * flops
    steps = dearer_from + (work - cheap) / later if dearer_from and work > cheap else work / flops
    return max(1, round(steps))


def _work(facts: dict[str, Any], dearer_from: int, later: int) -> float:
    """The counted work where steps from `dearer_from` on cost `later`, from what the loop recorded at one price."""
    steps = int(facts["steps"])
    price = facts[FLOPS] / steps
    cheap = min(steps, dearer_from)
    return float(cheap * price + (steps - cheap) * later)


def spent(recipe: Trained, ctx: Any) -> float:
    """The counted training work of everything that `recipe` is made from, each stage once."""
    work: dict[str, float | None] = {}
    for parent in recipe.inputs():
        provenance = ctx.provenance(parent)
        work |= {**provenance[UPSTREAM_FLOPS], f"{parent.kind}/{parent.key}": provenance.get(FLOPS)}
    total = 0.0
    for stage in trained_upstream(recipe):
        flops = work.get(f"{stage.kind}/{stage.key}")
        if flops is None:
            raise UserError(f"{stage.title} ({stage.kind}/{stage.key}) recorded no {FLOPS}: make it again")
        total += flops
    return total
