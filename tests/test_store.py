"""The artifact store: whole or not there, whatever happens; made once; found damaged before it is used."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from toy_stages import Toy, ToySum, ToyTrain, interrupt, make

from pagoda_bench.artifacts import provenance
from pagoda_bench.artifacts.checkpoint import write_json
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.artifacts.digests import damage
from pagoda_bench.artifacts.gc import garbage
from pagoda_bench.artifacts.store import Store, default_root
from pagoda_bench.errors import UserError

TOYS = Path(__file__).with_name("toy_stages.py")
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TOYS.parents[1]), str(TOYS.parent)])}


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, said: list[str]) -> Store:
    return Store(tmp_path / "store", notify=said.append)


def test_made_found_and_read_back(store: Store) -> None:
    recipe = ToySum(parts=(Toy(seed=1), Toy(seed=2)))
    assert store.find(recipe) is None
    assert not store.root.exists()  # looking creates nothing
    for part in recipe.parts:
        make(part, store)
    artifact = make(recipe, store)
    assert artifact.path == store.root / "toy-sum" / recipe.key
    assert artifact.recipe == recipe
    assert json.loads((artifact.path / "recipe.json").read_text()) == {**recipe.to_dict(), "key": recipe.key}
    assert Store(store.root).find(recipe) == artifact
    facts = artifact.provenance
    assert facts["inputs"] == {f"toy/{p.key}": store.find(p).digest for p in recipe.parts}
    assert facts["seeds"] == {f"toy/{p.key}": p.seed for p in recipe.parts}
    assert facts["attempts"] == 1
    assert facts["started"] < facts["finished"]
    assert facts["wall_seconds"] >= 0
    assert facts["peak_memory"] > 2**20
    assert facts["versions"]["numpy"]
    assert facts["package"].keys() == {"pagoda-bench", "revision", "dirty"}
    assert store.find(recipe.parts[0]).provenance["device"] == "toy"


def test_an_absent_input_is_named(store: Store) -> None:
    with pytest.raises(UserError, match=r"needs toy \(toy/.*\), which is not made yet"):
        make(ToySum(parts=(Toy(),)), store)


def test_the_digest_covers_the_payload_alone(store: Store, tmp_path: Path) -> None:
    one, other = make(Toy(), store), make(Toy(), Store(tmp_path / "other"))
    assert one.digest == other.digest
    assert one.provenance["started"] != other.provenance["started"]
    assert make(Toy(seed=1), store).digest != one.digest


def test_total_flops_counts_each_once_and_needs_no_upstream(store: Store) -> None:
    shared, other = Toy(), Toy(seed=1, train=ToyTrain(steps=7))
    left = ToySum(parts=(shared, other))
    top = ToySum(parts=(left, shared))
    for recipe in (shared, other, left, top):
        make(recipe, store)
    for recipe in (other, left):
        shutil.rmtree(store.find(recipe).path)
    assert provenance.total_flops(store, top) == 500 + 700 + 1 + 1
    with pytest.raises(UserError, match="is not made yet"):
        provenance.total_flops(store, left)


def test_unrecorded_flops_are_an_error(store: Store) -> None:
    with store.making(Toy()) as context:
        (context.out / "state.txt").write_text("x")
    make(ToySum(parts=(Toy(),)), store)
    with pytest.raises(UserError, match=rf"made toy/{Toy().key} recorded no training_flops"):
        provenance.total_flops(store, ToySum(parts=(Toy(),)))


@pytest.mark.parametrize("text", [None, '{"flops": 8', "[8]", '{"stages": {}}', '{"flops": null}'])
def test_work_that_cannot_be_read_is_refused(tmp_path: Path, text: str | None) -> None:
    if text is not None:
        (tmp_path / "work.json").write_text(text)
    with pytest.raises(UserError) as error:
        provenance.counted_work(tmp_path)
    assert str(error.value) == f"{tmp_path} has no readable work.json: make it again"


def test_an_exception_publishes_nothing_and_keeps_the_work(store: Store) -> None:
    def fail() -> None:
        with store.making(Toy()) as context:
            (context.out / "half").write_text("x")
            (context.work / "checkpoint").write_text("x")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert store.find(Toy()) is None
    assert store.half_made(Toy())
    assert list((store.root / ".staging").iterdir()) == []
    assert make(Toy(), store).provenance["attempts"] == 2
    assert not store.half_made(Toy())


def test_what_was_begun_of_other_inputs_is_not_gone_on_with(store: Store, said: list[str]) -> None:
    """An input that was made again with other bytes (on another machine, say): half of the work would be of the old one."""
    part = Toy(seed=1)
    recipe = ToySum(parts=(part,))
    make(part, store)
    interrupt(recipe, store, "half", "x")
    interrupt(recipe, store, "other half", "x")  # the same inputs: both attempts lie there
    work = store.root / ".work" / f"toy-sum-{recipe.key}"
    assert {"half", "other half"} <= {path.name for path in work.iterdir()}
    shutil.rmtree(store.find(part).path)
    with store.making(part) as context:
        (context.out / "state.txt").write_text("other bytes")
    interrupt(recipe, store, "anew", "x")
    assert {path.name for path in work.iterdir() if path.name[0] != "."} == {"anew"}
    assert said == [f"what was begun of sum of 1 (toy-sum/{recipe.key}) had other inputs: it begins anew"]


def test_a_retraining_clears_what_was_begun_and_notes_its_own_inputs(store: Store) -> None:
    recipe = Toy(seed=1)
    interrupt(recipe, store, "half", "x")
    interrupt(recipe, store, "again", "x", "a retraining")
    work = store.root / ".work" / f"toy-{recipe.key}"
    assert {path.name for path in work.iterdir()} == {"again", ".attempts.json", ".inputs.json"}


@pytest.mark.parametrize(("name", "message"), [(None, "wrote no file"), ("digests.json", "a name the store reserves")])
def test_what_a_stage_must_not_do(store: Store, name: str | None, message: str) -> None:
    def run() -> None:
        with store.making(Toy()) as context:
            if name:
                (context.out / name).write_text("{}")

    with pytest.raises(RuntimeError, match=message):
        run()
    assert store.find(Toy()) is None


# Kills


def test_killed_at_every_file_operation(tmp_path: Path) -> None:
    """SIGKILL before each file operation in turn: never a part visible; the end is the same, byte for byte; at most the
    step since the last checkpoint is lost; nothing is left behind. Then the same while an old artifact is replaced."""
    whole = make(Toy(seed=3, train=ToyTrain(steps=3)), Store(tmp_path / "whole"))
    command = [sys.executable, str(TOYS), "kill-everywhere", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    for result in json.loads(done.stdout):
        assert "problem" not in result
        ended = result["ended"]
        assert len(ended) > 50
        assert {end["digest"] for end in ended} == {whole.digest}
        assert all(3 <= end["steps"] <= 3 + end["kills"] for end in ended)
        assert max(end["kills"] for end in ended) == 2
        assert max(end["attempts"] for end in ended) == 3
        assert not any(end["left"] for end in ended)


def test_two_processes_make_it_once(tmp_path: Path) -> None:
    root = tmp_path / "store"
    command = [sys.executable, str(TOYS), "make", str(root), "2"]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) for _ in range(2)
    ]
    results = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0, 0]
    assert len({out for out, _ in results}) == 1
    assert root.with_suffix(".log").read_text() == "....."
    told = [err for _, err in results if err]
    assert len(told) == 1
    assert "waiting for process " in told[0]
    assert f"which is making toy/{Toy(seed=7).key}" in told[0]


def test_a_killed_process_frees_its_lock(tmp_path: Path) -> None:
    root, recipe = tmp_path / "store", Toy(seed=7)
    child = subprocess.Popen([sys.executable, str(TOYS), "make", str(root), "50"], env=ENVIRONMENT, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not Store(root).half_made(recipe) and not (root / ".locks" / f"toy-{recipe.key}.json").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    found = garbage(Store(root), older_than=0)
    child.kill()
    child.wait()
    assert found == []  # a living process's work is no garbage
    start = time.monotonic()
    make(recipe, Store(root))
    assert time.monotonic() - start < 10


# Damage


def _flip(path: Path) -> None:
    """Changes one bit, and neither size nor time."""
    status, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


@pytest.mark.parametrize("name", ["state.txt", "deep/again.txt", "recipe.json", "provenance.json", "digests.json"])
@pytest.mark.parametrize("harm", ["flip", "cut", "remove"])
def test_damage_is_named_set_aside_and_mended(tmp_path: Path, said: list[str], name: str, harm: str) -> None:
    root = tmp_path / "store"
    digest = make(Toy(), Store(root)).digest
    path = root / "toy" / Toy().key / name
    {"flip": _flip, "cut": lambda p: os.truncate(p, 10), "remove": Path.unlink}[harm](path)
    store = Store(root, notify=said.append)
    assert store.find(Toy()) is None
    assert len(said) == 1
    assert f"toy/{Toy().key} is damaged ({name} " in said[0]
    assert [p.name for p in (root / ".damaged").iterdir()] == [f"toy-{Toy().key}-1"]
    assert make(Toy(), store).digest == digest


def test_a_strange_file_and_anothers_recipe_are_damage(store: Store) -> None:
    path = make(Toy(), store).path
    (path / ".hidden").write_text("does not count")
    assert damage(path, Toy().key) is None
    assert damage(path, Toy(seed=1).key) == "recipe.json is of another artifact"
    (path / "more.txt").write_text("x")
    assert damage(path, Toy().key) == "more.txt does not belong to it"


def test_damage_while_the_process_runs_is_seen(store: Store) -> None:
    artifact = make(Toy(), store)
    assert store.find(Toy()) is not None
    (artifact.path / "state.txt").write_text("other")
    assert store.find(Toy()) is None


def test_damage_is_left_to_the_process_that_holds_the_lock(store: Store, said: list[str]) -> None:
    artifact = make(Toy(), store)
    _flip(artifact.path / "state.txt")
    with Store(store.root).locked(f"toy-{Toy().key}") as mine:
        assert mine
        assert Store(store.root, notify=said.append).find(Toy()) is None
    assert artifact.path.is_dir()
    assert said == []


# Released artifacts


def test_released_are_found_after_local_ones_and_never_touched(store: Store, tmp_path: Path, said: list[str]) -> None:
    make(Toy(), store)
    released = store.export(store.find(Toy()), tmp_path / "released")
    other = Store(tmp_path / "other", [tmp_path / "released"], notify=said.append)
    found = other.find(Toy())
    assert found is not None
    assert found.released
    assert found.digest == store.find(Toy()).digest
    assert not other.root.exists()
    assert sorted(path.name for path in (tmp_path / "released").iterdir()) == [".locks", "toy"]
    with other.making(Toy()) as context:
        assert context is None
    shutil.copytree(released.path, other.root / "toy" / Toy().key)
    assert not Store(other.root, [tmp_path / "released"]).find(Toy()).released

    shutil.rmtree(other.root)
    _flip(released.path / "state.txt")
    again = Store(other.root, [tmp_path / "released"], notify=said.append)
    assert again.find(Toy()) is None
    assert again.find(Toy()) is None
    assert len(said) == 1
    assert "is damaged and not used: state.txt is not as it was made" in said[0]
    assert released.path.is_dir()


def test_a_session_makes_anew_once_and_replaces(store: Store) -> None:
    first = make(Toy(), store)
    started = first.provenance["started"]
    assert store.find(Toy(), session="s") is None
    second = make(Toy(), store, session="s")
    assert second.provenance["started"] > started
    assert second.path == first.path
    assert make(Toy(), store, session="s").provenance == second.provenance
    assert list((store.root / ".trash").iterdir()) == []
    # work of another session is not gone on with
    interrupt(Toy(), store, "state.json", '[5, "wrong"]', session="t")
    assert make(Toy(), store, session="u").digest == first.digest


def test_a_retraining_takes_no_older_input(store: Store, tmp_path: Path) -> None:
    make(Toy(), store)
    store.export(store.find(Toy()), tmp_path / "released")
    recipe = ToySum(parts=(Toy(),))
    for here in (store, Store(tmp_path / "other", [tmp_path / "released"])):
        with pytest.raises(UserError, match=r"needs toy \(toy/.*\), which is not made yet by this retraining: make that first"):
            make(recipe, here, session="s")
        make(Toy(), here, session="s")
        assert make(recipe, here, session="s").provenance["session"] == "s"
    assert make(ToySum(parts=(Toy(),), n=3), store) is not None  # whoever retrains nothing takes what a retraining made


# Context and places


def test_context_for_test(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    write_json(tmp_path / "in" / "provenance.json", {"flops": 1})
    context = StageContext.for_test(tmp_path / "out", tmp_path / "work", {Toy().key: tmp_path / "in"}, {"*": tmp_path})
    assert context.input(Toy()) == tmp_path / "in"
    assert context.provenance(Toy()) == {"flops": 1}
    assert context.data_path("0" * 64) == tmp_path
    with pytest.raises(UserError, match="is not among the inputs"):
        context.input(Toy(seed=1))
    with pytest.raises(UserError, match="--data PATH"):
        StageContext.for_test(tmp_path / "out", tmp_path / "work").data_path("0" * 64)
    context.progress(1, 2, loss=0.5)
    with pytest.raises(ValueError, match="cannot record loss=nan"):
        context.record(loss=float("nan"))


def test_default_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PAGODA_BENCH_STORE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "pagoda-bench" / "store"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_root() == tmp_path / ".cache" / "pagoda-bench" / "store"
    monkeypatch.setenv("PAGODA_BENCH_STORE", str(tmp_path / "mine"))
    assert default_root() == tmp_path / "mine"
