"""The command line: instant help, one line for each error, exit codes, and the care of the store."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import click
import pytest
from toy_stages import Toy, ToySum, make

from pagoda_bench import __version__
from pagoda_bench.artifacts.store import Store
from pagoda_bench.cli import main as cli
from pagoda_bench.cli.common import bytes_text, data_places
from pagoda_bench.errors import UserError

REPOSITORY = Path(__file__).parents[1]
PYTHONPATH = os.pathsep.join([str(REPOSITORY), str(Path(__file__).parent)])
ENVIRONMENT = {**os.environ, "PYTHONPATH": PYTHONPATH}


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PAGODA_BENCH_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("pagoda_bench.resources.released_roots", list)
    return Store(tmp_path / "store")


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


# Help


def test_help_imports_nothing_heavy() -> None:
    program = (
        "import sys; from pagoda_bench.cli.main import main; main(['--help'])\n"
        "heavy = {'torch', 'numpy', 'pydantic', 'rich', 'yaml', 'scipy', 'PIL', 'matplotlib', 'filelock'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENVIRONMENT, check=True)
    assert done.stdout.endswith("HEAVY []\n")
    assert "artifacts" in done.stdout


@pytest.mark.parametrize("arguments", [(), ("artifacts",)])
def test_no_command_shows_help(capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, err) == (0, "")
    assert out.startswith("Usage: pagoda-bench")


def commands() -> list[tuple[str, ...]]:
    below = ("ls", "show", "verify", "export", "times", "gc")
    return [(), ("artifacts",), ("run-stage",), *(("artifacts", name) for name in below)]


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_every_command_has_help_with_examples(capsys: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    code, out, _ = run(capsys, *command, "--help")
    assert code == 0
    assert f"pagoda-bench {' '.join(command)}".strip() in out.partition("Examples:")[2]


def test_every_verb_is_there() -> None:
    context = click.Context(cli.cli)
    for name in cli.cli.list_commands(context):
        command = cli.cli.get_command(context, name)
        assert command is not None
        assert command.epilog, f"{name} has no examples"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "--version") == (0, f"pagoda-bench {__version__}\n", "")


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["artefacts"], "unknown command 'artefacts'; did you mean 'artifacts'?"),
        (["artifacts", "lss"], "unknown command 'lss'; did you mean 'ls'?"),
        (["artifacts", "ls", "--jsn"], "No such option"),
        (["artifacts", "show", "abc"], "no artifact 'abc'"),
        (["artifacts", "ls", "gorw"], "no artifact of kind 'gorw'"),
        (["run-stage"], "Missing argument 'RECIPE.json'"),
        (["run-stage", "absent.json"], "cannot read the recipe absent.json: No such file or directory"),
        (["run-stage", "absent.json", "--data", "nowhere"], "--data nowhere: no such file or folder"),
        (["run-stage", "absent.json", "--data", ""], "--data: the name of the place is empty"),
        (["run-stage", "absent.json", "--data", "a" * 300], "aaa...: File name too long"),
        (["artifacts", "ls", "--store", ""], "Invalid value for '--store': the name of the folder is empty"),
        (["artifacts", "ls", "--store", "a" * 300], "aaa...: File name too long"),
        (["artifacts", "gc", "--older-than", "-1"], "--older-than"),
        (["reproduce", "table1", "--dry-run", "--rows", ""], "--rows: no name is given"),
        (["reproduce", "table1", "--dry-run", "--rows", " , "], "--rows: no name is given"),
    ],
)
def test_errors_are_one_line_and_exit_with_2(
    capsys: pytest.CaptureFixture[str], store: Store, arguments: list[str], message: str
) -> None:
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert err.startswith("pagoda-bench: error: ")
    assert message in err
    assert err.count("\n") == 1


def test_data_places(tmp_path: Path) -> None:
    digest = "a" * 64
    assert data_places([f"{digest}={tmp_path}", str(tmp_path)]) == {digest: tmp_path, "*": tmp_path}
    with pytest.raises(UserError, match="two places"):
        data_places([str(tmp_path), str(tmp_path)])


# The store


def test_ls_show_verify(capsys: pytest.CaptureFixture[str], store: Store) -> None:
    assert run(capsys, "artifacts", "ls") == (0, f"no artifacts in {store.root}\n", "")
    artifact = make(Toy(), store)
    make(ToySum(parts=(Toy(),)), store)
    code, out, _ = run(capsys, "artifacts", "ls")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["KIND", "toy", "toy-sum"]
    (row,) = json.loads(run(capsys, "artifacts", "ls", "toy", "--json")[1])
    assert (row["key"], row["where"], row["title"]) == (Toy().key, "local", "toy")
    assert row["bytes"] == artifact.size

    shown = json.loads(run(capsys, "artifacts", "show", f"toy/{Toy().key[:6]}", "--json")[1])
    assert shown["recipe"]["key"] == Toy().key
    assert shown["provenance"]["device"] == "toy"
    assert shown["files"]["state.txt"] == 64
    assert "training_flops" in run(capsys, "artifacts", "show", Toy().key)[1]
    assert "means 2 artifacts" in run(capsys, "artifacts", "show", "")[2]

    assert run(capsys, "artifacts", "verify")[0] == 0
    (artifact.path / "state.txt").write_text("damaged")
    code, out, _ = run(capsys, "artifacts", "verify")
    assert code == 1
    assert f"toy/{Toy().key}: DAMAGED: state.txt is not as it was made" in out
    assert artifact.path.is_dir()


@pytest.mark.parametrize("name", ["recipe.json", "provenance.json", "digests.json"])
def test_an_artifact_that_lacks_a_file_is_listed_as_damaged(
    capsys: pytest.CaptureFixture[str], store: Store, name: str
) -> None:
    make(Toy(seed=1), store)
    (make(Toy(), store).path / name).unlink()
    code, out, _ = run(capsys, "artifacts", "verify")
    assert code == 1
    assert f"toy/{Toy().key}: DAMAGED: {name} is missing" in out
    assert f"toy/{Toy(seed=1).key}: whole" in out
    assert f"(damaged: {name} is missing)" in run(capsys, "artifacts", "ls")[1]
    assert run(capsys, "artifacts", "times")[0] == 0
    code, out, _ = run(capsys, "artifacts", "gc", "--delete")
    assert f"damaged artifact ({name} is missing): toy/{Toy().key}" in out
    assert [a.key for a in store.artifacts()] == [Toy(seed=1).key]


def test_an_artifact_of_an_unknown_kind_is_listed(capsys: pytest.CaptureFixture[str], store: Store) -> None:
    path = make(Toy(), store).path / "recipe.json"
    path.write_text(path.read_text().replace('"toy"', '"gone"'))
    code, out, _ = run(capsys, "artifacts", "ls")
    assert code == 0
    assert "(recipe not known to this installation)" in out


def test_export(capsys: pytest.CaptureFixture[str], store: Store, tmp_path: Path) -> None:
    make(Toy(), store)
    code, out, _ = run(capsys, "artifacts", "export", Toy().key, "--to", str(tmp_path / "released"))
    assert code == 0
    assert out == f"{tmp_path}/released/toy/{Toy().key}\n"
    assert Store(tmp_path / "new", [tmp_path / "released"]).find(Toy()).released


def test_times_travel_with_a_released_store(capsys: pytest.CaptureFixture[str], store: Store, tmp_path: Path) -> None:
    make(Toy(), store)
    assert run(capsys, "artifacts", "times")[1].split()[:7] == ["KIND", "KEY", "TOOK", "FLOP", "WHAT", "toy", Toy().key]
    assert run(capsys, "artifacts", "times", "--to", str(tmp_path))[0] == 0
    noted = json.loads((tmp_path / "times.json").read_text())
    assert json.loads(run(capsys, "artifacts", "times", "--json")[1]) == noted
    # They join those of other stages that are there, named or not, and replace those of their own.
    for names in ([f"toy/{Toy().key}"], []):
        others = [{**noted[0], "key": "of another"}, {**noted[0], "seconds": 1e6}]
        (tmp_path / "times.json").write_text(json.dumps(others))
        assert run(capsys, "artifacts", "times", *names, "--to", str(tmp_path))[0] == 0
        found = {m["key"]: m["seconds"] for m in json.loads((tmp_path / "times.json").read_text())}
        assert found == {"of another": noted[0]["seconds"], Toy().key: noted[0]["seconds"]}


def test_times_go_to_a_new_folder_or_are_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], store: Store, tmp_path: Path
) -> None:
    make(Toy(), store)
    assert run(capsys, "artifacts", "times", "--to", str(tmp_path / "new" / "deep"))[0] == 0
    assert (tmp_path / "new" / "deep" / "times.json").is_file()
    (tmp_path / "file").touch()
    for options, says in (
        (["--to", str(tmp_path), "--json"], "--json prints, --to writes"),
        (["--to", str(tmp_path / "file" / "below")], "cannot write times.json there (Not a directory)"),
        (["--to", "/proc"], "cannot write times.json there"),
    ):
        code, out, err = run(capsys, "artifacts", "times", *options)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert says in err


def test_gc_only_says_what_would_go_unless_told(capsys: pytest.CaptureFixture[str], store: Store) -> None:
    wanted, other = make(Toy(), store), make(Toy(seed=1), store)
    arguments = ("artifacts", "gc", "--keep", str(wanted.path / "recipe.json"), "--older-than", "0")
    code, out, _ = run(capsys, *arguments)
    assert code == 0
    assert f"artifact that is not kept: toy/{other.key}" in out
    assert "run this again with --delete" in out
    assert other.path.is_dir()
    found = json.loads(run(capsys, *arguments, "--json", "--delete")[1])
    assert found["deleted"]
    assert found["bytes"] > 500
    assert wanted.path.is_dir()
    assert not other.path.exists()


@pytest.mark.parametrize(("count", "text"), [(0, "0 B"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (2e12, "2.0 TB")])
def test_bytes_text(count: float, text: str) -> None:
    assert bytes_text(count) == text


# A stage as a command

PROGRAM = "import sys, toy_stages; from pagoda_bench.cli.main import main; sys.exit(main(sys.argv[1:]))"


def test_run_stage(capsys: pytest.CaptureFixture[str], store: Store, tmp_path: Path) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(Toy(seed=5).to_dict()))
    code, out, err = run(capsys, "run-stage", str(path))
    assert (code, out) == (0, f"{store.find(Toy(seed=5)).path}\n")
    assert "made in" in err
    assert run(capsys, "run-stage", str(path)) == (0, out, "")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_says_so_in_one_line_and_goes_on(store: Store, tmp_path: Path, how: signal.Signals) -> None:
    path, slow = tmp_path / "recipe.json", Toy(seed=6, pause=10)
    path.write_text(json.dumps(slow.to_dict()))
    command = [sys.executable, "-c", PROGRAM, "run-stage", str(path)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, **os.environ, "PYTHONPATH": PYTHONPATH},
        # A runner that was started in the background hands down an ignored SIGINT.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while not (store.root / ".work" / f"toy-{slow.key}" / ".attempts.json").exists():
        assert time.monotonic() < deadline
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    time.sleep(0.1)
    process.send_signal(how)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out == ""
    lines = [line for line in err.splitlines() if line]
    assert lines == ["pagoda-bench: interrupted; the work so far is kept, and the same command goes on from there"]
    assert make(slow.model_copy(update={"pause": 0.0}), store).provenance["attempts"] == 2
