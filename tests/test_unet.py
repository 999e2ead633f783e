"""The U-Net and its growth against outputs, names, shapes and counts of the official PaGoDA implementation."""

from __future__ import annotations

import csv
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from pagoda_bench.errors import UserError
from pagoda_bench.nets.growth import grow, train_start, trainable_keys
from pagoda_bench.nets.unet import Hidden, UNet
from pagoda_bench.recipes.stages import UNetConfig
from tests.official import (
    ATOL,
    FULL,
    NETS,
    OFFICIAL,
    SMALL,
    TINY,
    arrays,
    fill,
    fill_rule,
    filled_net,
    largest,
    meta_net,
    one_step,
    rows,
    shape_text,
    small_net,
)


@pytest.mark.parametrize("name", ["base_r1", "grown2_half"])
def test_the_formula_weights_are_the_stated_ones(name: str) -> None:
    filled = fill(UNet(NETS[name]).state_dict())
    header, *stated = rows(f"tiny_{name}.fill")
    assert header[:4] == ["i", "key", "shape", "rule"]
    assert [row[1] for row in stated] == sorted(filled)
    for _, key, shape, rule, first, last, squares in stated:
        values = filled[key].flatten().double()
        assert (shape_text(filled[key]), fill_rule(key, tuple(filled[key].shape))) == (shape, rule)
        assert [values[0], values[-1]] == pytest.approx([float(first), float(last)], rel=1e-6, abs=1e-8)
        assert float((values**2).sum()) == pytest.approx(float(squares), rel=1e-6)


@pytest.mark.parametrize("name", NETS)
def test_one_step_output(name: str) -> None:
    case = arrays(f"tiny_{name}")
    assert case["sigma"].tolist() == [80.0] * len(case["labels"])
    net = filled_net(NETS[name])
    assert NETS[name].output_resolution == case["out"].shape[-1]
    assert largest(one_step(net, case["z"], case["labels"]), case["out"]) < ATOL


@pytest.mark.parametrize("name", ["base_r1", "base_r2", "grown1_r1", "grown1_r2", "grown1_ssn"])
def test_one_step_output_in_float64(name: str) -> None:
    """The same formula to fifteen digits: no rounding hides a small mistake, such as another epsilon in the norms."""
    case = arrays(f"tiny_{name}")
    net = filled_net(NETS[name]).double()
    assert largest(one_step(net, case["z"].double(), case["labels"]), case["out_float64"]) < 1e-6


def test_one_step_sample_and_the_call_at_sigma_zero() -> None:
    case, net = arrays("tiny_base_r1"), filled_net(TINY)
    sample = one_step(net, case["z"], case["labels"], float(case["sample_sigma"])).clamp(-1, 1)
    assert largest(sample, case["sample_clamped"]) < ATOL
    with torch.no_grad():
        at_zero = net(2 * case["x_sigma0"], torch.zeros(4), case["labels"])
    assert largest(at_zero, case["out_sigma0"]) < ATOL


