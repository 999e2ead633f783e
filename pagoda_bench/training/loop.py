"""One training loop for all methods: counted work, averaged weights, checkpoints, and a resume that ends in the same bytes.

Nothing random lives across steps: every step seeds its generators from (seed, step), so the state to save is what the step
itself changes - weights, optimisers, averages - and the step's number.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pagoda_bench.artifacts.checkpoint import save_atomic
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.stages import TrainConfig
from pagoda_bench.training.signals import notices

CHECKPOINT_SECONDS = float(os.environ.get("PAGODA_BENCH_CHECKPOINT_SECONDS", "20"))
"""At most this much training is lost when a process is killed."""


class Context(Protocol):
    """The part of a stage's context that the loop uses."""

    work: Path

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
        """The state dict of `net` with the averages in the place of the live values."""
        return {k: self.average.get(k, v).detach().clone() for k, v in net.state_dict().items()}


@dataclass
class Task:
    """What a method gives to the loop. `step(index, rng)` does one whole update and returns what to show and record."""

    step: Callable[[int, np.random.Generator], dict[str, float]]
    nets: dict[str, nn.Module]
    optimizers: dict[str, torch.optim.Optimizer]
    emas: dict[str, EMA] = field(default_factory=dict)
    steps: int = 1  # how many there will be: set by the loop, before the first but after the one that is counted


def train(task: Task, config: TrainConfig, seed: int, ctx: Context, total: Callable[[int], int] | None = None) -> None:
    """Runs `task` for `config.steps` steps, going on from the last checkpoint in `ctx.work` if there is one.

    The work of the first step is counted by PyTorch's operator counter (forward and backward, multiply and add counted
    apart); `total(flops_of_a_step)` may set the number of steps from it. Records `training_flops`, `steps` and `curve`.
    Raises `UserError` when a loss is not finite, with the last good checkpoint kept.
    """
    path = ctx.work / "checkpoint.pt"
    start, flops, curve = _resume(path, task)
    if not flops:
        with autocast(config.precision):
            flops = _count(task, seed)
    steps = task.steps = total(flops) if total else config.steps
    with notices() as told:
        saved = time.monotonic()
        for index in range(start, steps):
            for optimizer in task.optimizers.values():
                for group in optimizer.param_groups:
                    group["lr"] = group.setdefault("base_lr", group["lr"]) * _schedule(index, steps, config.warmup)
            with autocast(config.precision):
                losses = task.step(index, step_rng(seed, index))
            if not all(math.isfinite(v) for v in losses.values()):
                raise UserError(
                    f"training stopped at step {index}: {', '.join(f'{k}={v}' for k, v in losses.items())} is not finite; "
                    "the last checkpoint is kept. Lower the learning rate or change the seed"
                )
            for name, ema in task.emas.items():
                ema.update(task.nets[name], index)
            if index % max(1, steps // 50) == 0 or index == steps - 1:
                curve.append({"step": index, **{k: round(v, 5) for k, v in losses.items()}})
            ctx.progress(index + 1, steps, **losses)
            if (told() or time.monotonic() - saved > CHECKPOINT_SECONDS) and index + 1 < steps:
                _save(path, task, index + 1, flops, curve)
                saved = time.monotonic()
                if told():
                    raise KeyboardInterrupt
    ctx.record(training_flops=float(flops) * steps, steps=steps, curve=curve, seed=seed)


def autocast(precision: str) -> AbstractContextManager[object]:
    """What the forward passes of a step run under: nothing for "fp32", PyTorch's autocast for "bf16"."""
    # No cache: a step trains networks more than once, and a cached copy would be of the weights before.
    return torch.autocast("cpu", torch.bfloat16, cache_enabled=False) if precision == "bf16" else nullcontext()


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


def _schedule(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then a cosine to zero."""
    return min(1.0, (step + 1) / max(1, warmup)) * 0.5 * (1 + math.cos(math.pi * step / max(1, steps)))


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
    }


def _restore(task: Task, state: dict[str, Any]) -> None:
    for k, net in task.nets.items():
        net.load_state_dict(state["nets"][k])
    for k, optimizer in task.optimizers.items():
        optimizer.load_state_dict(state["optimizers"][k])
    for k, ema in task.emas.items():
        for name, value in state["emas"][k].items():
            ema.average[name].copy_(value)


def _save(path: Path, task: Task, step: int, flops: int, curve: list[dict[str, float]]) -> None:
    state = {**_state(task), "step": step, "flops": flops, "curve": curve}
    save_atomic(path, lambda temporary: torch.save(state, temporary))


def _resume(path: Path, task: Task) -> tuple[int, int, list[dict[str, float]]]:
    if not path.exists():
        return 0, 0, []
    state = torch.load(path, map_location="cpu", weights_only=True)
    _restore(task, state)
    return state["step"], state["flops"], state["curve"]
