"""One process of a data-parallel training; prints what it recorded. Run by test_data_parallel.py under RANK and WORLD_SIZE."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch
from torch import nn

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.pagoda import distill, teacher
from pagoda_bench.recipes.stages import Distill, TrainConfig
from pagoda_bench.training import parallel
from pagoda_bench.training.distributed import group
from tests.test_steps import FEATURES, PAIRS, TEACHER

TRAIN = TrainConfig(steps=3, batch=8, warmup=1, clip=1.0)


def norms() -> list[float]:
    """A batch norm in training mode over this process's part of a batch: outputs, gradients and running statistics."""
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(3)
    x = torch.randn(8, 3, 2, 2) * torch.arange(1, 9)[:, None, None, None]
    weights = torch.randn(8, 3, 2, 2)
    nn.init.normal_(norm.weight)
    parallel.synced(norm)
    (part,) = parallel.parts(8)
    mine = x[part].clone().requires_grad_()
    out = norm(mine)
    (weights[part] * out).sum().backward()
    assert mine.grad is not None
    values = {"out": float((weights[part] * out).sum()), "grad": float((mine.grad * x[part].sin()).sum())}
    found = parallel.averaged({k: v * parallel.world() for k, v in values.items()})
    return [found["out"], found["grad"], *norm.running_mean.tolist(), *norm.running_var.tolist()]  # type: ignore[union-attr]


def main(folder: Path, out: Path, ports: list[str]) -> None:
    """Three groups one after the other, each with a port of its own: a process of a real stage joins one."""
    inputs = {key: Path(path) for key, path in json.loads((folder / "inputs.json").read_text()).items()}
    recipe = Distill(pairs=PAIRS, features=FEATURES, train=TRAIN)
    ctx = StageContext.for_test(out / "distill", out / "work", inputs)
    os.environ["MASTER_PORT"] = ports[0]
    distill.run(recipe, ctx)
    first = StageContext.for_test(out / "teacher", out / "work-teacher", inputs)
    os.environ["MASTER_PORT"] = ports[1]
    teacher.run(TEACHER.model_copy(update={"train": TRAIN.model_copy(update={"accumulate": 2})}), first)
    os.environ["MASTER_PORT"] = ports[2]
    with group():
        found = norms()
    facts = {"distill": ctx.facts, "teacher": first.facts, "norm": found}
    (out / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2] + os.environ["RANK"]), sys.argv[3:])
