"""Grids of points, snapshots of code, and the folder of a sweep."""

from __future__ import annotations

import datetime
import itertools
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_stages import Toy, ToySum

from pagoda_bench.artifacts.store import Store
from pagoda_bench.cli import main as cli
from pagoda_bench.cli.reproduce import read_table, table_of
from pagoda_bench.cli.status import by_system
from pagoda_bench.errors import UserError
from pagoda_bench.plan.axes import SweepSpec, expand, read_sweep, settings
from pagoda_bench.plan.dag import Plan
from pagoda_bench.plan.snapshot import DIFF, MARK, freeze
from pagoda_bench.plan.sweeps import Sweep, find_sweep, tasks_of
from pagoda_bench.plan.watch import overview
from pagoda_bench.recipes.base import walk

# Points

values = st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True)


@given(
    product=st.dictionaries(st.sampled_from("ab"), values),
    pairs=values,
    seeds=st.lists(st.integers(0, 9), max_size=3, unique=True),
)
def test_points_are_the_product_of_the_blocks(product: dict[str, list[int]], pairs: list[int], seeds: list[int]) -> None:
    spec = SweepSpec(sweep="s", product=product, zip={"c": pairs, "d": [v + 1 for v in pairs]}, seeds=tuple(seeds))
    found = expand(spec)
    expected = [
        {**dict(zip(product, chosen, strict=True)), "c": pair, "d": pair + 1, **({"seed": seed} if seeds else {})}
        for *chosen, pair, seed in itertools.product(*product.values(), pairs, seeds or [0])
    ]
    assert sorted(map(json.dumps, map(sorted, (p.items() for p in found)))) == sorted(
        map(json.dumps, map(sorted, (p.items() for p in expected)))
    )


@given(only=st.integers(0, 3), excluded=st.integers(0, 3))
def test_filters(only: int, excluded: int) -> None:
    grid = {"a": tuple(range(4)), "b": tuple(range(4))}
    spec = SweepSpec(sweep="s", product=grid, only=({"a": only},), exclude=({"b": excluded},))
    assert expand(spec) == [{"a": only, "b": b} for b in range(4) if b != excluded]


def test_explicit_points_come_once_each() -> None:
    spec = SweepSpec(sweep="s", points=({"a": 1}, {"a": 1}, {"b": 2}))
    assert expand(spec) == [{"a": 1}, {"b": 2}]


def test_a_sweep_without_axes_is_one_point() -> None:
    assert expand(SweepSpec(sweep="s")) == [{}]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"product": {"a": []}}, "has no points"),
        ({"product": {"a": [1]}, "exclude": [{"a": 1}]}, "has no points"),
        ({"zip": {"a": [1, 2], "b": [1]}}, "a has 2, b has 1"),
        ({"product": {"seed": [1]}, "seeds": [1]}, "'seed' varies in two places"),
        ({"product": {"train.lr": [1]}, "only": [{"train.l": 1}]}, "did you mean 'train.lr'?"),
        ({"prodct": {}}, "did you mean 'product'?"),
        ({"product": {"train.lr": [datetime.date(2026, 1, 2)]}}, "'train.lr': 2026-01-02 (date) is no value of a recipe"),
        ({"values": {"a": {"b": [b"x"]}}}, "'a': b'x' (bytes) is no value of a recipe"),
        ({"zip": {"a": [1.0, float("nan")]}}, "'a': nan (float) is no value of a recipe"),
        ({"points": [{"a": float("inf")}]}, "'a': inf (float) is no value of a recipe"),
        ({"sweep": ""}, "'' cannot name a file"),
        ({"sweep": "../../x"}, "'../../x' cannot name a file"),
        ({"sweep": "/x"}, "'/x' cannot name a file"),
        ({"sweep": ".."}, "'..' cannot name a file"),
    ],
)
def test_grids_that_cannot_be_meant(spec: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=r".") as caught:
        expand(SweepSpec.load({"sweep": "s", **spec}, "file"))
    assert message in str(caught.value)


def test_settings_in_order_and_axes_stay_axes() -> None:
    spec = SweepSpec(sweep="s", values={"a": 1}, product={"b": [True, "x"]})
    assert settings(spec, {"b": "x"}, ["c=3"]) == ["a=1", "c=3", 'b="x"']
    with pytest.raises(UserError, match="'b' is an axis"):
        settings(spec, {"b": "x"}, ["b=3"])


def test_files_that_are_no_sweeps(tmp_path: Path, repository: Path) -> None:
    (tmp_path / "broken.yaml").write_text("a: [")
    with pytest.raises(UserError, match="not YAML"):
        read_sweep(tmp_path / "broken.yaml")
    with pytest.raises(UserError, match="No such file"):
        read_sweep(tmp_path / "absent.yaml")
    with pytest.raises(UserError, match="is a table, not a sweep"):
        read_sweep(repository / "experiments" / "table1.yaml")


