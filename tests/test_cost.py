"""What a chain costs before it is run: counted on networks without values, against what a real step counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch.utils.flop_counter import FlopCounterMode

from pagoda_bench.cli.cost import cost as command
from pagoda_bench.diffusion.edm import SIGMA_MAX
from pagoda_bench.errors import UserError
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda.cost import cost_of, image_flops
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.recipes.losses import LossConfig
from pagoda_bench.recipes.stages import EDM, Distill, FeatureNet, Grow, Pairs, TeacherPairs, TrainConfig, UNetConfig

NET = UNetConfig(resolution=8, channels=16, encoder=(1, 2), attention=(4,), grown_blocks=1)
TRAIN = TrainConfig(steps=10, batch=4)
TEACHER = EDM(data=EmbeddedData(), net=NET, train=TRAIN)
PAIRS = Pairs(teacher=TEACHER, count=100, points=5, flip=True)
SCALE = Path(__file__).parent.parent / "experiments" / "scales" / "imagenet.yaml"


def counted(net: UNet, backward: bool) -> float:
    x = torch.randn(3, 3, 8, 8)
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        out = net(x, SIGMA_MAX, torch.tensor([0, 1, 2]))
        if backward:
            out.sum().backward()
    return counter.get_total_flops() / 3


@pytest.mark.parametrize("trained", [False, True])
def test_operations_are_those_of_a_network_with_values(trained: bool) -> None:
    with torch.device("meta"):
        net = UNet(NET)
    # In evaluation mode the memory format is the input's: of channels-last tensors, as some processors train, attention takes
    # its fused kernel, which does a product of its backward pass twice (0.2 % more here).
    assert image_flops(net, trained=trained) == pytest.approx(counted(UNet(NET).eval(), trained))


def test_a_frozen_trunk_costs_its_forward_pass_alone() -> None:
    with torch.device("meta"):
        net = UNet(NET.model_copy(update={"decoder": (1, 1, 2)}))
    blocks = len(net.output_blocks)
    for name, p in net.named_parameters():
        p.requires_grad_(name.startswith("out"))
    whole, part, forward = (
        image_flops(net, trained=True),
        image_flops(net, trained=True, start=blocks - 2),
        image_flops(net, trained=False),
    )
    assert forward < part <= whole < 3 * forward


def test_pairs_cost_evaluations_times_rows() -> None:
    found = cost_of(PAIRS)
    assert found is not None
    assert found.flops == pytest.approx(counted(UNet(NET), False) * 8 * 200)
    assert found.storage == 200 * 3 * 8 * 8 * 2


def test_costs_grow_with_steps_and_batch() -> None:
    features = FeatureNet(data=EmbeddedData(), train=TRAIN)
    loss = LossConfig()
    base = Distill(pairs=PAIRS, features=features, train=TRAIN, loss=loss)
    more = base.model_copy(update={"train": TRAIN.model_copy(update={"steps": 20, "batch": 8})})
    one, four, grown = cost_of(base), cost_of(more), cost_of(Grow(base=base, width=1, train=TRAIN))
    assert one is not None
    assert four is not None
    assert grown is not None
    assert four.flops == pytest.approx(4 * one.flops)
    fewer = cost_of(base.model_copy(update={"loss": loss.model_copy(update={"pairs_share": 0.5})}))
    assert fewer is not None
    assert fewer.flops == pytest.approx(0.75 * one.flops)
    knowing = TEACHER.model_copy(update={"drop": 0.1})
    samples = TeacherPairs(teacher=knowing, count=100, points=5, guidance=(0.0, 1.0))
    pairs = PAIRS.model_copy(update={"teacher": knowing})
    told, plain = cost_of(base.model_copy(update={"guided": samples, "pairs": pairs})), cost_of(samples)
    assert told is not None
    assert plain is not None
    assert told.flops == pytest.approx(1.5 * one.flops, rel=1e-3)  # and the layer of w
    assert plain.flops == pytest.approx(counted(UNet(NET), False) * 2 * 9 * 100)
    assert grown.parameters > one.parameters
    assert cost_of(features) is None


def test_the_best_milestone_is_kept_beside_the_others() -> None:
    plain, measured = cost_of(TEACHER), cost_of(TEACHER.model_copy(update={"train": TRAIN.model_copy(update={"evaluate": 5})}))
    assert plain is not None
    assert measured is not None
    assert measured.storage == 2 * plain.storage
    assert measured.work * TRAIN.keep == plain.work * (TRAIN.keep + 1)
    assert measured.flops == plain.flops


@pytest.mark.slow
def test_the_imagenet_scale_is_a_chain_and_its_cost_is_printed() -> None:
    pytest.importorskip("timm", reason="needs timm: pip install timm")
    done = CliRunner().invoke(command, [str(SCALE), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    stages = {stage["stage"]: stage for stage in found["stages"]}
    assert list(stages) == ["edm 64px", "pairs", "distill 64px", "grow 128px", "grow 256px", "grow 512px"]
    # The published network's parameters, exact (fixtures of the official code).
    assert stages["distill 64px"]["parameters"] == 295_899_267
    # 1.28 million images, mirrored, at 78 evaluations: the official writer makes 79 of them.
    assert stages["pairs"]["storage"] == 2 * 1_281_167 * 3 * 64 * 64 * 2
    assert stages["pairs"]["hours"]["A100"] == pytest.approx(stages["pairs"]["flops"] / (312e12 * 0.35) / 3600)
    assert found["data_bytes"]["512"] == 3 * 512 * 512 * 1_331_167
    text = CliRunner().invoke(command, [str(SCALE), "--price", "A100=1"]).stdout
    assert "grow 512px" in text
    assert "A100 1 USD an hour" in text


@pytest.mark.parametrize("price", ["B7=1", "A100=inf", "A100=nan", "A100=-1", "A100"])
def test_a_price_that_is_none_is_refused(price: str) -> None:
    with pytest.raises(UserError, match=f"--price {price}"):
        CliRunner().invoke(command, [str(SCALE), "--price", price], catch_exceptions=False)
