"""Sweeps of this machine from the command line: whether they live, how they are cancelled, and what goes on with them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from toy_site import toy_environment
from toy_stages import Toy, ToySum, make

from pagoda_bench.artifacts.checkpoint import write_json
from pagoda_bench.artifacts.store import Store
from pagoda_bench.cli import main as cli
from pagoda_bench.plan.dag import Plan
from pagoda_bench.plan.inline import run_plan
from pagoda_bench.plan.local import run_local
from pagoda_bench.plan.processes import started
from pagoda_bench.plan.requests import Retries
from pagoda_bench.plan.sweeps import Sweep, find_sweep
from pagoda_bench.plan.watch import overview


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    for name, value in toy_environment(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PAGODA_BENCH_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("pagoda_bench.resources.released_roots", list)
    return Store(tmp_path / "store")


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """One that has nothing to do with any sweep."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield child
    child.kill()
    child.wait()


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    out, err = capsys.readouterr()
    return code, out, err


# Whether it lives


def test_when_a_process_began_tells_it_from_others(process: subprocess.Popen[bytes], tmp_path: Path) -> None:
    assert started(os.getpid()) == started(os.getpid())
    assert started(process.pid) not in (None, started(os.getpid()))
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert started(process.pid) is None  # it has ended, though its number is still taken
    process.wait()
    assert started(process.pid) is None


@pytest.mark.skipif(shutil.which("ps") is None, reason="there is no ps")
def test_when_a_process_began_without_proc(
    process: subprocess.Popen[bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pagoda_bench.plan.processes.PROC", tmp_path)
    assert started(process.pid)
    process.kill()
    process.wait()
    assert started(process.pid) is None


def test_a_process_that_has_the_number_of_a_dead_sweep_is_let_be(
    store: Store, capsys: pytest.CaptureFixture[str], process: subprocess.Popen[bytes]
) -> None:
    sweep = Sweep.create(Plan([Toy()], store), "here", executor="local", data={}, started=started(os.getpid()))
    assert overview(sweep, store).counts["pending"] == 1
    write_json(sweep.folder / "sweep.json", {**sweep.about, "pid": process.pid})
    sweep.event(Toy().key, "start", job=f"pid {process.pid}", gpus=0)
    assert run(capsys, "cancel", "here") == (0, "0 stages cancelled\n", "")
    assert process.poll() is None
    code, out, _ = run(capsys, "status", "here")
    assert code == 1
    assert "lost: its process or its node ended" in out
    # The process itself is told.
    write_json(sweep.folder / "sweep.json", {**sweep.about, "pid": process.pid, "started": started(process.pid)})
    assert run(capsys, "cancel", "here") == (0, "1 stages cancelled\n", "")
    assert process.wait(30) < 0


# What goes on


@pytest.mark.parametrize("part", [False, True])
def test_a_retraining_goes_on_under_its_own_name(
    store: Store, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: bool
) -> None:
    """It is interrupted twice, the second time when one of its targets is there already: that one is not made again."""
    low, fine = Toy(seed=1), Toy(seed=2)
    top = ToySum(parts=(low,))
    run_plan(Plan([top, fine], store))
    log, killed = tmp_path / "steps", tmp_path / "killed"
    monkeypatch.setenv("TOY_STEPS_LOG", str(log))
    monkeypatch.setenv("TOY_KILLED", str(killed))
    for step, lacking in (("3", 3), ("1", 2)):
        monkeypatch.setenv("TOY_KILL_AT", step)
        killed.unlink(missing_ok=True)
        plan = Plan([top, fine], store, retrain=True)
        assert len(plan.to_make) == lacking
        assert set(run_local(plan, retries=Retries(killed=0), name="anew").failures) == {low.key, top.key}
    sweep = find_sweep(store, None)
    write_json(sweep.folder / "sweep.json", {**sweep.about, "started": "before"})  # the process that ran it, this one, is gone
    code, _, err = run(capsys, "resume", sweep.name, *([f"toy/{low.key}"] if part else []))
    assert code == 0, err
    assert {find_sweep(store, None).about["session"], plan.session} == {sweep.about["session"]}
    assert {store.find(r).provenance["session"] for r in (low, top, fine)} == {plan.session}
    assert log.stat().st_size == 5 + 5 + 2  # every step once, and the two that were lost
    assert list((store.root / ".retrain").iterdir()) == []


@pytest.mark.parametrize(
    ("executor", "arguments", "message"),
    [("slurm", ("--jobs", "2"), "--jobs is for local sweeps"), ("local", ("--cluster", "x"), "--cluster is for sweeps on a")],
)
def test_resume_refuses_what_it_would_ignore(
    store: Store, capsys: pytest.CaptureFixture[str], executor: str, arguments: tuple[str, str], message: str
) -> None:
    Sweep.create(Plan([Toy()], store), "s", executor=executor, data={}, cluster={})
    code, _, err = run(capsys, "resume", "s", *arguments)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


def test_the_mark_of_a_retraining_stays_until_all_of_it_is_made(store: Store) -> None:
    one, other = Toy(seed=1), Toy(seed=2)
    whole = Plan([one, other], store, retrain=True)
    whole.begin()
    whole.end()
    for recipe, left in ((one, 1), (other, 0)):
        run_plan(Plan([recipe], store, session=whole.session, asked=whole.asked))
        assert len(list((store.root / ".retrain").iterdir())) == left
    anew = Plan([one, other], store, retrain=True)
    anew.begin()
    assert anew.session != whole.session
    make(one, store)
    old = Plan([other], store, session=whole.session, asked=whole.asked)
    old.begin()
    assert old.session == whole.session
    old.end()
    assert Plan([one, other], store, retrain=True).session == anew.session  # a mark of another session is not touched


# What cannot be read


@pytest.mark.parametrize("text", ["", '{"name": "lost"', "[]", "{}"])
def test_a_sweep_that_cannot_be_read_is_named_and_passed_over(
    store: Store, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    sweep = Sweep.create(Plan([Toy()], store), "whole", executor="local", data={}, started=None)
    lost = Sweep.create(Plan([Toy()], store), "lost", executor="slurm", data={})  # the newest
    (lost.folder / "sweep.json").write_text(text)
    for arguments in (["status", "--all"], ["status"], ["status", "whole"]):
        _, out, err = run(capsys, *arguments)
        assert out.startswith(sweep.name)
        assert err == f"pagoda-bench: passed over, since there is no readable sweep.json: {lost.name} in {lost.folder.parent}\n"
    code, _, err = run(capsys, "status", "lost")
    assert code == 2
    assert "unknown sweep 'lost'" in err.splitlines()[-1]
