"""Plans: what is made, what is left out, what a retraining makes again, and what the user sees."""

from __future__ import annotations

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import toy_stages
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from toy_stages import STEPS_LOG, Toy, ToyFailing, ToySum, ToyTrain, interrupt, make

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.artifacts.gc import garbage
from pagoda_bench.artifacts.store import Store
from pagoda_bench.errors import UserError
from pagoda_bench.plan import progress
from pagoda_bench.plan.dag import Plan
from pagoda_bench.plan.estimate import Estimate, Estimator, Measure, measures, save_measures
from pagoda_bench.plan.inline import load_runner, run_plan, run_stage
from pagoda_bench.plan.progress import Lines, Rate, duration
from pagoda_bench.plan.tree import render_tree, summary
from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.work import Work

A, B = Toy(seed=1), Toy(seed=2)
LEFT, RIGHT = ToySum(parts=(A, B)), ToySum(parts=(B,))
TOP = ToySum(parts=(LEFT, RIGHT))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def lines() -> Lines:
    return Lines(io.StringIO())


@pytest.fixture
def steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    log = tmp_path / "steps.log"
    log.touch()
    monkeypatch.setattr("toy_stages.STEPS_LOG", [log])
    return log


def keys(recipes: list[Recipe]) -> list[str]:
    return [recipe.key for recipe in recipes]


def test_inputs_come_first_and_each_once(store: Store) -> None:
    plan = Plan([TOP, RIGHT, TOP], store)
    assert keys(plan.to_make) == keys([A, B, LEFT, RIGHT, TOP])
    assert keys(plan.targets) == keys([TOP, RIGHT])
    assert not store.root.exists()


def test_what_lies_upstream_of_what_is_there_is_left_out(store: Store, lines: Lines) -> None:
    run_plan(Plan([LEFT], store), report=lines)
    shutil.rmtree(store.find(A).path)
    plan = Plan([TOP], store)
    assert keys(plan.to_make) == keys([RIGHT, TOP])
    assert {plan.nodes[key].state for key in keys([LEFT, B])} == {"cached"}
    assert A.key not in plan.nodes


def test_running_makes_all_and_asking_again_is_free(store: Store, lines: Lines, steps: Path) -> None:
    outcome = run_plan(Plan([TOP], store), report=lines)
    assert outcome.failures == {}
    assert outcome.artifacts[TOP.key].recipe == TOP
    assert steps.stat().st_size == 10
    again = Plan([TOP], store)
    assert again.to_make == []
    assert run_plan(again, report=lines).artifacts == {TOP.key: store.find(TOP)}
    assert steps.stat().st_size == 10
    said = lines._stream.getvalue().splitlines()
    assert len(said) == 5
    assert said[0].startswith(f"[1/5] toy {A.key[:8]}: made in ")


def test_released_ones_are_used(store: Store, tmp_path: Path) -> None:
    make(A, store)
    store.export(store.find(A), tmp_path / "released")
    plan = Plan([RIGHT, A], Store(tmp_path / "other", [tmp_path / "released"]))
    assert [plan.nodes[key].state for key in keys([B, RIGHT, A])] == ["to make", "to make", "released"]


def test_a_failure_ends_the_run_or_is_collected(store: Store, lines: Lines) -> None:
    bad = ToySum(parts=(A, ToyFailing(parts=(B,))))
    with pytest.raises(UserError, match=r"^toy-failing \(toy-failing/.*\): it was meant to fail$"):
        run_plan(Plan([bad, RIGHT], store), report=lines)
    outcome = run_plan(Plan([bad, RIGHT], store), keep_going=True, report=lines)
    assert outcome.failures[ToyFailing(parts=(B,)).key] == "it was meant to fail"
    assert "it needs toy-failing" in outcome.failures[bad.key]
    assert "which failed" in outcome.failures[bad.key]
    assert outcome.artifacts.keys() == set(keys([A, B, RIGHT]))


# Retraining


def test_retraining_makes_all_once_and_keeps_the_old(store: Store, lines: Lines, steps: Path, tmp_path: Path) -> None:
    run_plan(Plan([TOP], store), report=lines)
    released = Store(tmp_path / "more", [store.root])
    plan = Plan([TOP], released, retrain=True)
    assert len(plan.to_make) == 5
    assert not released.root.exists()  # a plan alone changes nothing
    before = store.find(TOP).digest
    outcome = run_plan(plan, report=lines)
    assert steps.stat().st_size == 20
    assert outcome.artifacts[TOP.key].digest == before
    assert not outcome.artifacts[TOP.key].released
    assert list((released.root / ".retrain").iterdir()) == []
    assert len(Plan([TOP], released, retrain=True).to_make) == 5  # the next one is another retraining
    assert Plan([TOP], released).to_make == []


