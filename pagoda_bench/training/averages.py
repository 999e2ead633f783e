"""Several moving averages of one training, each published, so that which one is best can be decided afterwards; and the
average at the best milestone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pagoda_bench.artifacts.digests import sha256
from pagoda_bench.nets.features import save_half
from pagoda_bench.recipes.stages import TrainConfig
from pagoda_bench.training import checkpoints, parallel
from pagoda_bench.training.loop import EMA
from pagoda_bench.training.sharding import whole

BEST = "model-best.safetensors"


def averages(net: nn.Module, config: TrainConfig, name: str) -> dict[str, EMA]:
    """The average of a recipe under `name`, and its further ones under "<name>:<decay>"."""
    return {name: EMA(net, config.ema), **{f"{name}:{decay}": EMA(net, decay) for decay in config.emas}}


@contextmanager
def averaged(net: nn.Module, ema: EMA) -> Iterator[None]:
    """Within this context `net` has the averaged weights, and no graphs are made; then the live ones come back."""
    parameters = dict(net.named_parameters())
    with torch.no_grad():
        live = {k: parameters[k].detach().clone() for k in ema.average}
        for k, v in ema.average.items():
            parameters[k].copy_(v)
        try:
            yield
        finally:
            for k, v in live.items():
                parameters[k].copy_(v)


def save_averages(net: nn.Module, emas: Mapping[str, EMA], ctx: Any) -> None:
    """`model.safetensors` of the first average and `model-<decay>.safetensors` of each further one, as float16. After a
    training with milestones also `model-best.safetensors`, the first average at the best of them; its SHA-256 is recorded.
    """
    for name, ema in emas.items():
        _, _, decay = name.partition(":")
        save_half(ema.state(net), ctx.out / (f"model-{decay}.safetensors" if decay else "model.safetensors"))
    if (best := ctx.facts.get("best")) and parallel.rank() == 0:
        _save_best(next(iter(emas)), best, ctx)


def _save_best(name: str, best: dict[str, Any], ctx: Any) -> None:
    out: Path = ctx.out / BEST
    if best["step"] == ctx.facts["steps"]:
        out.write_bytes((ctx.out / "model.safetensors").read_bytes())
    else:
        state = checkpoints.read(checkpoints.path_of(ctx.work, best["step"]))
        if state is None:
            return
        save_half({k: whole(v) for k, v in {**state["nets"][name], **state["emas"][name]}.items()}, out)
    ctx.record(best={**best, "sha256": sha256(out)})
