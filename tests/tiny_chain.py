"""The whole chain of PaGoDA at a size that takes seconds; run as a script, it makes the chain in the store that it is given."""

from __future__ import annotations

import sys
from pathlib import Path

from pagoda_bench.artifacts.store import Store
from pagoda_bench.plan.dag import Plan
from pagoda_bench.plan.inline import run_plan
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.recipes.losses import LossConfig
from pagoda_bench.recipes.scores import Reference, Score
from pagoda_bench.recipes.stages import EDM, Distill, FeatureNet, Grow, Heun, OneStep, Pairs, TrainConfig, UNetConfig
from pagoda_bench.recipes.work import Work

DATA = EmbeddedData(master=16)
SHORT = TrainConfig(steps=6, batch=8, warmup=1)
FEATURES = FeatureNet(data=DATA, train=SHORT, width=8, resolution=16)
NET = UNetConfig(resolution=8, channels=16, encoder=(1, 2), attention=(4,), grown_blocks=1)
TEACHER = EDM(data=DATA, net=NET, train=SHORT)
PAIRS = Pairs(teacher=TEACHER, count=300, points=3)
BASE = Distill(pairs=PAIRS, features=FEATURES, train=SHORT)
# The options of the embedded scale: half precision, a discriminator that trains more often than the generator.
GROWN = Grow(
    base=BASE,
    width=1,
    train=SHORT.model_copy(update={"precision": "bf16"}),
    loss=LossConfig(discriminator_steps=2, discriminator_width=16),
)
DIRECT = EDM(data=DATA, net=NET.model_copy(update={"resolution": 16, "attention": (8,)}), train=SHORT, match=Work(of=GROWN))


def scores(n: int = 80) -> list[Score]:
    reference = {r: Reference(data=DATA, features=FEATURES, resolution=r, n=100) for r in (8, 16)}
    return [
        Score(generator=OneStep(of=BASE), reference=reference[8], n=n),
        Score(generator=OneStep(of=GROWN), reference=reference[16], n=n),
        Score(generator=Heun(of=DIRECT, points=3), reference=reference[16], n=n),
    ]


def make(root: Path) -> dict[str, str]:
    """The digests of all payloads, by kind/key."""
    store = Store(root)
    run_plan(Plan(scores(), store))
    return {artifact.name: artifact.digest for artifact in store.artifacts()}


if __name__ == "__main__":
    make(Path(sys.argv[1]))
