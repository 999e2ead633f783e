"""From losses to one update of the weights: precision, loss scaling, clipping, and what happens when numbers are not finite.

An update that is not finite is not applied: the weights and the optimiser's moments stay what they were, and so do the averages
where it was the only one. How many of these in a row are borne is `TrainConfig.skips`; the loop counts them, and stops with
the last good checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import nn

from pagoda_bench.errors import UserError
from pagoda_bench.recipes.stages import TrainConfig
from pagoda_bench.training import parallel
from pagoda_bench.training.sharding import any_sharded, whole

Precision = Literal["fp32", "bf16", "fp16"]
SMALLEST = 2.0**-14  # loss scale below which something else than the scale is wrong


class LossScale:
    """Dynamic loss scaling for float16 gradients (Micikevicius et al. 2018): the scale doubles after `interval` finite
    updates in a row and halves at each that is not. 1 and constant in other precisions."""

    def __init__(self, precision: Precision = "fp32", start: float = 2.0**16, interval: int = 2000) -> None:
        self.active = precision == "fp16"
        self.value = start if self.active else 1.0
        self.interval, self.good = interval, 0

    def update(self, finite: bool) -> None:
        if not self.active:
            return
        if not finite:
            self.value, self.good = self.value * 0.5, 0
            if self.value < SMALLEST:
                raise UserError(
                    f"training stopped: gradients overflow float16 even at a loss scale of {self.value:g}; the last checkpoint "
                    "is kept. Use train.precision 'bf16' or 'fp32', or lower the learning rate"
                )
            return
        self.good += 1
        if self.good == self.interval:
            self.value, self.good = self.value * 2, 0

    def state_dict(self) -> dict[str, float]:
        return {"value": self.value, "good": float(self.good)}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        self.value, self.good = float(state["value"]), int(state["good"])


def apply(
    optimizer: torch.optim.Optimizer,
    losses: Sequence[float],
    *,
    clip: float | None = None,
    scale: LossScale | None = None,
    more: bool = False,
) -> float:
    """One step of `optimizer` on the gradients that are there, which are first averaged over processes, divided by the loss
    scale, and clipped to the norm `clip` over all parameters. Gives their norm before clipping.

    Nothing is applied, and the norm is not finite, when a loss or a gradient is not. With `more` another update under the same
    scale follows in this step; the last one tells the scale, once a step.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parallel.average_gradients(parameters)
    gradients = [p.grad for p in parameters if p.grad is not None]
    if scale is not None and scale.active:
        torch._foreach_mul_(gradients, 1 / scale.value)
    norm = float(whole(nn.utils.get_total_norm(gradients))) if gradients else 0.0
    finite = not parallel.anywhere(not (math.isfinite(norm) and all(math.isfinite(v) for v in losses)))
    if scale is not None and not more:
        scale.update(finite)
    if not finite:
        optimizer.zero_grad(set_to_none=True)
        return math.nan
    if clip is not None and norm > clip:
        torch._foreach_mul_(gradients, clip / norm)
    for p in parameters:
        # PyTorch 2.15's fused optimisers on a CPU go through the memory of weight and gradient side by side, whatever their
        # strides: a channels-last gradient of a contiguous weight would be applied in the wrong order, without a word.
        if p.grad is not None and p.grad.stride() != p.stride() and not any_sharded([p]):
            p.grad = torch.empty_like(p).copy_(p.grad)
    optimizer.step()
    return norm


def optimizer(
    parameters: list[nn.Parameter], config: TrainConfig, lr: float | None = None, betas: tuple[float, float] | None = None
) -> torch.optim.Optimizer:
    """The optimiser that a recipe names, without weight decay; `lr` and `betas` stand for the recipe's."""
    kinds = {"adam": torch.optim.Adam, "radam": torch.optim.RAdam, "adamw": torch.optim.AdamW}
    # One kernel for all tensors, or at least few: PyTorch has no fused RAdam, and its fused ones take no parts of tensors.
    fused = config.optimizer != "radam" and not any_sharded(parameters)
    how = {"fused": True} if fused else {"foreach": True}
    rate = config.lr if lr is None else lr  # 0 is a rate too: what has it stands still
    return kinds[config.optimizer](parameters, lr=rate, betas=betas or config.betas, weight_decay=0.0, **how)