def test_points_share_the_stages_below_what_they_change(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text(
        "sweep: rates\ntable: table1\nscale: smoke\nrows: [pagoda-8]\nproduct: {distill.train.lr: [1.0e-4, 1.0e-3, 1.0e-2]}\n"
    )
    assert cli.main(["sweep", str(path), "--dry-run", "--store", str(tmp_path / "store")]) == 0
    out, err = capsys.readouterr()
    # shared: features, teacher, pairs, reference; for each point: a distillation and a score
    assert err == "rates: 3 points, 3 rows, 10 stages, 10 to make\n"
    assert "distill.train.lr=0.001" in out
    assert cli.main(["sweep", str(path), "--max-jobs", "9", "--store", str(tmp_path / "store")]) == 2
    assert "this is 10 jobs, more than --max-jobs 9" in capsys.readouterr().err


def test_training_seeds_share_the_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("sweep: seeds\ntable: table1\nscale: smoke\nrows: [pagoda-8]\nseeds: [0, 1, 2]\n")
    assert cli.main(["sweep", str(path), "--dry-run", "--store", str(tmp_path / "store")]) == 0
    # shared: features, reference; for each seed: teacher, pairs, a distillation and a score
    assert capsys.readouterr().err == "seeds: 3 points, 3 rows, 14 stages, 14 to make\n"


@pytest.mark.parametrize("name", ["rates", "seeds"])  # the help of the command names them
def test_the_sweeps_that_come_with_it(name: str, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = repository / "experiments" / "sweeps" / f"{name}.yaml"
    assert cli.main(["sweep", str(file), "--dry-run", "--store", str(tmp_path / "store")]) == 0
    assert capsys.readouterr().err.startswith(f"{name}: ")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sweep: s\nrows: [pagodas]\nscale: smoke", "unknown row 'pagodas'; did you mean 'pagoda'?"),
        ("sweep: s\nscale: smok", "unknown scale 'smok'"),
        ("sweep: s\nscale: smoke\nstages: {real: {gpus: 1}}", "sweep: stages: unknown kind of stage 'real'"),
        ("sweep: s\nscale: smoke\nstages: {edm: {gpu: 1}}", "did you mean 'gpus'"),
        ("sweep: s\nscale: smoke\nproduct: {seed: [2026-01-02]}", "'seed': 2026-01-02 (date) is no value of a recipe"),
        ("sweep: s\ntable: tabel1", "unknown table 'tabel1'"),
        ("sweep: s\nscale: smoke\nproduct: {techer.train.steps: [1]}", "unknown key 'techer'"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    (tmp_path / "s.yaml").write_text(text)
    assert cli.main(["sweep", str(tmp_path / "s.yaml"), "--dry-run"]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_values_of_a_cluster_are_placed_by_who_collects_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sweep.yaml"
    path.write_text("sweep: s\nscale: smoke\nrows: [real-8]\n")
    assert cli.main(["sweep", str(path), "--executor", "slurm", "--out", "x", "--store", str(tmp_path / "store")]) == 2
    assert "'pagoda-bench collect SWEEP --out DIR' writes the result" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["status"], "no sweep in"),
        (["cluster", "chekc"], "did you mean 'check'"),
        (["reproduce", "table1", "--jobs", "2"], "--jobs is for --executor local"),
        (["reproduce", "table1", "--executor", "local", "--jobs", "0"], "at least one process"),
        (["reproduce", "table1", "--cluster", "x"], "--cluster is for --executor slurm"),
    ],
)
def test_command_line_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    monkeypatch.setenv("PAGODA_BENCH_STORE", str(tmp_path))
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


# The folder


def test_levels_and_needs(tmp_path: Path) -> None:
    low, side = Toy(seed=1), Toy(seed=2)
    middle = ToySum(parts=(low,))
    top = ToySum(parts=(middle, side))
    tasks = {t.key: t for t in tasks_of(Plan([top], Store(tmp_path)))}
    assert [tasks[r.key].level for r in (low, side, middle, top)] == [0, 0, 1, 2]
    assert set(tasks[top.key].needs) == {middle.key, side.key}


def test_finding_sweeps(tmp_path: Path) -> None:
    store = Store(tmp_path)
    first = Sweep.create(Plan([Toy(seed=1)], store), "one two", executor="slurm", data={})
    second = Sweep.create(Plan([Toy(seed=2)], store), "other", executor="slurm", data={})
    assert first.name.startswith("one-two-")
    assert find_sweep(store, None).name == second.name
    assert find_sweep(store, "one").name == first.name
    with pytest.raises(UserError, match="means 2 sweeps"):
        find_sweep(store, "o")
    with pytest.raises(UserError, match="unknown sweep 'x'"):
        find_sweep(store, "x")
    assert first.recipe(Toy(seed=1).key) == Toy(seed=1)


def test_a_sweep_whose_stages_cannot_be_read_is_no_sweep_of_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = Sweep.create(Plan([Toy()], Store(tmp_path)), "s", executor="local", data={})
    (sweep.folder / "tasks.json").write_text('[{"key": ')
    for verb in ("status", "resume", "cancel"):
        assert cli.main([verb, "s", "--store", str(tmp_path)]) == 2
        assert "holds no readable tasks.json: remove that folder" in capsys.readouterr().err


def test_events_survive_a_line_that_was_cut(tmp_path: Path) -> None:
    sweep = Sweep.create(Plan([Toy()], Store(tmp_path)), "s", executor="slurm", data={})
    sweep.event("k", "start", job="1")
    path = sweep.folder / "events" / "k.jsonl"
    path.write_text(path.read_text() + '{"event": "en')
    assert [e["event"] for e in sweep.events("k")] == ["start"]


# Snapshots


def test_a_snapshot_holds_the_tree_as_it_stands(tmp_path: Path) -> None:
    root, area = tmp_path / "checkout", tmp_path / "area"
    package = root / "pagoda_bench"
    package.mkdir(parents=True)
    (package / "kept.py").write_text("one\n")
    (package / "gone.py").write_text("two\n")
    (root / ".gitignore").write_text("*.log\n")
    (root / "results").mkdir()
    git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)
    clean = freeze(area, root)
    assert clean["dirty"] is False
    (package / "kept.py").write_text("changed\n")
    (package / "gone.py").unlink()
    (package / "new.py").write_text("new\n")
    (package / "x.log").write_text("ignored\n")
    about = freeze(area, root)
    folder = Path(about["path"])
    assert sorted(p.name for p in (folder / "pagoda_bench").iterdir()) == ["kept.py", "new.py"]
    assert (folder / "pagoda_bench" / "kept.py").read_text() == "changed\n"
    assert (folder / "results").resolve() == root / "results"
    assert "+changed" in (folder / DIFF).read_text()
    assert (about["dirty"], about["revision"]) == (True, clean["revision"])
    assert about["digest"] != clean["digest"]
    (package / "kept.py").write_text("later\n")
    assert (folder / "pagoda_bench" / "kept.py").read_text() == "changed\n"  # what queued jobs run
    assert json.loads((folder / MARK).read_text())["digest"] == about["digest"]
    assert freeze(area, folder)["path"] == str(folder)  # a submission from a snapshot uses that one
    (package / "kept.py").write_text("changed\n")
    assert freeze(area, root)["path"] == str(folder)  # the same code is kept once


