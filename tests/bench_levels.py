"""What each growth level of the published chain costs: work, time and memory of the generator's step, in a process of its own.

    python -m tests.bench_levels                       # work and kept activations, counted on networks without values (seconds)
    python -m tests.bench_levels --measure             # also time and peak memory, in float32 on the CPU: minutes, 10 GB
    python -m tests.bench_levels --measure --levels 512 --checkpoint
    python -m tests.bench_levels --measure --levels 512 --judges   # the whole step of the ImageNet scale; needs timm

The step is that of L_rec with a squared distance of pixels in the place of feature networks, and Adam, so that the generator
alone is what is seen: the frozen part forward without a graph, the rest forward and backward. With `--judges` it is that of
the level's recipe in experiments/scales/imagenet.yaml, in float32: both backbones, one discriminator, at 512 px two, their
optimisers. Nothing depends on the values of weights and images, which are random. `--train-from` is `Grow.train_from`: 9, as
in the official scripts, or "new".
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pagoda_bench import resources
from pagoda_bench.nets.device import keep_freed_memory
from pagoda_bench.nets.growth import TrainFrom, train_start, trainable_keys
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda.grow import Frozen
from pagoda_bench.pagoda.looks import ProjectedLook, build_eyes, judge_of
from pagoda_bench.pagoda.steps import Step
from pagoda_bench.recipes.stages import Grow, TrainConfig
from pagoda_bench.tables import spec
from pagoda_bench.training.execution import checkpointed
from pagoda_bench.training.updates import LossScale, optimizer
from tests.official import FULL

LEVELS = {128: "64to128", 256: "64to256", 512: "64to512_consistent"}


def trained(level: int, train_from: TrainFrom, device: str) -> UNet:
    with torch.device("meta"):
        net = UNet(FULL[LEVELS[level]])
    names = set(trainable_keys(net, train_from))
    for name, p in net.named_parameters():
        p.requires_grad_(name in names)
    if device == "cpu":
        net.to_empty(device="cpu")
        with torch.no_grad():
            for p in net.parameters():
                p.normal_(std=0.02)
    return net.train()


def counted(level: int, train_from: TrainFrom, batch: int = 1, checkpoint: bool = False) -> dict[str, float]:
    """GFLOP an image of the frozen part (`frozen`), and of the rest forward and backward (`own`); millions of parameters;
    GB of activations `kept` for the backward pass of a batch, in float32."""
    net = trained(level, train_from, "meta")
    start, size = train_start(net, train_from), net.config.resolution
    z, labels = torch.zeros(batch, 3, size, size, device="meta"), torch.zeros(batch, dtype=torch.int64, device="meta")
    kept: dict[int, tuple[Tensor, int]] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        kept[storage._cdata] = (t, storage.nbytes())
        return t

    with FlopCounterMode(display=False) as frozen, torch.no_grad():
        hidden = net.trunk(z, 80.0, labels, stop=start)
    config = TrainConfig(steps=1, checkpoint=checkpoint)
    with FlopCounterMode(display=False) as own_work, checkpointed([net], config):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            image = net.finish(hidden, start)
        image.sum().backward()
    own = {p.untyped_storage()._cdata for p in net.parameters()}
    return {
        "parameters": sum(p.numel() for p in net.parameters()) / 1e6,
        "trainable": sum(p.numel() for p in net.parameters() if p.requires_grad) / 1e6,
        "frozen": frozen.get_total_flops() / batch / 1e9,
        "own": own_work.get_total_flops() / batch / 1e9,
        "kept": sum(n for key, (_, n) in kept.items() if key not in own) / 1e9,
    }


def measured(level: int, train_from: TrainFrom, batch: int, checkpoint: bool, steps: int) -> dict[str, float]:
    """CPU seconds of a step, the least of `steps` after a first one, and the peak of this process' memory in GB, of which
    `held` was there before the first step: PyTorch and the weights."""
    keep_freed_memory()
    net = trained(level, train_from, "cpu")
    start, config = train_start(net, train_from), TrainConfig(steps=1, checkpoint=checkpoint)
    generate, adam = Frozen(net, start), optimizer([p for p in net.parameters() if p.requires_grad], config)
    size = net.config.resolution
    z, x, labels = torch.randn(batch, 3, size, size), torch.zeros(batch, 3, level, level), torch.arange(batch)
    held, seconds = peak(), []
    with checkpointed([net], config):
        for _ in range(1 + steps):
            begin = time.process_time()
            adam.zero_grad(set_to_none=True)
            (generate(80.0 * z, labels) - x).square().mean().backward()
            adam.step()
            seconds.append(time.process_time() - begin)
    return {"seconds": min(seconds[1:] or seconds), "peak": peak(), "held": held}


class Nothing:
    """Random images and latents in the place of a data set and its pairs."""

    used = 1000

    def __init__(self, low: int) -> None:
        self.low = low

    def batch(self, rows: np.ndarray, size: int) -> tuple[Tensor, Tensor, Tensor]:
        n, low = len(rows), self.low
        return (
            torch.rand(n, 3, size, size) * 2 - 1,
            80 * torch.randn(n, 3, low, low),
            torch.from_numpy(self.labels(rows, "train")),
        )

    def size(self, split: str) -> int:
        return self.used

    def images(self, numbers: np.ndarray, size: int, split: str) -> np.ndarray:
        return np.zeros((len(numbers), size, size, 3), np.uint8)

    def labels(self, numbers: np.ndarray, split: str) -> np.ndarray:
        return numbers % 1000


def measured_whole(level: int, batch: int, checkpoint: bool, steps: int) -> dict[str, float]:
    """As `measured`, of the step that Stage 3 makes at this level of the ImageNet scale, in float32."""
    keep_freed_memory()
    grid = spec.read(resources.folder("experiments") / "table1.yaml")
    recipe = spec.load_scale(grid, "imagenet", planned=True).pagoda_model(level)
    assert isinstance(recipe, Grow)
    config = recipe.train.model_copy(update={"batch": batch, "precision": "fp32", "checkpoint": checkpoint, "accumulate": 1})
    loss = recipe.loss.model_copy(update={"projected": recipe.loss.projected.model_copy(update={"weights": "random"})})
    recipe = recipe.model_copy(update={"train": config, "loss": loss})
    net = trained(level, recipe.train_from, "cpu")
    look = ProjectedLook(build_eyes(loss.projected), augmented=loss.augment, eps=loss.eps)
    judges = {"discriminator": judge_of(loss, None, 1000, 0)}
    if loss.adversarial_rec:
        judges["reconstructions"] = judge_of(loss, None, 1000, 1)
    optimizers = {"generator": optimizer([p for p in net.parameters() if p.requires_grad], config)}
    for name, judge in judges.items():
        theirs = [p for p in judge.parameters() if p.requires_grad]
        optimizers[name] = optimizer(theirs, config, loss.lr_discriminator, betas=loss.betas_discriminator)
    stub: Any = Nothing(net.config.resolution)
    generate = Frozen(net, train_start(net, recipe.train_from))
    step = Step(recipe, net, generate, look, judges, optimizers, stub, stub, LossScale())
    held, seconds = peak(), []
    with checkpointed([net], config):
        for index in range(1 + steps):
            begin = time.process_time()
            step(index, np.random.default_rng(index))
            seconds.append(time.process_time() - begin)
    return {"seconds": min(seconds[1:] or seconds), "peak": peak(), "held": held}


def peak() -> float:
    """GB. On Linux `ru_maxrss` is in kilobytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="What each growth level costs.")
    parser.add_argument("--levels", type=int, nargs="+", default=list(LEVELS), choices=list(LEVELS))
    parser.add_argument("--train-from", default="9")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--checkpoint", action="store_true")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--judges", action="store_true")
    parser.add_argument("--alone", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    train_from: TrainFrom = "new" if asked.train_from == "new" else int(asked.train_from)
    if asked.alone:
        torch.set_num_threads(1)
        if asked.judges:
            print(json.dumps(measured_whole(asked.levels[0], asked.batch, asked.checkpoint, asked.steps)))
        else:
            print(json.dumps(measured(asked.levels[0], train_from, asked.batch, asked.checkpoint, asked.steps)))
        return
    for level in asked.levels:
        found: dict[str, Any] = counted(level, train_from, asked.batch, asked.checkpoint)
        if asked.measure:
            # A process has one peak, so each level has a process.
            own = [
                "--levels",
                str(level),
                "--alone",
                *(a for a in (arguments or sys.argv[1:]) if a in ("--checkpoint", "--judges")),
            ]
            own += ["--train-from", asked.train_from, "--batch", str(asked.batch), "--steps", str(asked.steps)]
            done = subprocess.run(
                [sys.executable, "-m", "tests.bench_levels", *own], capture_output=True, text=True, check=True
            )
            found |= json.loads(done.stdout.splitlines()[-1])
        print(level, {k: float(f"{v:.4g}") for k, v in found.items()}, flush=True)


@pytest.mark.slow
def test_cost_grows_with_the_new_level_and_not_with_the_chain() -> None:
    """Where the new level alone trains, its own work does not know of the chain: four times as much for four times the pixels
    at the same width. Of the chain there is a forward pass without a graph, and nothing of it is kept."""
    at = {level: counted(level, "new") for level in LEVELS}
    assert at[256]["own"] == pytest.approx(4 * at[128]["own"], rel=0.01)
    assert at[256]["kept"] == pytest.approx(4 * at[128]["kept"], rel=0.01)
    for level, below in ((256, 128), (512, 256)):
        assert at[level]["frozen"] - at[below]["frozen"] == pytest.approx(at[below]["own"] / 3, rel=0.02)
    assert at[512]["frozen"] < at[512]["own"]
    # The official trainable set goes back to output block 9, so there each level below is trained again.
    assert counted(512, 9)["own"] > 2 * at[512]["own"]


@pytest.mark.slow
def test_checkpointing_keeps_a_quarter_at_512() -> None:
    plain, less = counted(512, 9), counted(512, 9, checkpoint=True)
    assert less["kept"] < 0.25 * plain["kept"]
    assert plain["own"] < less["own"] < 4 / 3 * plain["own"]


if __name__ == "__main__":
    main()