def test_as_a_denoiser() -> None:
    """EDM's preconditioning (Karras et al. 2022, table 1) around the network, at one sigma a batch and one an image."""
    case, net = arrays("tiny_denoise_r1"), filled_net(TINY)

    def denoise(x: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
        s = sigma[:, None, None, None]
        out = net(x / (s**2 + 0.25).sqrt(), sigma, case["labels"])
        return out, 0.25 / (s**2 + 0.25) * x + 0.5 * s / (s**2 + 0.25).sqrt() * out

    with torch.no_grad():
        for i, sigma in enumerate(case["sigma"]):
            out, denoised = denoise(case["image"] + sigma * case["noise"], sigma.expand(4))
            assert largest(out, case["net_out"][i]) < ATOL
            assert largest(denoised, case["denoised"][i]) < ATOL
        _, mixed = denoise(case["mixed_x_noisy"], case["mixed_sigma"])
    assert largest(mixed, case["mixed_denoised"]) < ATOL


# ---------------------------------------------------------------- full-size networks, without memory for them


@pytest.mark.parametrize("name", FULL)
def test_full_size_names_shapes_and_trainable_set(name: str) -> None:
    net = meta_net(name)
    state, stated = net.state_dict(), rows(f"{name}.keys")
    assert [[key, shape_text(value)] for key, value in state.items()] == [row[:2] for row in stated]
    if len(net.output_blocks) > net.base_blocks:
        assert trainable_keys(net, 9) == [key for key, _, trains in stated if trains == "yes"]


def test_full_size_counts() -> None:
    with (OFFICIAL / "counts.tsv").open() as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    assert {row["name"] for row in table} == set(FULL)
    for row in table:
        net = meta_net(row["name"])
        state = net.state_dict()
        assert sum(p.numel() for p in net.parameters()) == int(row["total"])
        assert (len(state), len(net.input_blocks), len(net.output_blocks)) == (
            int(row["tensors"]),
            int(row["input_blocks"]),
            int(row["output_blocks"]),
        )
        if len(net.output_blocks) > net.base_blocks:
            assert sum(state[key].numel() for key in trainable_keys(net, 9)) == int(row["trainable_in_stage_3"])


@pytest.mark.parametrize(("name", "source"), [("64to128", "64to64"), ("64to256", "64to128"), ("64to512_consistent", "64to256")])
def test_full_size_fresh_set(name: str, source: str) -> None:
    net = meta_net(name)
    fresh = grow(meta_net(source).state_dict(), net, train_from=9)
    assert fresh == [row[0] for row in rows(f"{name}.fresh")]
    assert set(fresh) <= set(trainable_keys(net, "new")) < set(trainable_keys(net, 9))


def test_the_default_multipliers_at_512_are_refused_unless_allowed() -> None:
    net, base = meta_net("64to512_default"), meta_net("64to256").state_dict()
    with pytest.raises(UserError, match=r"output_blocks\.4\.0\.in_layers\.2\.weight.*would stay random") as error:
        grow(base, net, train_from=9)
    assert "\n" not in str(error.value)
    fresh = grow(base, net, train_from=9, allow_frozen_fresh=True)
    stated = rows("64to512_default.fresh")
    assert fresh == [row[0] for row in stated]
    frozen = set(fresh) - set(trainable_keys(net, 9))
    assert frozen == {row[0] for row in stated if row[2] == "no"}
    assert sum(net.state_dict()[key].numel() for key in frozen) == 31_035_072


# ---------------------------------------------------------------- growth


@pytest.mark.parametrize(("a", "b"), [("base_r1", "grown1_r1"), ("base_r2", "grown1_r2"), ("grown1_r1", "grown2_r1")])
def test_growth_copies_and_starts_where_the_official_one_does(a: str, b: str) -> None:
    case, base = arrays(f"tiny_growth_{a}_to_{b}"), filled_net(NETS[a]).eval()
    assert largest(one_step(base, case["z"], case["labels"]), case["out_source"]) < ATOL
    net = UNet(NETS[b]).eval()
    fresh = grow(base.state_dict(), net)
    assert len(net.state_dict()) - len(fresh) == int(case["copied_tensors"])
    out = one_step(net, case["z"], case["labels"])
    assert largest(out, case["out_grown"]) < ATOL
    # The fresh blocks end in zeros: the head sees the last features of the base, enlarged.
    x = case["z"] / math.sqrt(80**2 + 0.25)
    with torch.no_grad():
        h = base.decode(base.encode(x, 80.0, case["labels"])).h
        assert largest(out, base.head(h.repeat_interleave(2, 2).repeat_interleave(2, 3))) < 1e-6


def test_growth_to_half_width_starts_as_the_copied_bias() -> None:
    base = UNetConfig(resolution=8, channels=16, decoder=(1, 1, 2), classes=3)
    below = filled_net(base)
    net = UNet(base.model_copy(update={"decoder": (0.5, 1, 1, 2)}))
    fresh = grow(below.state_dict(), net)
    assert {"out.0.weight", "out.0.bias", "out.2.weight"} <= set(fresh)
    image = one_step(net, torch.randn(2, 3, 8, 8) * 80, torch.tensor([0, 2]))
    assert image.shape == (2, 3, 32, 32)
    assert torch.equal(image, below.state_dict()["out.2.bias"][None, :, None, None].expand_as(image))


def test_growth_from_half_precision_is_cast_up() -> None:
    base = {key: value.half() for key, value in filled_net(NETS["base_r1"]).state_dict().items()}
    net = UNet(NETS["grown1_r1"])
    grow(base, net)
    key = "middle_block.0.in_layers.2.weight"
    assert net.state_dict()[key].dtype == torch.float32
    assert torch.equal(net.state_dict()[key], base[key].float())


def test_refused_growth_changes_nothing() -> None:
    base, net = filled_net(NETS["grown1_r1"]).state_dict(), UNet(NETS["grown2_half"])
    before = {key: value.clone() for key, value in net.state_dict().items()}
    with pytest.raises(UserError, match="time_embed"):
        grow(base, net)
    with pytest.raises(UserError, match="'stranger'"):
        grow({**base, "stranger": torch.zeros(1)}, net, allow_frozen_fresh=True)
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_the_new_level_is_three_blocks_and_the_head() -> None:
    net = UNet(NETS["grown2_r1"])
    assert net.base_blocks == 4
    assert (train_start(net, "new"), train_start(net, 2)) == (7, 2)
    keys = trainable_keys(net, "new")
    assert {".".join(key.split(".")[:2]) for key in keys} == {f"output_blocks.{i}" for i in (7, 8, 9)} | {"out.0", "out.2"}
    with pytest.raises(UserError, match="give an index from 0 to 9"):
        train_start(net, 10)
    with pytest.raises(UserError, match="needs a grown level"):
        trainable_keys(UNet(NETS["base_r1"]), "new")


# ---------------------------------------------------------------- the split, and what a network is


@pytest.mark.parametrize("k", range(9))
def test_trunk_and_finish_are_forward(k: int) -> None:
    net, images = small_net(), torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert (len(net.output_blocks), net.base_blocks) == (8, 4)
    sigma, labels = torch.tensor([0.1, 3.0, 80.0]), torch.tensor([2, 0, 1])
    with torch.no_grad():
        whole = net(images, sigma, labels)
        hidden = net.trunk(images, sigma, labels, stop=k)
        assert torch.equal(net.finish(hidden, start=k), whole)
        # In two steps; and one image at a time, stacked again: a hidden state is plain tensors with the batch in front.
        stepped = net.decode(net.trunk(images, sigma, labels, stop=k // 2), k // 2, k)
        assert torch.equal(net.finish(stepped, start=k), whole)
        single = [net.trunk(images[i : i + 1], sigma[i : i + 1], labels[i : i + 1], stop=k) for i in range(3)]
        skips = tuple(torch.cat(parts) for parts in zip(*(s.skips for s in single), strict=True))
        stacked = Hidden(torch.cat([s.h for s in single]), skips, torch.cat([s.emb for s in single]))
        assert largest(net.finish(stacked, start=k), whole) < 1e-5


def test_a_frozen_trunk_leaves_the_gradients_of_the_rest_alone() -> None:
    torch.manual_seed(0)
    net, k = filled_net(SMALL), 3
    x, labels = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    net(x, 80.0, labels).square().mean().backward()
    expected = {key: p.grad for key, p in net.named_parameters()}  # zero_grad below drops these tensors, it does not clear them
    net.zero_grad(set_to_none=True)
    with torch.no_grad():
        hidden = net.trunk(x, 80.0, labels, stop=k)
    net.finish(hidden, start=k).square().mean().backward()
    trained = {key for key, p in net.named_parameters() if p.grad is not None}
    assert trained == set(trainable_keys(net, k))
    for key, p in net.named_parameters():
        if key in trained:
            torch.testing.assert_close(p.grad, expected[key])


def test_a_hidden_state_of_another_place_is_refused() -> None:
    net = UNet(SMALL)
    hidden = net.trunk(torch.zeros(1, 3, 8, 8), 80.0, torch.zeros(1, dtype=torch.long), stop=2)
    assert len(hidden.skips) == 2
    with pytest.raises(ValueError, match="2 skips"):
        net.finish(hidden, start=1)
    with pytest.raises(ValueError, match="of 8"):
        net.decode(hidden, 2, 9)


def test_a_fresh_network_is_zero_and_every_parameter_can_learn() -> None:
    torch.manual_seed(0)
    net = UNet(SMALL.model_copy(update={"decoder": (1, 1, 2)}))
    x, labels = torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    assert torch.equal(net(x, 1.0, labels), torch.zeros(2, 3, 16, 16))
    net = filled_net(net.config)
    net(x, 1.0, labels).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in net.parameters())


def test_patches_keep_the_pixel_resolution() -> None:
    config = UNetConfig(resolution=16, channels=16, patch=2, classes=3)
    net = filled_net(config)
    assert net.state_dict()["input_blocks.0.0.weight"].shape == (16, 12, 3, 3)
    x, labels = torch.randn(2, 3, 16, 16), torch.tensor([0, 2])
    with torch.no_grad():
        hidden = net.encode(x, 1.0, labels)
        assert hidden.h.shape[-2:] == (4, 4)
        assert net(x, 1.0, labels).shape == (2, 3, 16, 16)
        # The head's channels lie as (colour, row, column) inside a patch, as the input's do.
        flat, image = net.out(net.decode(hidden).h), net(x, 1.0, labels)
    assert torch.equal(flat.reshape(2, 3, 2, 2, 8, 8)[:, 1, 1, 0], image[:, 1, 1::2, 0::2])


@pytest.mark.parametrize("name", ["base_r1", "grown2_half"])
def test_channels_last_is_kept_and_changes_rounding_only(name: str) -> None:
    case, net = arrays(f"tiny_{name}"), filled_net(NETS[name])
    out = one_step(net, case["z"].contiguous(memory_format=torch.channels_last), case["labels"])
    assert out.is_contiguous(memory_format=torch.channels_last)
    assert largest(out, case["out"]) < 2e-4  # the group norm of that format sums in one pass
    net.to(memory_format=torch.channels_last)
    assert largest(one_step(net, case["z"], case["labels"]), case["out"]) < 2e-4


def test_one_sigma_for_all_and_the_type_of_x_change_nothing() -> None:
    net, x, labels = filled_net(SMALL), torch.randn(2, 3, 8, 8), torch.tensor([0, 1])
    with torch.no_grad():
        out = net(x, torch.tensor([5.0, 5.0]), labels)
        assert torch.equal(net(x, 5.0, labels), out)
        assert torch.equal(net(x, torch.tensor(5.0), labels), out)
        assert torch.equal(net(x.double(), 5.0, labels), out)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"attention": (5,)}, r"attention at 5 px.*\[8, 4\]"),
        ({"head_channels": 24}, "32 channels, not a multiple of head_channels 24"),
        ({"decoder": (1,)}, "decoder has 1 levels, the encoder 2"),
        ({"resolution": 9}, "resolution 9 is not a multiple of 2"),
        ({"patch": 8}, "resolution 8 is not a multiple of 16"),
        ({"channels": 33}, "even channels"),
        ({"decoder": (0.01, 1, 2)}, "widths >= 1"),
    ],
)
def test_a_config_that_makes_no_network_is_refused_in_one_line(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        UNet(UNetConfig.load({**SMALL.to_dict(), **change}))
    assert "\n" not in str(error.value)