@pytest.mark.parametrize("gone", [False, True])
def test_a_file_that_changes_while_the_snapshot_is_taken(gone: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder would be named by what the file held before, and later submissions of that code would run the other."""
    root, area, copy = tmp_path / "checkout", tmp_path / "area", shutil.copy2
    (root / "pagoda_bench").mkdir(parents=True)
    file = root / "pagoda_bench" / "a.py"
    file.write_text("one\n")
    git = ["git", "-C", str(root), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "first"]):
        subprocess.run([*git, *command], check=True)

    def meanwhile(source: Path, target: Path) -> None:
        file.unlink() if gone else file.write_text("two\n")
        copy(source, target)

    monkeypatch.setattr("shutil.copy2", meanwhile)
    with pytest.raises(UserError, match="changed while the snapshot for the jobs was taken: submit again"):
        freeze(area, root)
    monkeypatch.undo()
    file.write_text("one\n")
    assert (Path(freeze(area, root)["path"]) / "pagoda_bench" / "a.py").read_text() == "one\n"
    assert len(list((area / ".code").iterdir())) == 1


def test_an_installed_version_needs_no_snapshot(tmp_path: Path) -> None:
    assert freeze(tmp_path / "area", tmp_path)["path"] is None
    assert not (tmp_path / "area").exists()


# Hours


def test_gpu_hours_by_system_count_all_that_a_row_needs(tmp_path: Path) -> None:
    asked = {"table": "table1", "scale": "smoke", "full": False, "sets": []}
    table = table_of(read_table("table1"), "smoke", False, (), {})
    store = Store(tmp_path)
    sweep = Sweep.create(Plan(table.scores, store), "hours", executor="slurm", data={}, collect=asked)
    for key in sweep.tasks:
        sweep.event(key, "start", job="1", gpus=2, host="n")
        sweep.event(key, "end", job="1", cause="failed", code=1, seconds=1800.0, line="")
    expected: dict[str, set[str]] = {}
    for row in table.rows:
        expected.setdefault(row.system, set()).update(recipe.key for score in row.scores for recipe in walk(score))
    found = overview(sweep, store)
    assert by_system(sweep, found) == {system: len(keys) for system, keys in expected.items()}  # an hour for each stage
    assert sum(found.gpu_hours.values()) == len(sweep.tasks)
