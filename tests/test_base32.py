"""The chain from a base of 32 px: its networks have the names, shapes and counts of those that the official code builds."""

from __future__ import annotations

import pytest
import torch

from pagoda_bench import resources
from pagoda_bench.nets.growth import trainable_keys
from pagoda_bench.nets.unet import UNet
from pagoda_bench.recipes.published import ADM32
from pagoda_bench.tables import spec
from tests.official import rows, shape_text

GRID = spec.read(resources.folder("experiments") / "base32.yaml")
SCALE = spec.load_scale(GRID, "imagenet32", planned=True)

# px: parameters, and of these what trains with output blocks from 9 on; counted on the networks of sony/pagoda at e6c850d
# with 256 channels in grown levels too, its default multipliers, and attention at 16 and 8 px.
COUNTS = {
    64: (375_090_691, 11_621_123),
    128: (379_421_443, 15_951_875),
    256: (383_752_195, 20_282_627),
    512: (385_209_731, 21_740_163),
}


def test_the_base_has_the_official_names_shapes_and_count() -> None:
    assert SCALE.teacher_model().net == SCALE.pagoda_model(32).net == ADM32
    with torch.device("meta"):
        state = UNet(ADM32).state_dict()
    assert [[key, shape_text(value)] for key, value in state.items()] == [row[:2] for row in rows("32to32.keys")]
    assert sum(value.numel() for value in state.values()) == 370_759_939


@pytest.mark.parametrize("resolution", COUNTS)
def test_its_levels_have_the_official_counts(resolution: int) -> None:
    model = SCALE.pagoda_model(resolution)
    with torch.device("meta"):
        net = UNet(model.net)
    state = net.state_dict()
    assert net.config.output_resolution == resolution
    trained = sum(state[key].numel() for key in trainable_keys(net, model.train_from))  # type: ignore[union-attr]
    assert (sum(value.numel() for value in state.values()), trained) == COUNTS[resolution]


def test_published_values_stand_beside_the_base_alone() -> None:
    """Those of the 64 px chain would stand beside rows that they do not belong to."""
    table = spec.build(GRID, SCALE)
    assert {row.id for row in table.rows if row.published} == {"pagoda-32"}
    assert [table.published_resolution(row.resolution) for row in table.rows] == [row.resolution for row in table.rows]
