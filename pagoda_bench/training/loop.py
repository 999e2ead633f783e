"""One training loop for all methods: counted work, averaged weights, checkpoints, and a resume that ends in the same bytes.

Nothing random lives across steps: every step seeds its generators from (seed, step), so the state to save is what the step
itself changes - weights, optimisers, averages - and the step's number.
"""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pagoda_bench.errors import UserError
from pagoda_bench.nets.counting import complete
from pagoda_bench.nets.device import computed_precision, keep_freed_memory
from pagoda_bench.recipes.stages import TrainConfig
from pagoda_bench.training import checkpoints, parallel, sharding
from pagoda_bench.training.execution import checkpointed, compiled
from pagoda_bench.training.logs import CSV, GRIDS, Log
from pagoda_bench.training.milestones import Measuring, Milestones
from pagoda_bench.training.signals import notices
from pagoda_bench.training.updates import LossScale

CHECKPOINT_SECONDS = float(os.environ.get("PAGODA_BENCH_CHECKPOINT_SECONDS", "20"))
"""At most this much training is lost when a process is killed."""

complete()  # whatever counts work has imported this module: trainings, pairs, kept states


class Context(Protocol):
    """The part of a stage's context that the loop uses."""

    work: Path
    out: Path
    counting: bool

    def progress(self, done: int, total: int, **info: float | str) -> None: ...

    def record(self, **facts: Any) -> None: ...


class EMA:
    """An exponential moving average of a network's trainable parameters: decay min(ema, (1 + step) / (10 + step))."""

    def __init__(self, net: nn.Module, decay: float) -> None:
        self.decay = decay
        self.average = {k: p.detach().clone() for k, p in net.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def update(self, net: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))
        live = dict(net.named_parameters())
        torch._foreach_lerp_(list(self.average.values()), [live[k].detach() for k in self.average], 1 - decay)

    def state(self, net: nn.Module) -> dict[str, Tensor]:
        """The state dict of `net` with the averages in the place of the live values, whole, in the memory of the host: a device
        holds one tensor of it at a time. Of a sharded network all processes must ask for it; only the first, whose payload
        counts, is given what was divided."""
        values = {k: self.average.get(k, v).detach() for k, v in net.state_dict().items()}
        wholes = ((k, sharding.whole(v)) for k, v in values.items())
        mine = parallel.rank() == 0
        return {k: v.to("cpu", copy=True) for k, v in wholes if mine or not sharding.is_sharded(values[k])}


@dataclass
class Task:
    """What a method gives to the loop. `step(index, rng)` does one whole update and returns what to show and record; a step
    whose update was not finite changes nothing and returns a value that is not finite. Where a step has several updates,
    `moved()` says whether its last call changed what is averaged; else it did if all values were finite.

    An average is of the network that its name begins with: "generator", "generator:0.9999". `samples()` gives a few images,
    uint8 (N, R, R, 3), for the grids; `evaluation()` measures more of them; `diversity()` and the losses that are `watched`
    (values at which one teaches nothing) are for the alarm. Every process calls them.
    """

    step: Callable[[int, np.random.Generator], dict[str, float]]
    nets: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    emas: dict[str, EMA] = field(default_factory=dict)
    steps: int = 1  # how many there will be: set by the loop, before the first but after the one that is counted
    scale: LossScale = field(default_factory=LossScale)
    moved: Callable[[], bool] | None = None
    samples: Callable[[], NDArray[np.uint8]] | None = None
    evaluation: Measuring | None = None
    diversity: Callable[[], float] | None = None
    watched: Mapping[str, Mapping[float, str]] = field(default_factory=dict)


@dataclass
class _Counts:
    """What the loop itself carries from step to step."""

    step: int = 0
    flops: int = 0
    curve: list[dict[str, float]] = field(default_factory=list)
    skipped: int = 0  # updates that were not finite, altogether
    in_a_row: int = 0
    seen: dict[str, Any] = field(default_factory=dict)  # at milestones


