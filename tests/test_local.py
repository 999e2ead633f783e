"""The local launcher: what runs side by side, what fails along with what, retries, and a clean stop."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_site import toy_environment
from toy_stages import Toy, ToyFailing, ToySum, ToyTrain

from pagoda_bench.artifacts.store import Store
from pagoda_bench.plan.attempts import DONE, STOPPED, attempt, explain
from pagoda_bench.plan.dag import Plan
from pagoda_bench.plan.inline import run_plan
from pagoda_bench.plan.local import run_local
from pagoda_bench.plan.requests import Retries
from pagoda_bench.plan.sweeps import find_sweep


@pytest.fixture(autouse=True)
def toys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in toy_environment(tmp_path).items():
        monkeypatch.setenv(name, value)


def diamond(pause: float = 0.0) -> ToySum:
    left, right = (Toy(seed=seed, pause=pause) for seed in (1, 2))
    return ToySum(parts=(ToySum(parts=(left, right)), ToySum(parts=(right,))))


def test_it_makes_the_same_bytes_as_inline(tmp_path: Path) -> None:
    inline, local = Store(tmp_path / "inline"), Store(tmp_path / "local")
    expected = run_plan(Plan([diamond()], inline)).artifacts
    outcome = run_local(Plan([diamond()], local), jobs=2)
    assert not outcome.failures
    assert {key: a.digest for key, a in outcome.artifacts.items()} == {key: a.digest for key, a in expected.items()}
    assert not Plan([diamond()], local).to_make


def test_a_failure_takes_along_only_what_needs_it(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    failing, fine = ToyFailing(), Toy(seed=5)
    above = ToySum(parts=(failing, fine))
    outcome = run_local(Plan([above, fine], store), jobs=2)
    assert set(outcome.artifacts) == {fine.key}
    assert outcome.failures[failing.key].startswith("refused: it was meant to fail")
    assert "which failed" in outcome.failures[above.key]


def test_a_user_without_a_name_has_a_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(number: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {number}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", unknown)
    store = Store(tmp_path / "store")
    assert not run_local(Plan([Toy()], store)).failures
    assert find_sweep(store, None).about["user"] == str(os.getuid())


def test_a_killed_process_goes_on_from_its_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log, recipe = tmp_path / "steps", Toy(seed=1, train=ToyTrain(steps=6))
    monkeypatch.setenv("TOY_STEPS_LOG", str(log))
    monkeypatch.setenv("TOY_KILL_AT", "3")  # the first attempt kills itself, hard, in its third step
    monkeypatch.setenv("TOY_KILLED", str(tmp_path / "killed"))
    store = Store(tmp_path / "store")
    outcome = run_local(Plan([recipe], store))
    assert not outcome.failures
    assert log.stat().st_size == 6 + 1  # every step once, and the one that was lost
    causes = [e["cause"] for e in find_sweep(store, None).events(recipe.key) if e["event"] == "end"]
    assert causes == ["killed", DONE]


def test_retries_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_KILL_AT", "1")
    store, recipe = Store(tmp_path / "store"), Toy(seed=1)
    outcome = run_local(Plan([recipe], store), retries=Retries(killed=1))
    assert "killed: ended by SIGKILL" in outcome.failures[recipe.key]
    assert len(find_sweep(store, None).events(recipe.key)) == 4


def test_gpus_are_dealt_out_and_threads_divided(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = [Toy(seed=seed, pause=0.1) for seed in range(4)]
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TOY_TELL", str(tmp_path))
    run_local(Plan(recipes, Store(tmp_path / "store")), jobs=2, gpus=("4", "7"))
    told = [json.loads(path.read_text()) for path in tmp_path.glob("told-*.json")]
    assert len(told) == 4
    assert {t["CUDA_VISIBLE_DEVICES"] for t in told} == {"4", "7"}
    assert {t["OMP_NUM_THREADS"] for t in told} == {str(max(1, len(os.sched_getaffinity(0)) // 2))}


def test_ctrl_c_stops_the_processes_and_keeps_their_work(tmp_path: Path) -> None:
    program = (
        "import signal, sys; from pathlib import Path; from toy_stages import *; from pagoda_bench.plan.dag import Plan\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell starts background jobs with it ignored
        "from pagoda_bench.plan.local import run_local\n"
        "run_local(Plan([Toy(seed=s, pause=0.1, train=ToyTrain(steps=300)) for s in (1, 2)], Store(Path(sys.argv[1]))), jobs=2)"
    )
    root = tmp_path / "store"
    process = subprocess.Popen([sys.executable, "-c", program, str(root)], stderr=subprocess.PIPE, text=True)
    states = [root / ".work" / f"toy-{Toy(seed=s, train=ToyTrain(steps=300)).key}" / "state.json" for s in (1, 2)]
    deadline = time.monotonic() + 60
    while not all(path.is_file() for path in states):
        assert time.monotonic() < deadline, "the stages did not start"
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode != 0, said
    ends = [e for s in (1, 2) for e in find_sweep(Store(root), None).events(Toy(seed=s, train=ToyTrain(steps=300)).key)]
    assert [e["cause"] for e in ends if e["event"] == "end"] == [STOPPED, STOPPED]
    assert all(0 < json.loads(path.read_text())[0] < 300 for path in states)


def test_a_process_that_ignores_the_stop_is_killed(tmp_path: Path) -> None:
    program = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('on', flush=True); time.sleep(60)"
    log = tmp_path / "log"
    end = attempt(
        [sys.executable, "-c", program],
        log,
        os.environ,
        stop=lambda: log.is_file() and log.stat().st_size > 0,
        grace=0.3,
    )
    assert (end.cause, end.code) == (STOPPED, -signal.SIGKILL)
    assert end.seconds < 30


@pytest.mark.parametrize(
    ("text", "code", "cause"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", 1, "out of memory"),
        ("RuntimeError: CUDA error: an illegal memory access was encountered", 1, "CUDA error"),
        (
            "pagoda-bench: error: grow 16px (grow/ab) needs edm 8px (edm/cd), which is not made yet: x",
            2,
            "input missing",
        ),
        ("pagoda-bench: error: the images with digest ab are needed: say where they are with --data PATH", 2, "data missing"),
        ("pagoda-bench: error: the disk that holds x is full while making y", 2, "disk full"),
        ("pagoda-bench: error: something else", 2, "refused"),
        ("Traceback\nValueError: no", 1, "failed"),
        ("", -9, "killed"),
        ("", 1, "failed"),
    ],
)
def test_causes(text: str, code: int, cause: str) -> None:
    assert explain(text, code)[0] == cause
