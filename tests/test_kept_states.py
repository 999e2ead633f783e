"""Kept states of the frozen part (`Grow.cache`): made as a step would make them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.nets import device
from pagoda_bench.pagoda import grow
from pagoda_bench.recipes.stages import Distill, Grow
from tests.test_steps import FEATURES, PAIRS, SHORT, TEACHER, inputs_with_pairs


def test_kept_states_are_made_in_the_precision_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "fast_bfloat16", lambda: True)  # slow or not, this processor can
    found = inputs_with_pairs(tmp_path)
    base, seen = Distill(pairs=PAIRS, features=FEATURES, train=SHORT), set()
    state = grow.Frozen._state

    def watched(self: grow.Frozen, z: torch.Tensor, labels: torch.Tensor, w: torch.Tensor | None = None) -> Any:
        made = state(self, z, labels, w)
        seen.add((len(z), torch.is_autocast_enabled("cpu"), made.h.dtype))
        return made

    monkeypatch.setattr(grow.Frozen, "_state", watched)
    recipe = Grow(base=base, width=1, train=SHORT.model_copy(update={"precision": "bf16", "steps": 1}), cache=0.001)
    everything = {**found, base.key: found[TEACHER.key]}
    grow.run(recipe, StageContext.for_test(tmp_path / "out", tmp_path / "work", everything))
    assert seen == {(rows, True, torch.bfloat16) for rows in (PAIRS.count, SHORT.batch)}
