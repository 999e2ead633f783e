"""Where `sample`, `edit` and `roundtrip` read and write: places and numbers that cannot be are refused in one line."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import pytest
import test_editing
from test_editing import BASE, GROWN, run
from test_sample import command, imported, store

from pagoda_bench.artifacts.store import Store
from pagoda_bench.pagoda import editing

__all__ = ["imported", "store"]  # fixtures
chain = test_editing.store  # another fixture


def test_a_folder_that_cannot_take_an_edit_is_named_before_it_is_made(
    chain: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(editing, "reconstruct", None)  # fails where it is called
    (tmp_path / "file").write_text("mine")
    for out, words in ((tmp_path / "file" / "out", "Not a directory"), (tmp_path, "holds other files"), ("", "is empty")):
        code, _, err = run(chain, capsys, "edit", "reconstruct", BASE, "--index", 1, "--out", out)
        assert (code, len(err.splitlines()), words in err) == (2, 1, True), err


def test_the_round_trip_of_no_images_is_refused(chain: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = run(chain, capsys, "roundtrip", GROWN, "--images", tmp_path, "--label", 1)
    assert (code, len(err.splitlines()), "is an empty folder" in err) == (2, 1, True), err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--out", "{}/file/out"), "cannot be made"),
        (("--out", "{}/file/out.npz"), "cannot be made"),
        (("--out", ""), "--out: name a new folder"),
        (("--out", "{}/new", "--first", 2**62), "--first"),
        (("--out", "{}/new", "--n", 10**20), "--n"),
        (("--out", "{}/new.npz", "--n", 10**9), "make fewer images at a time"),
        (("--out", "{}/new", "--reject", 1e30, "--classifier", "a:b"), "less than or equal to 1000"),
    ],
)
def test_places_and_numbers_that_cannot_be_are_refused_in_one_line(
    options: tuple[object, ...],
    words: str,
    tmp_path: Path,
    imported: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr("shutil.disk_usage", lambda path: types.SimpleNamespace(free=10**9))
    code, _, err = command(capsys, "sample", "pagoda-64", "--n", 4, *(str(o).format(tmp_path) for o in options))
    assert (code, len(err.splitlines())) == (2, 1), err
    assert words in err
    assert sorted(path.name for path in tmp_path.glob("*.npz")) + sorted(path.name for path in tmp_path.glob(".new*")) == []
