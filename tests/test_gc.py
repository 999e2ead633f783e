"""What may go from a store: what is dead, damaged or not wanted; never what a process or a queue still works on."""

from __future__ import annotations

import itertools
import os
import shutil
import threading
from pathlib import Path

import pytest
from toy_stages import Toy, ToySum, make

from pagoda_bench.artifacts.checkpoint import write_json
from pagoda_bench.artifacts.digests import PROVENANCE
from pagoda_bench.artifacts.gc import garbage, remove
from pagoda_bench.artifacts.locks import shard_of
from pagoda_bench.artifacts.retrains import lock_of
from pagoda_bench.artifacts.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", notify=lambda line: None)


def test_gc_takes_what_is_dead_and_spares_the_rest(store: Store) -> None:
    kept = ToySum(parts=(Toy(seed=1),))
    for recipe in (Toy(seed=1), kept, Toy(seed=2)):
        make(recipe, store)
    staging, work = store.root / ".staging" / "toy-dead", store.root / ".work" / "toy-dead"
    for folder in (staging, work, store.root / ".damaged" / "toy-x-1"):
        folder.mkdir(parents=True)
        (folder / "file").write_text("x" * 100)

    def names(older_than: float, keep: list[ToySum] | None = None) -> set[str]:
        return {item.path.relative_to(store.root).as_posix() for item in garbage(store, older_than, keep)}

    assert names(3600) == {".staging/toy-dead", ".damaged/toy-x-1"}
    assert names(0) == {".staging/toy-dead", ".damaged/toy-x-1", ".work/toy-dead"}
    assert names(0, [kept]) == names(0) | {f"toy/{Toy(seed=2).key}"}
    assert names(3600, [kept]) == names(3600)
    with Store(store.root).locked("toy-dead"):
        assert names(0) == {".damaged/toy-x-1"}
    freed = remove(store, garbage(store, 0, [kept]))
    assert freed > 300
    assert garbage(store, 0, [kept]) == []
    assert store.find(Toy(seed=2)) is None
    assert store.find(kept) is not None
    assert store.find(Toy(seed=1)) is not None


def test_gc_spares_other_folders_and_what_is_being_mended(store: Store) -> None:
    artifact = make(Toy(), store)
    (artifact.path / "recipe.json").unlink()
    (store.root / "mine" / "notes").mkdir(parents=True)
    assert list(store.artifacts()) == [artifact]
    assert [item.path for item in garbage(store, 0, [Toy(seed=1)])] == [artifact.path]
    with Store(store.root).locked(f"toy-{Toy().key}"):
        assert garbage(store, 0) == []


def test_gc_spares_work_whose_shards_are_being_made(store: Store) -> None:
    name = f"toy-{Toy().key}"
    (store.root / ".work" / name).mkdir(parents=True)
    found = garbage(store, 0)
    assert [item.why for item in found] == ["interrupted work"]
    with Store(store.root).locked(shard_of(name, 1, 4)):
        assert garbage(store, 0) == []
        assert remove(store, found) == 0  # it was taken up after it was found
        assert (store.root / ".work" / name).is_dir()
    assert len(garbage(store, 0)) == 1


def test_gc_looks_at_work_that_changes_meanwhile(store: Store) -> None:
    work = store.root / ".work" / "toy-live"
    work.mkdir(parents=True)
    over = threading.Event()

    def at_work() -> None:
        with Store(store.root).locked(work.name):
            for number in itertools.count():
                write_json(work / f"{number % 3}.json", number)  # through a file that is there for a moment
                if over.is_set():
                    return

    thread = threading.Thread(target=at_work)
    thread.start()
    try:
        assert all(garbage(store, 3600) == [] for _ in range(1000))
    finally:
        over.set()
        thread.join()


@pytest.mark.parametrize("area", [".work", ".staging", ".trash", ".damaged"])
def test_gc_passes_over_what_has_gone_since(store: Store, area: str) -> None:
    folder = store.root / area / "toy-x"
    folder.mkdir(parents=True)
    (folder / "file").write_text("x")
    found = garbage(store, 0)
    assert [item.path for item in found] == [folder]
    shutil.rmtree(folder)
    assert remove(store, found) == 0


def test_gc_takes_a_copy_that_was_cut_short_and_spares_one_that_is_whole(store: Store) -> None:
    artifact = make(Toy(), store)
    staging = store.root / ".staging" / f"toy-{Toy().key}"
    shutil.copytree(artifact.path, staging)
    assert garbage(store, 0) == []
    (staging / PROVENANCE).unlink()
    assert [item.path for item in garbage(store, 0)] == [staging]


def test_gc_spares_the_mark_of_a_retraining_that_lives(store: Store) -> None:
    mark = store.root / ".retrain" / "x.json"
    mark.parent.mkdir(parents=True)
    write_json(mark, {"session": "s"})
    assert [item.path for item in garbage(store, 0)] == [mark]
    assert garbage(store, 0, living=["s"]) == []
    found = garbage(store, 0)
    with Store(store.root).locked(lock_of("s")):
        assert garbage(store, 0) == []
        assert remove(store, found) == 0
    os.utime(mark, (0, 0))
    assert garbage(store, 3600) != []
    make(Toy(), store)
    make(Toy(), store, session="t")
    assert garbage(store, 3600) != []
    make(Toy(), store, session="s")  # whoever works on it makes it young again
    assert garbage(store, 3600) == []
    remove(store, garbage(store, 0))
    assert not mark.exists()
