"""Several processes that share the images of an evaluation: the same numbers, one line when one dies, and none left over."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import encoded, folder_of, refusal, zip_of
from test_evaluate import images, weights
from test_evaluate_command import command

from pagoda_bench.artifacts.store import Store
from pagoda_bench.cli.main import main
from pagoda_bench.metrics.evaluate import evaluate
from pagoda_bench.metrics.extractors import Extractor, load_extractor
from pagoda_bench.metrics.gather import Gathered, Wanted, gather
from pagoda_bench.metrics.generated import Generated, open_generator
from pagoda_bench.metrics.inputs import Array, Part, Stream
from pagoda_bench.metrics.looks import Looks, Seen, looks
from pagoda_bench.metrics.opening import open_images
from pagoda_bench.metrics.score_schema import load
from pagoda_bench.metrics.workers import Workers, device_of

__all__ = ["weights"]  # a fixture

N, BATCH = 50, 8
KEYS = frozenset({("embedded", "features"), ("embedded", "logits")})
ALL = Wanted(moments=KEYS, rows=KEYS, pixels=True)
KINDS = ["folder", "zip", "tar", "npz", "parquet", "generator", "array"]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """On either side: a sum of float32 may depend on the number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def crew() -> Iterator[Workers]:
    with Workers(3) as workers:
        yield workers


def stream_of(kind: str, folder: Path) -> Stream:
    """N images of 8 px with labels, which folders and zips have by their names."""
    pixels, labels = images(N, 1), np.sort(np.arange(N) % 3)
    files = {f"{label}/{i:03}.png": encoded(image) for i, (image, label) in enumerate(zip(pixels, labels, strict=True))}
    path = folder / f"images.{kind}"
    if kind == "folder":
        return open_images(folder_of(path, files))
    if kind == "zip":
        return open_images(zip_of(path, files))
    if kind == "array":
        return Array(pixels, labels=labels)
    if kind == "npz":
        np.savez_compressed(path, arr_0=pixels, labels=labels)
    elif kind == "tar":
        with tarfile.open(path, "w") as archive:
            for name, data in files.items():
                for member, content in ((name, data), (name.replace("png", "cls"), name[:1].encode())):
                    info = tarfile.TarInfo(member)
                    info.size = len(content)
                    archive.addfile(info, io.BytesIO(content))
    elif kind == "parquet":
        pyarrow: Any = pytest.importorskip("pyarrow")
        parquet: Any = pytest.importorskip("pyarrow.parquet")
        table = pyarrow.table({"image": [{"bytes": data} for data in files.values()], "label": labels.tolist()})
        parquet.write_table(table, path, row_group_size=5)
    else:
        (folder / "generator.json").write_text(json.dumps({"kind": "real", "data": {"kind": "embedded", "master": 8}, "at": 8}))
        return open_generator(folder / "generator.json", Store(folder / "store"), N, first=3)
    return open_images(path)


def same(a: Gathered, b: Gathered) -> None:
    """To the last bit."""
    assert (a.n, a.size, a.captions) == (b.n, b.size, b.captions)
    for feature in KEYS:
        np.testing.assert_array_equal(a.rows[feature], b.rows[feature])
        for one, other in zip(a.moments[feature], b.moments[feature], strict=True):
            np.testing.assert_array_equal(one.mean, other.mean)
            np.testing.assert_array_equal(one.covariance, other.covariance)
    for left, right in ((a.images, b.images), (a.labels, b.labels)):
        assert left is not None
        assert right is not None
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("kind", KINDS)
def test_processes_gather_what_one_gathers(kind: str, tmp_path: Path, weights: Path, crew: Workers) -> None:
    """Three of them, then the first two of them; with a rest, in two blocks, and with fewer images than there are."""
    network, stream = load_extractor("embedded", weights), stream_of(kind, tmp_path)
    for n, size in ((N, BATCH), (43, BATCH), (N, 30)):
        options: dict[str, Any] = {"n": n, "blocks": 2, "batch": size}
        told: list[int] = []
        alone = gather(stream, {"embedded": network}, ALL, **options)
        shared = gather(
            stream,
            {"embedded": network},
            ALL,
            look=crew.looks,
            progress=lambda done, total, told=told: told.append(done),
            **options,
        )
        same(alone, shared)
        assert told == [min(end, n) for end in range(size, n + size, size)]


