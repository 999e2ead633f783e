"""The `reproduce` command, with stages that only pretend."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pagoda_bench import resources
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.cli.main import main
from pagoda_bench.errors import UserError
from pagoda_bench.metrics.protocol import Protocol
from pagoda_bench.plan import inline
from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.scores import Score
from pagoda_bench.tables import report, verdict
from pagoda_bench.tables.cells import from_csv

WORK = {
    "features": 100.0,
    "edm": 1000.0,
    "pairs": 10.0,
    "distill": 200.0,
    "grow": 300.0,
    "reference": 0.0,
    "score": 0.0,
    "work": 0.0,
}


def pretend(recipe: Recipe, ctx: StageContext) -> None:
    ctx.record(training_flops=WORK[recipe.kind])
    if not isinstance(recipe, Score):
        (ctx.out / "weights.txt").write_text(recipe.key, encoding="ascii")
        return
    real = recipe.generator.kind == "real"
    fd = 0.1 if real else 0.5 + (int(recipe.key[:4], 16) % 100) / 1000
    scores = {"fd": fd, "precision": 0.5, "recall": 0.25, "is": 7.0, "nfe": 0 if real else 1, "parameters": 0 if real else 1234}
    protocol = Protocol(
        extractor="pretended", weights="f" * 64, resize="none", resolution=recipe.generator.resolution,
        reference=recipe.reference.key, reference_n=recipe.reference.n, n=recipe.n, labels="balanced", rounding="to nearest",
        frechet="eigenvalues", k=3, rim="<=", splits=10,
    )  # fmt: skip
    (ctx.out / "score.json").write_text(json.dumps({"scores": scores, "protocol": protocol.to_dict()}), encoding="ascii")
    side = recipe.generator.resolution
    Image.fromarray(np.full((5 * side, 10 * side, 3), 90, np.uint8)).save(ctx.out / "samples.png")
    ctx.record(images_per_second=50.0)


@pytest.fixture
def command(whole_command: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """The command without figures, which take most of its time."""
    monkeypatch.setattr(report, "_figures", lambda _report: {})
    return whole_command


@pytest.fixture
def whole_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setattr(inline, "load_runner", lambda _recipe: pretend)
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        return main(["reproduce", "table1", "--scale", "smoke", "--store", str(tmp_path / "store"), *arguments])

    return run


FILES = {
    f"table1-{name}.{kind}" for name in ("fd-vs-resolution", "fd-vs-work", "samples") for kind in ("png", "svg")
} | {f"table1.{kind}" for kind in ("csv", "md", "tex", "provenance.json")}  # fmt: skip


def test_the_command_writes_every_file_and_a_second_run_writes_the_same(
    whole_command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert whole_command("--out", "made") == 0
    out = tmp_path / "made" / "smoke"
    assert {path.name for path in out.iterdir()} == FILES
    printed = capsys.readouterr().out
    assert "PaGoDA base, bicubic" in printed
    assert "not comparable" in printed
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert whole_command("--out", "made") == 0
    for path in out.iterdir():
        if path.name != "table1.provenance.json":
            assert path.read_bytes() == first[path.name], path.name
    cells = from_csv((out / "table1.csv").read_text(encoding="utf-8"), "table1.csv")
    by_id = {(c.id, c.metric): c for c in cells}
    top = by_id["pagoda-16", "fd"]
    assert top.training_flops == 1000 + 10 + 200 + 300
    assert by_id["edm-16", "fd"].training_flops == 1000
    assert by_id["real-16", "fd"].training_flops == 0
    assert by_id["bicubic-16", "fd"].training_flops == 1000 + 10 + 200
    assert top.value is not None
    assert by_id["pagoda-16", "fd_over_floor"].value == pytest.approx(top.value / 0.1)
    assert by_id["real-16", "fd_over_floor"].value == 1
    assert (top.images_per_second, top.parameters, top.nfe, top.stderr) == (50.0, 1234, 1.0, None)
    assert top.protocol["frechet"] == "eigenvalues"
    assert "frechet" not in by_id["pagoda-16", "recall"].protocol or not by_id["pagoda-16", "recall"].protocol["frechet"]
    assert by_id["real-16", "fd"].weights == ""
    assert top.weights != by_id["pagoda-8", "fd"].weights
    about = json.loads((out / "table1.provenance.json").read_text(encoding="utf-8"))
    assert about["scale"]["name"] == "smoke"
    assert set(about["files"]) == FILES - {"table1.provenance.json"}
    assert len(about["artifacts"]) >= 8


def test_full_has_blocks_and_errors_and_files_of_its_own(command: Callable[..., int], tmp_path: Path) -> None:
    assert command("--full") == 0
    cells = from_csv((tmp_path / "results/smoke/table1-full.csv").read_text(encoding="utf-8"), "x")
    top = next(c for c in cells if (c.id, c.metric) == ("pagoda-16", "fd"))
    assert (top.blocks, len(top.scores.split())) == (2, 2)
    assert top.std is not None
    assert top.stderr == pytest.approx(top.std / 2**0.5)
    assert top.value == pytest.approx(((top.min or 0) + (top.max or 0)) / 2)


def test_a_stage_that_fails_leaves_its_rows_visible_and_the_exit_code_one(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(recipe: Recipe, ctx: StageContext) -> None:
        if recipe.kind == "grow":
            raise UserError("the discriminator ran away")
        pretend(recipe, ctx)

    monkeypatch.setattr(inline, "load_runner", lambda _recipe: fail)
    assert command() == 1
    cells = from_csv((tmp_path / "results/smoke/table1.csv").read_text(encoding="utf-8"), "x")
    status = {c.id: c.status for c in cells}
    assert status["pagoda-8"] == "measured"
    assert status["pagoda-16"] == "not made: grow 16px failed: the discriminator ran away"
    assert status["edm-16"] == "measured"  # its work is counted without the chain
    monkeypatch.setattr(inline, "load_runner", lambda _recipe: pretend)
    assert command() == 0


def test_committed_values_are_compared_with_and_not_written_over(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command() == 0  # not the package's own results folder: written there
    real = resources.folder
    monkeypatch.setattr(resources, "folder", lambda name: tmp_path / "results" if name == "results" else real(name))
    committed = (tmp_path / "results/smoke/table1.csv").read_bytes()
    capsys.readouterr()
    assert command("--set", "score.neighbours=3") == 0
    printed = capsys.readouterr()
    assert "writing to out/" in printed.err
    assert ", same" in printed.out
    assert (tmp_path / "out/smoke/table1.csv").is_file()
    assert main(["reproduce", "table1", "--scale", "smoke", "--out", "results"]) == 2
    assert "--publish" in capsys.readouterr().err
    assert (tmp_path / "results/smoke/table1.csv").read_bytes() == committed
    verdicts = json.loads((tmp_path / "out/smoke/table1.provenance.json").read_text(encoding="utf-8"))["verdicts"]
    assert {v["verdict"] for v in verdicts} == {verdict.SAME}
    assert command("--publish") == 0  # what is published is not held against what it replaces
    assert ", same" not in (tmp_path / "results/smoke/table1.md").read_text(encoding="utf-8")


def test_rows_that_are_published_leave_the_committed_others_in_the_table(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = resources.folder
    monkeypatch.setattr(resources, "folder", lambda name: tmp_path / "results" if name == "results" else real(name))
    folder = tmp_path / "results/smoke"

    def published() -> dict[str, str]:
        """Each line of the committed table by its row and metric."""
        lines = (folder / "table1.csv").read_text(encoding="utf-8").splitlines()[1:]
        return {",".join(line.split(",")[2:7]): line for line in lines}

    assert command("--publish", "--rows", "real,pagoda-8") == 0  # the first to be committed
    committed, before = (folder / "table1.csv").read_bytes(), published()
    capsys.readouterr()
    for arguments, says in (
        (["--set", "score.neighbours=4"], "--publish is for the scale as its file has it"),
        (["--executor", "slurm"], "--publish: with --executor slurm nothing is written yet"),
    ):
        assert command("--publish", *arguments) == 2
        err = capsys.readouterr().err
        assert says in err
        assert err.count("\n") == 1
    assert (folder / "table1.csv").read_bytes() == committed
    assert command("--publish", "--rows", "real", "--out", "apart") == 0  # replaces nothing that is committed
    assert (folder / "table1.csv").read_bytes() == committed
    assert command("--publish", "--rows", "pagoda-16") == 0
    cells = from_csv((folder / "table1.csv").read_text(encoding="utf-8"), "x")
    assert list(dict.fromkeys(c.id for c in cells)) == ["pagoda-8", "pagoda-16", "real-8", "real-16"]  # in the table's order
    assert before.items() < published().items()
    floor, own = (next(c.value for c in cells if (c.id, c.metric) == (row, "fd")) for row in ("real-16", "pagoda-16"))
    assert floor
    assert own
    assert [c.value for c in cells if (c.id, c.metric) == ("pagoda-16", "fd_over_floor")] == [own / floor]  # of what was there
    assert "PaGoDA" in (folder / "table1.md").read_text(encoding="utf-8")
    about = json.loads((folder / "table1.provenance.json").read_text(encoding="utf-8"))
    assert about["kept"]["rows"] == ["pagoda-8", "real-16", "real-8"]
    assert about["kept"]["from"]["written"] < about["written"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["tabel1"], "did you mean 'table1'"),
        (["table1", "--scale", "smok"], "did you mean 'smoke'"),
        (["table1", "--executor", "inlin"], "did you mean 'inline'"),
        (["table1", "--scale", "cifar10"], "--data PATH"),
        (["table1", "--data", "."], "makes its own images"),
        (["table1", "--data", "nowhere"], "no such file"),
        (
            ["table1", "--scale", "cifar10", "--data", "/", "--set", "data.master=x"],
            "data.master: write the side of the images",
        ),
        (["table1", "--set", "teacher.train.stepz=1"], "did you mean 'steps'"),
        (["table1", "--executor", "slurm", "--out", "x"], "'pagoda-bench collect SWEEP --out DIR' writes the result"),
    ],
)
def test_what_a_user_may_get_wrong(
    arguments: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["reproduce", *arguments, "--store", "store"]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_a_dry_run_shows_the_plan_and_makes_nothing(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("--dry-run") == 0
    assert "to make" in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_a_cached_run_is_quick_and_never_imports_torch(command: Callable[..., int], tmp_path: Path) -> None:
    assert command() == 0
    script = (
        "import sys; from pagoda_bench.cli.main import main\n"
        f"code = main(['reproduce', 'table1', '--scale', 'smoke', '--store', {str(tmp_path / 'store')!r}])\n"
        "sys.exit(code or (3 if 'torch' in sys.modules else 0))"
    )
    root = Path(resources.__file__).resolve().parents[1]
    # Compiled modules are kept, as for any user; the first of the two runs compiles them.
    environment = {**os.environ, "PYTHONPATH": str(root), "PYTHONPYCACHEPREFIX": str(tmp_path / "compiled")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    run = partial(subprocess.run, [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    run(check=False)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run(check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert seconds < 5  # of processor time, so that a busy machine does not count