def test_an_interrupted_retraining_goes_on(store: Store, lines: Lines, steps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_plan(Plan([TOP], store), report=lines)

    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("toy_stages.run_sum", stop)
    with pytest.raises(KeyboardInterrupt):
        run_plan(Plan([TOP], store, retrain=True), report=lines)
    monkeypatch.undo()
    monkeypatch.setattr("toy_stages.STEPS_LOG", [steps])
    made = steps.stat().st_size
    plan = Plan([TOP], store, retrain=True)
    assert keys(plan.to_make) == keys([LEFT, RIGHT, TOP])
    assert Plan([TOP], store).to_make == []  # the old ones still serve
    run_plan(plan, report=lines)
    assert steps.stat().st_size == made
    assert {store.find(r).provenance["session"] for r in (A, B, LEFT, RIGHT, TOP)} == {plan.session}


def test_two_retrainings_of_the_same_share_a_session(store: Store, lines: Lines) -> None:
    one, other = Plan([TOP], store, retrain=True), Plan([TOP], store, retrain=True)
    assert one.session != other.session
    one.begin()
    other.begin()
    assert one.session == other.session
    run_plan(one, report=lines)
    made = store.find(TOP).provenance
    outcome = run_plan(other, report=lines)
    assert outcome.artifacts[TOP.key].provenance == made


def test_the_mark_of_a_retraining_survives_gc_while_it_runs(
    store: Store, lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    toys = toy_stages.run_sum

    def look(recipe: ToySum, context: StageContext) -> None:
        seen.append([item.why for item in garbage(Store(store.root), 0)])
        toys(recipe, context)

    monkeypatch.setattr("toy_stages.run_sum", look)
    plan = Plan([TOP], store, retrain=True)
    assert garbage(Store(store.root), 0) == []
    run_plan(plan, report=lines)
    assert seen == [[], [], []]
    plan.begin()  # and not when it was interrupted
    assert [item.why for item in garbage(Store(store.root), 0)] == ["mark of an interrupted --retrain"]


# One stage, from JSON


def test_run_stage(store: Store, tmp_path: Path, lines: Lines) -> None:
    path = tmp_path / "recipe.json"
    path.write_text(json.dumps(RIGHT.to_dict()))
    with pytest.raises(UserError, match="which is not made yet: make that first"):
        run_stage(path, store, report=lines)
    make(B, store)
    artifact = run_stage(path, store, report=lines)
    assert artifact == store.find(RIGHT)
    assert run_stage(artifact.path / "recipe.json", store, report=lines) == artifact


@pytest.mark.parametrize(
    ("runner", "message"),
    [("not_there.at_all:run", "needs the Python module 'not_there'"), ("toy_stages:absent", "which is not there")],
)
def test_a_runner_that_is_absent(runner: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Toy, "runner", runner)
    with pytest.raises(UserError, match=message):
        load_runner(A)


# What the user sees


def test_tree_states_estimates_and_sums(store: Store, tmp_path: Path) -> None:
    assert summary(Plan([TOP], store)) == "5 to make (time unknown), 0 released, 0 cached"
    make(A, store)
    measured = store.find(A).path / "provenance.json"
    facts = json.loads(measured.read_text())
    released = tmp_path / "released" / "toy" / A.key
    shutil.copytree(measured.parent, released)
    (released / "provenance.json").write_text(json.dumps({**facts, "wall_seconds": 100.0}))
    other = Store(tmp_path / "other", [tmp_path / "released"], notify=lambda line: None)
    big = Toy(seed=9, train=ToyTrain(steps=15))
    plan = Plan([A, big, ToySum(parts=(big, A))], other)  # A is damaged there, yet a fair measure
    assert plan.estimates[A.key].seconds == 100
    assert plan.estimates[A.key].exact
    assert plan.estimates[big.key].seconds == 300
    assert plan.estimates[big.key].flops == 1500
    console = Console(file=io.StringIO(), width=140)
    console.print(render_tree(plan))
    text = console.file.getvalue()
    assert f"toy  {A.key[:8]}  to make  1 min 40 s, 5.0e+02 FLOP of training" in text
    assert f"toy  {big.key[:8]}  to make  about 5 min 00 s" in text
    assert text.count("(above)") == 2
    assert "sum of 2" in text
    assert "3 to make (about 6 min 40 s, 2.0e+03 FLOP of training; 1 unknown), 0 released, 0 cached" in text


def test_tree_says_where_work_goes_on(store: Store) -> None:
    interrupt(A, store, "checkpoint", "x")
    console = Console(file=io.StringIO(), width=140)
    console.print(render_tree(Plan([A], store)))
    assert "to make, goes on from a checkpoint  time unknown" in console.file.getvalue()


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = 100.0
        monkeypatch.setattr(progress.time, "monotonic", lambda: self.time)


def test_rate_counts_from_where_this_run_began(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, rate = Clock(monkeypatch), Rate()
    rate.update(5000, 10000)
    assert rate.describe() == ""
    for step in range(1, 101):
        clock.time += 0.1
        rate.update(5000 + step * 2, 10000)
    assert rate.rate == pytest.approx(20)
    assert rate.describe() == "20/s, 4 min 00 s left"
    rate.update(1, 50)  # another phase
    assert rate.describe() == ""


def test_lines_report_long_stages_every_half_minute(monkeypatch: pytest.MonkeyPatch, lines: Lines) -> None:
    clock = Clock(monkeypatch)
    lines.start(A, 2, 3)
    for done in range(1, 701):
        clock.time += 0.125
        lines.progress(done, 1400, {"loss": 0.51239})
    assert lines._stream.getvalue().splitlines() == [
        "[2/3] toy: 240/1400 8/s, 2 min 25 s left loss 0.5124",
        "[2/3] toy: 480/1400 8/s, 1 min 55 s left loss 0.5124",
    ]


def test_bar_on_a_terminal() -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    stream = Terminal()
    bar = progress.reporter(stream)
    bar.start(A, 1, 2)
    bar.progress(5, 10, {"loss": 0.5})
    bar.finish(A, 83.0, made=True)
    bar.close()
    assert f"[1/2] toy {A.key[:8]}: made in 1 min 23 s" in stream.getvalue()
    assert isinstance(progress.reporter(io.StringIO()), Lines)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (3599.7, "1 h 00 min"), (200000, "2 d 8 h")],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@given(st.floats(0, 1e8))
def test_duration_is_right_within_its_rounding(seconds: float) -> None:
    units = {"s": 1, "min": 60, "h": 3600, "d": 86400}
    words = duration(seconds).split()
    said = sum(float(number) * units[unit] for number, unit in zip(words[::2], words[1::2], strict=True))
    assert said == pytest.approx(seconds, rel=0.05, abs=0.051)


assert STEPS_LOG == []


def test_estimates_start_from_the_times_of_a_released_store(store: Store, tmp_path: Path) -> None:
    make(A, store)
    released = tmp_path / "given"
    released.mkdir()
    save_measures([replace(m, seconds=60.0) for m in measures(store.artifacts())], released / "times.json")
    fresh = Store(tmp_path / "fresh", [released], notify=lambda line: None)
    longer = Toy(seed=9, train=ToyTrain(steps=15))
    plan = Plan([A, longer], fresh)
    assert plan.estimates[A.key] == Estimate(60.0, 500.0, exact=True)
    assert plan.estimates[longer.key] == Estimate(180.0, 1500.0, exact=False)
    for text in ("{", '[{"kind": "toy"}]'):  # cut short; of another release
        (released / "times.json").write_text(text)
        assert not Plan([A], fresh).estimates


def test_of_like_stages_the_one_that_differs_in_numbers_of_images_alone_is_scaled(store: Store) -> None:
    def measure(what: str, size: float, seconds: float) -> Measure:
        return Measure("toy", what, what, size, seconds, None)

    estimator = Estimator(store)
    estimator._measured = [
        measure("score heun 64px", 10, 40.0),
        measure("score heun 64px of photographs", 1000, 2.0),
        measure("score nearest 64px", 1000, 1.0),
    ]

    wanted = SimpleNamespace(kind="toy", key="new", title="score heun 64px N=1000 from 10", n=1000, inputs=list)
    assert estimator.estimate(wanted) == Estimate(4000.0, None, exact=False)  # type: ignore[arg-type]


def test_a_training_held_to_the_work_of_a_chain_is_scaled_by_its_part_of_it(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    match = Work(of=A)
    before = SimpleNamespace(kind="toy", key="before", title="core", inputs=list)
    wanted = SimpleNamespace(kind="toy", key="new", title="grown", match=match, share=0.5, inputs=lambda: [match, before])
    estimator = Estimator(store)
    estimator._measured = [Measure("toy", "before", "core", 1, 3.0, 100.0), Measure("toy", "old", "grown", 1, 60.0, 600.0)]
    assert estimator.estimate(wanted) == Estimate(60.0, 600.0, exact=False)  # type: ignore[arg-type]  # nothing is counted yet
    (tmp_path / "work.json").write_text('{"flops": 800}')
    monkeypatch.setattr(store, "find", lambda recipe: SimpleNamespace(path=tmp_path) if recipe is match else None)
    assert estimator.estimate(wanted) == Estimate(30.0, 300.0, exact=False)  # type: ignore[arg-type]
    (tmp_path / "work.json").write_text('{"flops": 8')
    assert estimator.estimate(wanted) == Estimate(60.0, 600.0, exact=False)  # type: ignore[arg-type]
