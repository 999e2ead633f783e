"""Table 1 at the paper's scale: its plan, and the same command at tiny size on a tree that is shaped like ImageNet's."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from pagoda_bench import resources
from pagoda_bench.cli.main import cli
from pagoda_bench.data.imagenet import prepare
from pagoda_bench.metrics.computations import least
from pagoda_bench.metrics.suite import measures
from pagoda_bench.recipes.base import walk
from pagoda_bench.recipes.stages import EDM, Distill, Grow
from pagoda_bench.tables import spec
from tests.image_files import folder_of
from tests.test_imagenet import tree_files

# Every stage of the published recipes that is not of size: flips, shards, RAdam, further averages, separate updates, a
# discriminator of reconstructions, gradient accumulation, a reference of all training images.
TINY = {
    "base": "8",
    "grown": "[16]",
    "points": "2",
    "features": "{width: 8, resolution: 16, train: {steps: 2, batch: 4}}",
    "teacher": "{net: {resolution: 8, channels: 16, encoder: [1, 2], attention: [4], grown_blocks: 1, classes: 3}, "
    "train: {steps: 2, batch: 4, accumulate: 2, schedule: constant}}",
    "pairs": "{count: 18, points: 2, flip: true, batch: 5, shard: 10}",
    "distill": "{train: {steps: 2, batch: 4, optimizer: radam, emas: [0.9]}, loss: {eps: 0.1}}",
    "grow": "[{width: 1, train: {steps: 2, batch: 4}, "
    "loss: {eps: 0.1, updates: separate, adaptive: false, adversarial_rec: 0.5}}]",
    "edm": "{net: {resolution: 16, patch: 2, channels: 16, encoder: [1, 2], attention: [4], classes: 3}, train: {batch: 4}}",
    "score": "{n: 6, reference: 18, split: train, keep: 9, neighbours: 1}",
}


def reproduce(*arguments: str) -> Result:
    return CliRunner().invoke(cli, ["reproduce", "table1", "--scale", "imagenet", *arguments])


def test_the_command_at_tiny_size(tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    prepare(folder_of(tmp_path / "tree", tree_files()), prepared, (8, 16), any_counts=True, rows=4, workers=2)
    sets = [word for key, value in TINY.items() for word in ("--set", f"{key}={value}")]
    out = ["--store", str(tmp_path / "store"), "--out", str(tmp_path / "out")]
    done = reproduce("--data", str(prepared), *out, *sets)
    assert done.exit_code == 0, done.output
    with (tmp_path / "out" / "imagenet" / "table1.csv").open() as file:
        rows = list(csv.DictReader(file))
    found = {(row["row"], row["resolution"]) for row in rows if row["metric"] == "fd" and row["value"]}
    assert found == {("teacher", "8"), ("pagoda", "8"), ("pagoda", "16"), ("real", "8"), ("real", "16")} | {
        (row, "16") for row in ("edm", "nearest", "bicubic")
    }
    assert (tmp_path / "out" / "imagenet" / "table1-samples.png").is_file()
    again = reproduce("--data", str(prepared), *out, *sets, "--dry-run")
    assert "0 to make, 0 released, 8 cached" in again.output


def test_the_plan_of_the_published_scale_says_what_it_takes(tmp_path: Path) -> None:
    pytest.importorskip("timm", reason="needs timm: pip install timm")
    done = reproduce("--dry-run", "--store", str(tmp_path))
    assert done.exit_code == 0, done.output
    assert "reference 512px N=1281167" in done.output
    assert "inception (6726825d)" in done.output
    assert "A100 HOURS" in done.output
    assert "without --data: the keys above are those of no images" in done.output


def test_every_training_measures_the_fid_at_milestones_and_no_key_knows() -> None:
    grid = spec.read(resources.folder("experiments") / "table1.yaml")
    scale = spec.load_scale(grid, "imagenet", planned=True)
    rows = spec.build(grid, scale).rows
    trained = {r.key: r for row in rows for s in row.scores for r in walk(s) if isinstance(r, (EDM, Distill, Grow))}
    assert sorted(r.kind for r in trained.values()) == ["distill", "edm", "edm", "grow", "grow", "grow"]
    for key, recipe in trained.items():
        train = recipe.train
        assert recipe.model_copy(update={"train": train.model_copy(update={"evaluate": 0})}).key == key
        assert train.evaluate == 20
        (measure,) = measures(train.evaluate_protocol, train.evaluate_metrics)
        assert (measure.metric, measure.extractor, measure.feature) == ("fid", "inception", "pool3")
        assert scale.features == {"kind": "pretrained", "network": measure.extractor}
        assert least(measure.metric, measure.line.least, measure.settings) <= train.evaluate_n <= 50_000  # of the split
        assert train.evaluate_n % 1000 == 0, "as many of each class"


def test_without_images_nothing_runs() -> None:
    done = reproduce()
    assert done.exit_code != 0
    assert "give --data FOLDER, made by 'pagoda-bench data prepare'" in str(done.exception) + done.output
