"""One process of a sharded training, interrupted and resumed; writes what it recorded. Run by test_sharding.py."""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.pagoda import adversarial, distill, grow, teacher
from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.losses import LossConfig
from pagoda_bench.recipes.stages import Distill, Grow, TrainConfig
from pagoda_bench.training import loop, sharding
from tests.test_steps import FEATURES, PAIRS, TEACHER, Stop

TRAIN = TrainConfig(
    steps=4, batch=8, warmup=1, clip=1.0, emas=(0.5,), evaluate=2, evaluate_n=16, grids=1, shard=True, schedule="constant"
)
# Two adaptive terms on one image, so that its graph is walked through twice.
BASE = Distill(pairs=PAIRS, features=FEATURES, train=TRAIN, loss=LossConfig(adversarial_rec=0.5, updates="joint"))
# In several passes only the teacher's batch is divided: parts of other sizes are other batches for batch norms.
GROWN = Grow(
    base=BASE,
    width=1,
    train=TRAIN.model_copy(update={"steps": 2, "evaluate": 0}),
    loss=LossConfig(adaptive=False, discriminator_width=8),
)
FIRST = TEACHER.model_copy(update={"train": TRAIN.model_copy(update={"steps": 2, "evaluate": 0, "accumulate": 2})})
LAST_BEFORE = 2  # steps in the checkpoint that an interrupted process leaves


def inputs(folder: Path) -> dict[str, Path]:
    return {key: Path(path) for key, path in json.loads((folder / "inputs.json").read_text()).items()}


def stage(runner: Any, recipe: Recipe, folder: Path, out: Path, work: Path, stop_at: int = 0) -> StageContext:
    """Runs a stage; with `stop_at`, until so many steps are done and the one before is saved."""
    ctx = StageContext.for_test(out, work, inputs(folder))

    def report(done: int, total: int, info: object) -> None:
        if done == stop_at:
            raise Stop

    ctx.report = report
    runner.run(recipe, ctx)
    return ctx


def main(folder: Path, ports: list[str]) -> None:
    """Every run is a group of its own, with a port of its own. Processes share the work folders, as those of a stage do."""
    rank = os.environ["RANK"]
    mine, numbers, seen = folder / f"rank{rank}", iter(ports), []
    shard = sharding.shard

    def watched(net: torch.nn.Module, asked: bool, values: Any) -> None:
        assert {p.device.type for p in net.parameters()} == {"meta"}, "nothing is whole before it is divided"
        shard(net, asked, values)  # type: ignore[arg-type]
        local = [p.to_local().numel() for p in net.parameters() if sharding.is_sharded(p)]  # type: ignore[operator]
        seen.append([sum(local), sum(p.numel() for p in net.parameters())])

    for module in (teacher, adversarial):
        setattr(module, "shard", watched)  # noqa: B010

    loop.CHECKPOINT_SECONDS = -1.0  # after every step
    os.environ["MASTER_PORT"] = next(numbers)
    try:
        stage(distill, BASE, folder, mine / "unused", folder / "work", stop_at=LAST_BEFORE + 1)
    except Stop:
        if rank == "0":
            shutil.copytree(folder / "work", folder / "interrupted")
    found = {}
    for name, runner, recipe in (("distill", distill, BASE), ("grow", grow, GROWN), ("teacher", teacher, FIRST)):
        os.environ["MASTER_PORT"] = next(numbers)
        work = folder / "work" if name == "distill" else folder / f"work-{name}"
        found[name] = stage(runner, recipe, folder, mine / name, work).facts
    (mine / "facts.json").write_text(json.dumps({**found, "held": seen}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
