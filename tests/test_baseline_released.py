"""The grid of published weights: planned without any of them, and measured with tiny ones in their place."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from pagoda_bench.cli.main import main
from pagoda_bench.cli.reproduce import read_table, table_of
from pagoda_bench.recipes.registry import registered

pytestmark = [
    pytest.mark.skipif("dit" not in {entry.name for entry in registered()}, reason="install again: make install"),
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning"),
]

TRAIN = "{steps: 2, batch: 8}"
# Embedded images in the place of ImageNet, and the least of everything else.
SETS = {
    "data": "{kind: embedded, master: 64}",
    "base": "16",
    "grown": "[32, 64]",
    "features": f"{{width: 8, resolution: 64, train: {TRAIN}}}",
    "score": "{n: 10, reference: 20}",
    "grow": "[{}, {}]",
}


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def reproduce(*arguments: str) -> int:
    return main(["reproduce", "released", *arguments])


def test_it_is_planned_without_weights() -> None:
    table = table_of(read_table("released"), None, False, (), {}, planned=True)
    rows = {row.id: row for row in table.rows}
    assert {"dit-256-g-256", "sd-512", "sdxl-512", "lcm-8-256", "if-64", "if-256"} <= rows.keys()
    for name, row in rows.items():
        if row.row != "real":
            assert row.generator is None, name
            assert row.unavailable
            assert "\n" not in row.unavailable
    assert "hf download facebook/DiT-XL-2-256 --revision main" in rows["dit-256-256"].unavailable
    assert "licence" in rows["if-64"].unavailable


def test_its_plan_is_shown(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="the judge of ImageNet needs it")
    assert reproduce("--dry-run", "--store", str(tmp_path / "store")) == 0


def test_it_is_measured_with_tiny_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows with weights, one whose weights are not here, and real images: the table goes on and says so."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    import tiny_pipelines

    from pagoda_bench.cli import reproduce as command

    dit, sd = tiny_pipelines.dit(tmp_path / "dit", size=4), tiny_pipelines.stable_diffusion(tmp_path / "sd")
    grid = read_table("released")
    found = {row.id: row for row in grid.rows}
    rows = (
        found["dit-256-g"].model_copy(update={"at": (32,), "options": {"weights": str(dit), "steps": 2}}),
        found["sd"].model_copy(update={"at": (16, 32), "options": {"weights": str(sd), "steps": 1}}),
        found["lcm-4"].model_copy(update={"at": (32,)}),
        found["real"].model_copy(update={"at": (32,)}),
    )
    monkeypatch.setattr(command, "read_table", lambda name: grid.model_copy(update={"rows": rows}))
    sets = [word for key, value in SETS.items() for word in ("--set", f"{key}={value}")]
    code = reproduce(*sets, "--store", str(tmp_path / "store"), "--out", str(tmp_path / "out"))
    assert code == 1  # one row could not be made
    with (tmp_path / "out" / "imagenet" / "released.csv").open() as file:
        lines = list(csv.DictReader(file))
    cells = [row for row in lines if row["metric"] == "fd"]
    made = {(row["row"], row["resolution"]) for row in cells if row["value"]}
    assert made == {("dit-256-g", "32"), ("sd", "16"), ("sd", "32"), ("real", "32")}
    absent = [row for row in lines if row["row"] == "lcm-4"]
    assert absent
    assert all("not available: SimianLuo/LCM_Dreamshaper_v7 at revision main" in row["status"] for row in absent)
    evaluations = {row["row"]: float(row["nfe"]) for row in cells if row["value"] and row["row"] != "real"}
    assert evaluations == {"dit-256-g": 4, "sd": 2}
