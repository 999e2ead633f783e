"""Activation checkpointing and compilation: other memory, other speed, the same training."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.errors import UserError
from pagoda_bench.nets.features import load_half
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda import grow, pairs, teacher
from pagoda_bench.recipes.losses import LossConfig
from pagoda_bench.recipes.stages import EDM, Distill, Grow, TrainConfig, UNetConfig
from pagoda_bench.training.execution import PARTS, checkpointed, compiled
from tests.test_steps import DATA, FEATURES, NET, PAIRS, SHORT, TEACHER
from tests.test_steps import inputs as networks

CHECKPOINT = TrainConfig(steps=1, checkpoint=True)
COMPILE = TrainConfig(steps=1, compile=True)
COMPILER = pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")


def gradients(net: UNet, config: TrainConfig, start: int = 0) -> tuple[dict[str, torch.Tensor], int]:
    """Of a loss through all of the network or from an output block on, and the bytes that were kept for the backward pass."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 8, 8, generator=generator)
    kept: dict[int, int] = {}

    def pack(t: torch.Tensor) -> torch.Tensor:
        kept[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    net.zero_grad(set_to_none=True)
    with checkpointed([net], config), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        if start:
            with torch.no_grad():
                hidden = net.trunk(x, 3.0, torch.tensor([0, 1]), stop=start)
            out = net.finish(hidden, start)
        else:
            out = net(x, 3.0, torch.tensor([0, 1]))
        own = {p.untyped_storage().data_ptr() for p in net.parameters()}
        size = sum(n for place, n in kept.items() if place not in own)
    out.square().mean().backward()
    return {k: p.grad for k, p in net.named_parameters() if p.grad is not None}, size


@pytest.mark.parametrize("start", [0, 3])
def test_checkpointing_keeps_less_and_gives_the_same_gradients(start: int) -> None:
    torch.manual_seed(0)
    net = UNet(NET.model_copy(update={"decoder": (1, 1, 2)})).train()
    with torch.no_grad():
        for p in net.parameters():
            p.normal_(std=0.05)
    whole, size = gradients(net, SHORT, start)
    less, small = gradients(net, CHECKPOINT, start)
    assert whole.keys() == less.keys()
    assert all(torch.equal(whole[k], less[k]) for k in whole)
    assert small < 0.5 * size
    assert net.checkpointing is None


def trained(tmp_path: Path, name: str, **options: Any) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Stage 3, with an adaptive weight and two losses at one image, so that a graph is walked through more than once."""
    found = networks(tmp_path)
    base = Distill(pairs=PAIRS, features=FEATURES, train=SHORT)
    if not (tmp_path / "pairs").exists():
        pairs.run(PAIRS, StageContext.for_test(tmp_path / "pairs", tmp_path / "work-pairs", found))
    recipe = Grow(
        base=base,
        width=1,
        train=SHORT.model_copy(update={"accumulate": 2, **options}),
        loss=LossConfig(adversarial_rec=0.5, discriminator_width=8),
        train_from=2,
    )
    everything = {**found, PAIRS.key: tmp_path / "pairs", base.key: found[TEACHER.key]}
    ctx = StageContext.for_test(tmp_path / name, tmp_path / f"work-{name}", everything)
    grow.run(recipe, ctx)
    return ctx.facts, load_half(tmp_path / name / "model.safetensors")


def test_a_training_with_checkpointing_is_the_same_and_counts_the_same_work(tmp_path: Path) -> None:
    plain, weights = trained(tmp_path, "plain")
    facts, less = trained(tmp_path, "less", checkpoint=True)
    assert facts["curve"] == plain["curve"]
    assert facts["training_flops"] == plain["training_flops"]
    assert all(torch.equal(weights[k], less[k]) for k in weights)


@COMPILER
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # PyTorch's, where one compiled part takes what another has given
@pytest.mark.parametrize("checkpoint", [False, True])
def test_a_compiled_training_differs_by_rounding(tmp_path: Path, checkpoint: bool) -> None:
    plain, weights = trained(tmp_path, "plain")
    facts, fast = trained(tmp_path, "fast", compile=True, checkpoint=checkpoint)
    for a, b in zip(plain["curve"], facts["curve"], strict=True):
        assert b == pytest.approx(a, rel=2e-3, abs=5e-4)
    assert facts["training_flops"] == plain["training_flops"]
    for key, value in weights.items():
        torch.testing.assert_close(fast[key], value, rtol=0.02, atol=2e-3)


def test_only_the_training_is_changed() -> None:
    net = UNet(NET)
    with compiled([net], COMPILE):
        assert all(part in vars(net) for part in PARTS)
    assert not any(part in vars(net) for part in PARTS)
    with compiled([net], SHORT):
        assert not any(part in vars(net) for part in PARTS)


def test_neither_is_part_of_a_key() -> None:
    fast = SHORT.model_copy(update={"checkpoint": True, "compile": True})
    assert EDM(data=DATA, net=NET, train=fast).key == TEACHER.key


@pytest.mark.parametrize(("config", "change"), [(CHECKPOINT, checkpointed), (COMPILE, compiled)])
def test_a_training_without_a_unet_says_so(config: TrainConfig, change: Any) -> None:
    with pytest.raises(UserError, match="no U-Net"), change([nn.Linear(2, 2)], config):
        pass


def test_no_compiler_is_said_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    recipe = EDM(data=DATA, net=UNetConfig(**NET.model_dump()), train=SHORT.model_copy(update={"compile": True}))
    with pytest.raises(UserError, match=r"C\+\+ compiler"):
        teacher.run(recipe, StageContext.for_test(tmp_path / "out", tmp_path / "work"))
