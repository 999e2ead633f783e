"""The rows of the style-based GAN: what a scale makes of it, its sizes, and the authors' released pickles as a command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from toy_scale import VALUES, models, toy_scale

from baselines.gan.net import StyleNet
from baselines.gan.presets import PRESETS
from baselines.gan.recipes import Adversary, GanGrown, GanSampler, StyleConfig, build
from baselines.samples.make import run as run_command
from baselines.samples.recipes import FromCommand
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.values import merged
from pagoda_bench.tables import spec


def test_rows_of_the_method() -> None:
    toy = dict(build.facts.toy)  # type: ignore[attr-defined]
    scale = toy_scale(gan={**merged(toy, {"match": "chain", "stem": {"share": 0.3}}), "truncation": 0.7})
    found = build(scale, 16)
    assert isinstance(found, GanSampler)
    assert isinstance(found.of, GanGrown)
    assert (found.resolution, found.truncation, found.of.share, found.of.base.share) == (16, 0.7, 1.0, 0.3)
    assert found.of.match == found.of.base.match == scale.work_of(16)
    base = build(scale, 8)
    assert isinstance(base, GanSampler)
    assert (base.resolution, base.of.share, base.of.match) == (8, 1.0, scale.work_of(8))
    assert models(found) == [found.of]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"stems": {}}, "unknown key 'stems'"),
        ({"grown": []}, "16 px takes 1 blocks above the stem, there are 0"),
        ({"net": {"grid": 3}}, "lead from the stem's 6 px to 16"),
        ({"net": {"layers": [1]}}, "one entry a block, not 2 and 1"),
        ({"net": {"channels": [0, 16]}}, "must be above 0"),
        ({"truncation": 1.5}, "truncation"),
        ({"adversary": {"untl": 1}}, "unknown key 'untl'"),
        ({"stem": {"features": None, "train": {"steps": 1}}}, "go together"),
    ],
)
def test_wrong_values_are_refused_in_one_line(values: dict[str, Any], words: str) -> None:
    toy = dict(build.facts.toy)  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=words) as refused:
        build(toy_scale(gan=merged(toy, values)), 16)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", PRESETS)
def test_the_networks_of_every_preset_can_be_built(name: str) -> None:
    """At paper scale the generator of 256 px has the 166 M parameters that later tables quote, within 3 %."""
    values = PRESETS[name]
    net = StyleConfig.load(values["net"], name)
    blocks = values["grown"][:4] if name == "paper" else values["grown"]
    channels = (*net.channels, *(block["channels"] for block in blocks))
    layers = (*net.layers, *(block.get("layers", 2) for block in blocks))
    with torch.device("meta"):
        whole = StyleNet(net.model_copy(update={"channels": channels, "layers": layers}))
    size = sum(p.numel() for p in whole.parameters())
    if name == "paper":
        assert whole.config.resolution == 256
        assert size == pytest.approx(166e6, rel=0.03)
    else:
        assert 1e4 < size < 2e6
    Adversary.load(values["adversary"], name)


def code_of(page: Path, first: str) -> str:
    (found,) = [
        block for block in re.findall(r"```\w+\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL) if first in block
    ]
    return str(found)


STAND_IN = """
import torch

class Painter(torch.nn.Module):  # the interface that the pickles have: z_dim, c_dim, (z, c, truncation_psi)
    z_dim, c_dim = 5, 10

    def forward(self, z, c, truncation_psi):
        colour = torch.stack([c.argmax(1) / 10, z.mean(1) * truncation_psi, 9 * torch.ones(len(z))], 1)
        return colour[:, :, None, None].expand(-1, -1, 8, 8)
"""


def test_released_pickles_run_in_their_own_environment(repository: Path, tmp_path: Path) -> None:
    """The row and the script of the page, with a stand-in for the pickle whose class this process does not know."""
    page = repository / "baselines" / "gan" / "README.md"
    rows = yaml.safe_load(code_of(page, "id: stylegan-xl"))["rows"]
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo" / "painter.py").write_text(STAND_IN, encoding="utf-8")
    (tmp_path / "released.py").write_text(code_of(page, "# released.py"), encoding="utf-8")
    pickled = "import pickle, painter; pickle.dump({'G_ema': painter.Painter()}, open('imagenet64.pkl', 'wb'))"
    own = {**os.environ, "PYTHONPATH": str(tmp_path / "repo")}
    subprocess.run([sys.executable, "-c", pickled], cwd=tmp_path, env=own, check=True)
    line = (
        rows[0]["command"].replace("/data/stylegan-xl", str(tmp_path / "repo")).replace("/data/sgxl/bin/python", sys.executable)
    )
    rows[0]["command"], rows[0]["options"]["n"] = line.replace("/data", str(tmp_path)), 20
    toy = {k: v for k, v in VALUES.items() if k != "name"}
    grid = spec.TableSpec.load({"table": "t", "title": "T", "default_scale": "toy", "rows": rows, "scales": {"toy": toy}})
    (row,) = spec.build(grid, spec.load_scale(grid, "toy")).rows
    assert isinstance(row.generator, FromCommand)
    assert (row.generator.of.n, row.generator.resolution) == (20, 8)
    assert {str(tmp_path / "released.py"), str(tmp_path / "imagenet64.pkl")} <= row.generator.of.programs.keys()
    ctx = StageContext.for_test(tmp_path / "out", tmp_path / "work")
    run_command(row.generator.of, ctx)
    images = np.load(tmp_path / "out" / "images.npz")["arr_0"]
    assert images.shape == (20, 8, 8, 3)
    np.testing.assert_array_equal(images[:, 0, 0, 0], np.round((np.arange(20) % 10 / 10 + 1) * 127.5))
    assert (images[..., 2] == 255).all()
    assert len(np.unique(images[:, 0, 0, 1])) > 10
    assert "painter" not in sys.modules