def train(task: Task, config: TrainConfig, seed: int, ctx: Context, total: Callable[[int], int] | None = None) -> None:
    """Runs `task` for `config.steps` steps, going on from the last whole checkpoint in `ctx.work` if there is one.

    The work of the first step is counted by PyTorch's operator counter (forward and backward, multiply and add counted
    apart), that of all processes together; `total(flops_of_a_step)` may set the number of steps from it. Records
    `training_flops`, `steps`, `curve`, `skipped`, `evaluations`, `best` and `alarms`, and leaves `log.csv` (and `grids/`) in
    the payload. Raises `UserError` when losses are not finite for more than `config.skips` steps in a row, and at an alarm
    where the recipe says so, with the last good checkpoint kept.
    """
    kind = next((p.device.type for net in task.nets.values() for p in net.parameters()), "cpu")
    if kind == "cpu":
        keep_freed_memory()
    counts = _resume(ctx.work, task)
    if not counts.flops:
        with autocast(config.precision, kind), checkpointed(task.nets.values(), config, counting=True) as again:
            counts.flops = (_count(task, seed) - again.flops) * parallel.world()
    steps = task.steps = total(counts.flops) if total else config.steps
    if ctx.counting:
        ctx.record(training_flops=float(counts.flops) * steps, steps=steps)
        return
    log = Log(ctx.work, steps, counts.step, events=parallel.rank() == 0)
    beside = Milestones(task, config, steps, log, ctx.work, counts.seen)
    nets = task.nets.values()
    with notices() as told, checkpointed(nets, config), compiled(nets, config):
        saved = time.monotonic()
        for index in range(counts.step, steps):
            for optimizer in task.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = group.setdefault("base_lr", group["lr"]) * _schedule(
                        index, steps, config.warmup, config.schedule
                    )
            running = _Running(nets) if config.skips else None
            with autocast(config.precision, kind):
                losses = task.step(index, step_rng(seed, index))
            losses = parallel.averaged(losses)
            _judge(losses, index, config, counts)
            if counts.in_a_row and running is not None:
                running.put_back()
            if task.moved() if task.moved else not counts.in_a_row:
                for name, ema in task.emas.items():
                    ema.update(task.nets[name.partition(":")[0]], index)
            finite = {k: v for k, v in losses.items() if math.isfinite(v)}
            if index % max(1, steps // 50) == 0 or index == steps - 1:
                counts.curve.append({"step": index, **{k: round(v, 5) for k, v in finite.items()}})
            found = beside.after(index, finite)
            log.add(index, finite | found, always=bool(found))
            ctx.progress(index + 1, steps, **finite, **found)
            stop = told()
            late = parallel.rank() == 0 and time.monotonic() - saved > CHECKPOINT_SECONDS
            level = parallel.most(2 if stop else int(late or beside.improved(index + 1)))
            if level and index + 1 < steps:
                counts.step = index + 1
                if parallel.rank() == 0:
                    log.save()
                checkpoints.save(ctx.work, {**_state(task), **vars(counts)}, config.keep, counts.seen["best"])
                saved = time.monotonic()
                if level == 2:
                    raise KeyboardInterrupt
    log.save(ctx.out / CSV)
    log.close()
    if (ctx.work / GRIDS).is_dir():
        shutil.copytree(ctx.work / GRIDS, ctx.out / GRIDS, dirs_exist_ok=True)
    ctx.record(training_flops=float(counts.flops) * steps, steps=steps, curve=counts.curve, seed=seed)
    ctx.record(precision=computed_precision(config.precision, kind), **beside.facts())
    if counts.skipped:
        ctx.record(skipped=counts.skipped)
    if parallel.world() > 1:
        ctx.record(processes=parallel.world(), sharded=any(sharding.any_sharded(n.parameters()) for n in task.nets.values()))


def autocast(precision: str, kind: str = "cpu") -> AbstractContextManager[object]:
    """What the forward passes of a step run under: nothing for "fp32", else PyTorch's autocast, on devices of a kind. A
    processor without instructions for bfloat16 computes "bf16" in float32 (`computed_precision`)."""
    precision = computed_precision(precision, kind)
    if precision == "fp32":
        return nullcontext()
    # No cache: a step trains networks more than once, and a cached copy would be of the weights before.
    return torch.autocast(kind, torch.bfloat16 if precision == "bf16" else torch.float16, cache_enabled=False)


def _judge(losses: dict[str, float], index: int, config: TrainConfig, counts: _Counts) -> None:
    """Counts a step that was not finite, and stops when there are too many in a row."""
    if all(math.isfinite(v) for v in losses.values()):
        counts.in_a_row = 0
        return
    counts.skipped, counts.in_a_row = counts.skipped + 1, counts.in_a_row + 1
    if counts.in_a_row > config.skips:
        many = f" (skipped {counts.in_a_row - 1} before it)" if config.skips else ""
        raise UserError(
            f"training stopped at step {index}{many}: {', '.join(f'{k}={v}' for k, v in losses.items())} is not finite; "
            "the last checkpoint is kept. Lower the learning rate or change the seed"
        )


class _Running:
    """Running statistics of `nets`: a forward pass over values that are not finite spoils them, though no update follows."""

    def __init__(self, nets: Iterable[nn.Module]) -> None:
        self.buffers = [b for net in nets for b in net.buffers() if b.is_floating_point()]
        self.before = [b.detach().clone() for b in self.buffers]

    @torch.no_grad()
    def put_back(self) -> None:
        for buffer, before in zip(self.buffers, self.before, strict=True):
            buffer.copy_(before)


def step_rng(seed: int, index: int) -> np.random.Generator:
    """Seeds PyTorch and gives a NumPy generator for step `index`: whoever resumes at it draws the same numbers."""
    rng = np.random.Generator(np.random.Philox(key=[seed, index]))
    torch.manual_seed(int(rng.integers(2**62)))
    return rng


def batch_indices(size: int | None, batch: int, step: int, seed: int) -> np.ndarray:
    """(batch,) int64: the images of a step. An endless set is walked through; a finite one is shuffled anew each epoch."""
    position = np.arange(step * batch, (step + 1) * batch, dtype=np.int64)
    if size is None:
        return position + np.int64(seed) * np.int64(2**36)
    out = np.empty(batch, np.int64)
    for epoch in np.unique(position // size):
        inside = position // size == epoch
        order = np.random.Generator(np.random.Philox(key=[seed + 2**32, int(epoch)])).permutation(size)
        out[inside] = order[position[inside] % size]
    return out


def _schedule(step: int, steps: int, warmup: int, schedule: Literal["cosine", "constant"] = "cosine") -> float:
    """Linear warm-up, then a cosine to zero, or no change."""
    rise = min(1.0, (step + 1) / max(1, warmup))
    return rise if schedule == "constant" else rise * 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))


