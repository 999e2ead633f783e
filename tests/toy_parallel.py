"""Recipes and runners that cost nothing, of stages that several processes make together: in shards, or as ranks."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import ClassVar

from toy_stages import count_step

from pagoda_bench.artifacts.checkpoint import save_atomic
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.artifacts.ranks import place
from pagoda_bench.recipes.base import Recipe, result_neutral


class ToyShards(Recipe, kind="toy-shards"):
    """The hashes of `n` numbers in a row, each of which may be made by any process."""

    runner: ClassVar[str] = "toy_parallel:run_shards"
    sharder: ClassVar[str] = "toy_parallel:share"
    n: int = 12
    parts: tuple[Recipe, ...] = ()
    pause: float = result_neutral(0.0)


class ToyMean(Recipe, kind="toy-mean"):
    """The mean over ranks of a number of each rank; the ranks must be `size`."""

    runner: ClassVar[str] = "toy_parallel:run_mean"
    distributed: ClassVar[bool] = True
    size: int = 2
    parts: tuple[Recipe, ...] = ()


def share(recipe: ToyShards, context: StageContext, index: int, count: int) -> bool:
    for number in range(recipe.n)[index::count]:
        _make(recipe, context, number)
        context.progress(number, recipe.n)
    return all((context.work / f"{number}.txt").is_file() for number in range(recipe.n))


def run_shards(recipe: ToyShards, context: StageContext) -> None:
    for number in range(recipe.n):
        _make(recipe, context, number)
    parts = [(context.work / f"{number}.txt").read_text() for number in range(recipe.n)]
    (context.out / "state.txt").write_text("".join(parts))
    context.record(training_flops=1.0 * recipe.n)


def _make(recipe: ToyShards, context: StageContext, number: int) -> None:
    if (path := context.work / f"{number}.txt").is_file():
        return
    time.sleep(recipe.pause)
    count_step()
    content = hashlib.sha256(str(number).encode()).hexdigest()
    save_atomic(path, lambda temporary: temporary.write_text(content))


def run_mean(recipe: ToyMean, context: StageContext) -> None:
    import torch

    from pagoda_bench.training.distributed import average, barrier, group

    with group(minutes=30) as here:
        value = torch.tensor([float(here.rank), 1.0])
        average([value, None])
        barrier()
    if folder := os.environ.get("TOY_TELL"):
        Path(folder, f"rank-{place().rank}").write_text(os.environ.get("SLURMD_NODENAME", ""))
    (context.out / "mean.txt").write_text(f"{here.size} {value.tolist()}")
    context.record(device="toy", size=here.size)