@pytest.mark.parametrize("kind", KINDS)
def test_the_parts_of_a_stream_are_its_batches(kind: str, tmp_path: Path) -> None:
    stream = stream_of(kind, tmp_path)
    whole = list(stream.batches(BATCH))
    assert [len(batch.images) for batch in whole] == [BATCH] * 6 + [2]
    for of in (1, 2, 3, 9):
        for index in range(of):
            part = list(stream.batches(BATCH, Part(index, of)))
            assert len(part) == len(whole[index::of])
            for one, other in zip(part, whole[index::of], strict=True):
                np.testing.assert_array_equal(one.images, other.images)
                np.testing.assert_array_equal(one.labels, other.labels)
                assert one.first == other.first


def test_scores_of_two_jobs_are_those_of_one(tmp_path: Path, weights: Path) -> None:
    """Through the command, with two seeds, the cache of the reference, the self-check and a progress of its own."""
    real = stream_of("folder", tmp_path).where
    np.savez(tmp_path / "a.npz", arr_0=images(60, 2))
    line = ["evaluate", tmp_path / "a.npz", "--ref", real, "--weights", f"embedded={weights}", "--batch", 10]
    line += ["--metrics", "fd,prdc,is,vendi", "--seeds", 2, "--self-check"]
    for jobs in (1, 2):
        command(*line, "--jobs", jobs, "--no-cache", "--json", tmp_path / f"{jobs}.json")
        counted = ["stats", real, "--extractor", "embedded", "--weights", f"embedded={weights}", "--batch", 10, "--jobs", jobs]
        command(*counted, "--out", tmp_path / f"stats{jobs}.npz")
    one, two = (load(tmp_path / f"{jobs}.json") for jobs in (1, 2))
    assert [(s.metric, s.values, s.stderr, s.protocol) for s in one] == [
        (s.metric, s.values, s.stderr, s.protocol) for s in two
    ]
    with np.load(tmp_path / "stats1.npz") as first, np.load(tmp_path / "stats2.npz") as second:
        assert first.files == second.files
        for name in first.files:
            np.testing.assert_array_equal(first[name], second[name])


def bright(at: int) -> np.ndarray:
    """Images of which one makes the functions of `toy_eyes` do what their names say."""
    found = images(40, 1)
    found[at] = 255
    return found


