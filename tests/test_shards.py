"""Sharded arrays: any order, any number of writers, killed anywhere, the same bytes; damage is found and named."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pagoda_bench.artifacts.digests import files, sha256
from pagoda_bench.data.shards import Layout, Sharded, Writer
from pagoda_bench.errors import UserError


def rows(start: int, stop: int) -> NDArray[Any]:
    """Row i is a function of i alone."""
    return np.sin(np.arange(start, stop)[:, None] ** 2 + np.arange(6)).reshape(-1, 2, 3).astype(np.float16)


LAYOUT = Layout(rows=23, shape=(2, 3), dtype="float16", shard=4)


class Killed(Exception):
    """Stands for whatever ends a process."""


def published(writer: Writer, folder: Path) -> dict[str, str]:
    writer.publish(folder, {"of": "test"})
    return {name: sha256(folder / name) for name in files(folder)}


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("whole")
    writer = Writer(folder / "work", LAYOUT, "x")
    writer.finish(rows)
    return published(writer, folder / "out")


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), max_size=6), st.sampled_from(["before", "half", "note"]))
@settings(max_examples=40)
def test_any_order_and_any_interruption_end_in_the_same_bytes(
    expected: dict[str, str], attempts: list[tuple[int, int]], where: str
) -> None:
    """Each attempt begins with another shard and dies: before it makes one, or with half a file, or without its note."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for first, life in attempts:
            left = [life]

            def mortal(start: int, stop: int, left: list[int] = left) -> NDArray[Any]:
                if left[0] == 0:
                    number = start // LAYOUT.shard
                    path = folder / f"{number:05d}.npy"
                    if where == "half":
                        path.write_bytes(b"\x93NUMPY half")
                    elif where == "note":
                        np.save(path, rows(start, stop))
                    raise Killed
                left[0] -= 1
                return rows(start, stop)

            try:
                Writer(folder, LAYOUT, "x").run(mortal, part=(first, 7))
            except Killed:
                continue
        writer = Writer(folder, LAYOUT, "x")
        writer.finish(rows)
        assert published(writer, folder / "out") == expected


def test_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "work", LAYOUT, "x")
    assert writer.run(rows) == LAYOUT.count == 6
    assert writer.run(rows) == 0
    writer.publish(tmp_path / "out", {"of": "test"})
    array = Sharded(tmp_path / "out")
    wanted = np.array([22, 0, 5, 5, 21, 3, 4])
    assert len(array) == 23
    assert array.about == {"of": "test"}
    assert np.array_equal(array[wanted], rows(0, 23)[wanted])
    assert array[np.array([], np.int64)].shape == (0, 2, 3)
    with pytest.raises(UserError, match="has 23 rows, not a row 23"):
        array[np.array([1, 23])]


def test_shards_of_something_else_do_not_count(tmp_path: Path) -> None:
    Writer(tmp_path, LAYOUT, "one teacher").run(rows)
    assert Writer(tmp_path, LAYOUT, "another").missing() == list(range(6))


def test_damage_in_the_work_folder_is_mended(tmp_path: Path, expected: dict[str, str]) -> None:
    writer = Writer(tmp_path / "work", LAYOUT, "x")
    writer.run(rows)
    path = tmp_path / "work" / "00002.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    assert writer.missing() == []
    made: list[int] = []
    writer.finish(lambda a, b: (made.append(a), rows(a, b))[1])
    assert made == [8]
    assert published(writer, tmp_path / "out") == expected


def test_damage_in_a_published_array_is_named(tmp_path: Path) -> None:
    writer = Writer(tmp_path / "work", LAYOUT, "x")
    writer.finish(rows)
    out = tmp_path / "out"
    writer.publish(out, {})
    (out / "00001.npy").unlink()
    with pytest.raises(UserError, match=r"00001.npy is missing or cut short"):
        Sharded(out)
    np.save(out / "00001.npy", rows(0, 4))
    assert Sharded(out).verify() == ["00001.npy"]
    (out / "index.json").write_text("{")
    with pytest.raises(UserError, match=r"index.json is missing, damaged"):
        Sharded(out)


SCRIPT = """
import sys, time
from pathlib import Path
from pagoda_bench.data.shards import Writer
from tests.test_shards import LAYOUT, rows
def slow(a, b):
    with open(Path(sys.argv[1]) / "made.txt", "a") as log:
        log.write(f"{a}\\n")
    time.sleep(0.05)
    return rows(a, b)
Writer(Path(sys.argv[1]) / "work", LAYOUT, "x").run(slow, part=(int(sys.argv[2]), 3))
"""


def start(folder: Path, part: int) -> subprocess.Popen[bytes]:
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root)}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, str(folder), str(part)], env=environment, cwd=root)


def test_writers_side_by_side_share_the_work(tmp_path: Path, expected: dict[str, str]) -> None:
    writers = [start(tmp_path, part) for part in range(3)]
    assert [w.wait(60) for w in writers] == [0, 0, 0]
    made = (tmp_path / "made.txt").read_text().split()
    assert sorted(map(int, made)) == [0, 4, 8, 12, 16, 20]  # each once
    assert published(Writer(tmp_path / "work", LAYOUT, "x"), tmp_path / "out") == expected


@pytest.mark.slow
def test_killed_writers_leave_nothing_wrong(tmp_path: Path, expected: dict[str, str]) -> None:
    rng = random.Random(time.time_ns())
    for _ in range(6):
        writers = [start(tmp_path, part) for part in range(2)]
        time.sleep(rng.uniform(0.2, 0.9))
        for w in writers:
            w.send_signal(signal.SIGKILL)
            w.wait()
    writer = Writer(tmp_path / "work", LAYOUT, "x")
    writer.finish(rows)
    assert published(writer, tmp_path / "out") == expected
    assert json.loads((tmp_path / "out" / "index.json").read_text())["rows"] == 23
