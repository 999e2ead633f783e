"""The store on a full disk, and what is left when writing fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from toy_stages import Toy, make

from pagoda_bench.artifacts.checkpoint import nearly_full, save_atomic
from pagoda_bench.artifacts.store import Store
from pagoda_bench.errors import UserError


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, said: list[str]) -> Store:
    return Store(tmp_path / "store", notify=said.append)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_keeps_the_work(store: Store, number: int) -> None:
    def run() -> None:
        with store.making(Toy()) as context:
            save_atomic(context.work / "checkpoint", lambda path: path.write_text("kept"))
            raise OSError(number, os.strerror(number), "somewhere")

    with pytest.raises(UserError, match="artifacts gc") as caught:
        run()
    assert str(store.root) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert store.half_made(Toy())
    make(Toy(seed=1), store)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_the_systems_own_full_device(store: Store) -> None:
    def run() -> None:
        with store.making(Toy()) as context:
            with open("/dev/full", "w") as file:
                file.write("x" * 100_000)
            (context.out / "x").write_text("x")

    with pytest.raises(UserError, match="is full while making"):
        run()


def test_a_full_disk_in_a_librarys_words(store: Store) -> None:
    def run() -> None:
        with store.making(Toy()):
            raise RuntimeError("I/O error: No space left on device (os error 28)")

    with pytest.raises(UserError, match="is full"):
        run()


def test_a_full_disk_while_publishing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from pagoda_bench.artifacts import store as module

    def full(path: Path, value: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def run() -> None:
        with store.making(Toy()) as context:
            (context.out / "state.txt").write_text("x")
            monkeypatch.setattr(module, "write_json", full)

    with pytest.raises(UserError, match="is full"):
        run()
    monkeypatch.undo()
    assert store.find(Toy()) is None
    assert make(Toy(), store) is not None


def test_a_store_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot write to the artifact store"):
        make(Toy(), Store(tmp_path / "file" / "store"))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc")
def test_a_store_where_no_folder_can_be_made(store: Store) -> None:
    artifact = make(Toy(), store)
    place = Path("/proc/no-such-folder")
    for attempt in (lambda: make(Toy(), Store(place)), lambda: store.export(artifact, place / "store")):
        with pytest.raises(UserError, match="cannot write to the artifact store: /proc/no-such-folder: No such file"):
            attempt()
    assert not nearly_full(Path("/proc"))  # it has no size, and none left


def test_a_stages_own_error_stays_what_it_is(store: Store) -> None:
    with pytest.raises(FileNotFoundError), store.making(Toy()) as context:
        (context.work / "absent").read_text()


def test_save_atomic_keeps_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.npy"
    save_atomic(path, lambda p: p.write_text("old"))

    def fail(temporary: Path) -> None:
        assert temporary.suffix == ".npy"
        temporary.write_text("half")
        raise ValueError("half way")

    with pytest.raises(ValueError, match="half way"):
        save_atomic(path, fail)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.npy"]


# Clearing up


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_line(store: Store, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def refuse(file: int, how: int) -> None:
        raise OSError(number, os.strerror(number))

    make(Toy(seed=1), store)
    monkeypatch.setattr("fcntl.flock", refuse)
    for _ in range(2):
        with pytest.raises(UserError, match="has no locks") as caught:
            make(Toy(), store)
        assert str(store.root) in str(caught.value)
    monkeypatch.undo()
    make(Toy(), Store(store.root))  # nothing was left that stands for a lock


def test_an_artifact_that_is_replaced_while_it_is_read_is_found(
    store: Store, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    make(Toy(), store)

    def between(folder: Path, key: str) -> str:
        monkeypatch.undo()
        make(Toy(), Store(store.root), session="anew")
        return "state.txt is not as it was made"  # the new file beside the old digests

    reader = Store(store.root, notify=said.append)
    monkeypatch.setattr("pagoda_bench.artifacts.store.damage", between)
    found = reader.find(Toy())
    assert found is not None
    assert found.provenance["session"] == "anew"
    assert said == []