@pytest.mark.parametrize(
    ("eyes", "words"),
    [
        ("die", "worker 2 of 2 was killed by SIGKILL at images 24 to 31 of images: often memory has run out"),
        pytest.param(
            "leave",
            "worker 2 of 2 ended with exit code 7 at images 24 to 31 of images: --jobs 1 shows more",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_worker_that_dies_is_one_line(eyes: str, words: str) -> None:
    with Workers(2) as workers:
        network = load_extractor(f"toy_eyes:{eyes}")
        wanted = Wanted(rows=frozenset({("eyes", "features")}))
        message = refusal(lambda: gather(Array(bright(30)), {"eyes": network}, wanted, batch=8, look=workers.looks))
    assert words in message


def in_turns(stream: Stream, *arguments: Any) -> Iterator[Seen]:
    """What two processes see, without them."""
    parts = [looks(stream, *arguments, part=Part(index, 2)) for index in range(2)]
    for turn in count():
        seen = next(parts[turn % 2], None)
        if seen is None:
            return
        yield seen


def test_what_a_worker_raises_is_one_line_in_its_turn(tmp_path: Path) -> None:
    """That of one process where it is about the images, even when a later batch is bad too and is looked at first."""
    wanted = Wanted(rows=frozenset({("eyes", "features")}))

    def line(value: Any, eyes: str, look: Looks = looks) -> str:
        network = load_extractor(f"toy_eyes:{eyes}")
        return refusal(lambda: gather(open_images(value), {"eyes": network}, wanted, batch=8, look=look))

    files = {f"{i:02}.png": encoded(image) for i, image in enumerate(images(40, 1))}
    damaged = folder_of(tmp_path / "damaged", files | {"19.png": b"damaged", "30.png": b"damaged"})
    with Workers(2) as workers:
        message = line(bright(30), "fail", workers.looks)
        assert "worker 2 of 2 failed at images 24 to 31 of images: RuntimeError: too bright" in message
        assert line(damaged, "look", workers.looks) == line(damaged, "look")
    other = encoded(images(1, 1, 9)[0])
    mixed = folder_of(tmp_path / "mixed", files | {f"{i:02}.png": other for i in range(8, 16)})  # all that one process sees
    assert line(mixed, "look", in_turns) == line(mixed, "look")
    assert "'19.png' is 9 x 9 px and" in line(folder_of(tmp_path / "one", files | {"19.png": other}), "look", in_turns)


def test_what_cannot_be_shared_is_refused(
    network_in_memory: Extractor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = images(200, 1)
    for jobs in (0, -1):
        assert "--jobs 1 or more" in refusal(lambda jobs=jobs: evaluate(pixels, pixels, ["fd"], jobs=jobs))
    for text in ("0", "two", "1.5"):
        assert main(["evaluate", str(tmp_path), "--jobs", text]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    networks = {"embedded": network_in_memory}
    assert "in memory alone" in refusal(lambda: evaluate(pixels, pixels, ["fd"], jobs=2, extractors=networks))
    stream = stream_of("generator", tmp_path)
    assert isinstance(stream, Generated)
    stream._context = None
    with Workers(2) as workers:
        network = {"eyes": load_extractor("toy_eyes:look")}
        wanted = Wanted(rows=frozenset({("eyes", "features")}))
        assert "use one process" in refusal(lambda: gather(stream, network, wanted, batch=8, look=workers.looks))


@pytest.fixture
def network_in_memory(weights: Path) -> Extractor:
    network = load_extractor("embedded", weights)
    network.origin = None
    return network


def test_a_worker_that_cannot_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(process: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("multiprocessing.context.SpawnProcess.start", full)
    wanted, network = Wanted(rows=frozenset({("eyes", "features")})), {"eyes": load_extractor("toy_eyes:look")}
    with Workers(2) as workers:
        message = refusal(lambda: gather(Array(images(20, 1)), network, wanted, batch=8, look=workers.looks))
    assert message == "worker 1 of 2 cannot be started (Resource temporarily unavailable): take fewer jobs"


def test_workers_take_the_gpus_in_turn() -> None:
    assert [device_of("cuda", i, 2) for i in range(3)] == ["cuda:0", "cuda:1", "cuda:0"]
    assert device_of("cuda", 1, 1) == "cuda"
    assert device_of("cpu", 1, 4) == "cpu"
    assert device_of("cuda:3", 1, 4) == "cuda:3"


def members(session: int) -> list[int]:
    """The processes of a session that are not dead."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux: processes are found in /proc")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_process_is_left_when_the_command_ends(how: signal.Signals, tmp_path: Path) -> None:
    """Ctrl-C goes to all of them, as from a terminal; the others to the command alone."""
    np.savez(tmp_path / "a.npz", arr_0=images(2000, 1))
    line = [
        sys.executable,
        "-m",
        "pagoda_bench.cli.main",
        "evaluate",
        str(tmp_path / "a.npz"),
        "--ref",
        str(tmp_path / "a.npz"),
    ]
    line += ["--extractor", "toy_eyes:linger", "--metrics", "fd", "--batch", "2", "--jobs", "2", "--no-cache"]
    places = [str(Path(__file__).parent), *sys.path]
    child = subprocess.Popen(
        line,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(places)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        assert child.stderr is not None
        first = child.stderr.readline()  # of the progress: the workers are at work
        assert "reference: " in first
        assert len(members(child.pid)) >= 3
        (os.killpg if how == signal.SIGINT else os.kill)(child.pid, how)
        rest = child.communicate(timeout=60)[1]
        assert child.returncode == (-signal.SIGKILL if how == signal.SIGKILL else 130)
        assert "Traceback" not in rest
        limit = time.monotonic() + 20
        while members(child.pid) and time.monotonic() < limit:
            time.sleep(0.1)
        assert not members(child.pid)
    finally:
        for pid in members(child.pid):
            os.kill(pid, signal.SIGKILL)