def _count(task: Task, seed: int) -> int:
    return count_step(task, seed, 0)


def count_step(task: Task, seed: int, index: int) -> int:
    """The floating-point operations of step `index`. It is undone: weights, optimisers and averages are as before."""
    before = _state(task)
    before = {k: _copied(v) for k, v in before.items()}
    with FlopCounterMode(display=False) as counter:
        task.step(index, step_rng(seed, index))
    _restore(task, before)
    for optimizer in task.optimizers.values():
        optimizer.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, dict):
        return {k: _copied(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_copied(v) for v in value]
    return value


def _state(task: Task) -> dict[str, Any]:
    return {
        "nets": {k: n.state_dict() for k, n in task.nets.items()},
        "optimizers": {k: o.state_dict() for k, o in task.optimizers.items()},
        "emas": {k: e.average for k, e in task.emas.items()},
        "scale": task.scale.state_dict(),
    }


def _restore(task: Task, state: dict[str, Any]) -> None:
    for k, net in task.nets.items():
        sharding.load_net(net, state["nets"][k])
    for k, optimizer in task.optimizers.items():
        sharding.load_optimizer(optimizer, state["optimizers"][k])
    for k, ema in task.emas.items():
        for name, value in state["emas"][k].items():
            ema.average[name].copy_(sharding.part(value, ema.average[name]))
    if "scale" in state:
        task.scale.load_state_dict(state["scale"])


def _resume(work: Path, task: Task) -> _Counts:
    state = checkpoints.newest(work)
    if state is None:
        return _Counts()
    _restore(task, state)
    return _Counts(**{k: state[k] for k in vars(_Counts()) if k in state})
