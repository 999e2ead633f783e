"""What the adversarial loss is balanced against in a real training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pagoda_bench.nets.features import load_half
from pagoda_bench.pagoda import distill
from pagoda_bench.recipes.losses import LossConfig
from pagoda_bench.recipes.stages import Distill
from tests.test_steps import FEATURES, PAIRS, SHORT, TEACHER, inputs_with_pairs, run, weights


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return inputs_with_pairs(tmp_path_factory.mktemp("upstream"))


@pytest.mark.parametrize("more", [{}, {"adversarial_rec": 0.5}, {"updates": "separate"}])
def test_without_reconstruction_there_is_nothing_to_balance_against(
    upstream: dict[str, Path], tmp_path: Path, more: dict[str, Any]
) -> None:
    """The ratio to a gradient of 0 would be its lower clamp, 0.01: an adversarial loss alone that barely trains."""
    loss = LossConfig(reconstruction=0, adversarial=0.7, **more)
    ctx = run(Distill(pairs=PAIRS, features=FEATURES, train=SHORT, loss=loss), distill, upstream, tmp_path)
    assert {point["lambda"] for point in ctx.facts["curve"]} == {0.7}
    before, after = load_half(upstream[TEACHER.key] / "model.safetensors"), weights(ctx)
    assert any(not torch.equal(before[k], after[k]) for k in after)
