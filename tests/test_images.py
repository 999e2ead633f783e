"""Real images as a data set: access, faults of the whole, and the cache of decoded pixels."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from image_files import encoded, folder_of, opened, pixels_of, refusal, two_classes, zip_of

from pagoda_bench.data import images as images_module
from pagoda_bench.data import open_dataset
from pagoda_bench.data.images import Images
from pagoda_bench.data.sources import describe
from pagoda_bench.recipes.data import DataConfig, EmbeddedData, ImageData

CIFAR = Path(__file__).parents[2] / "shared/data/cifar10-jpg.zip"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PAGODA_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_access_is_random(tmp_path: Path) -> None:
    data = opened(folder_of(tmp_path / "a", two_classes(30)), 8)
    index = np.array([7, 0, 53, 7, 12])
    together = data.images(index, 4, "train")
    assert together.shape == (5, 4, 4, 3)
    assert together.dtype == np.uint8
    for row, i in zip(together, index, strict=True):
        np.testing.assert_array_equal(row, data.images(np.array([i]), 4, "train")[0])
    assert data.images(np.array([], dtype=np.int64), 4, "val").shape == (0, 4, 4, 3)
    assert "no image -1" in refusal(lambda: data.images(np.array([0, -1]), 4, "train"))
    assert "no image 54" in refusal(lambda: data.images(np.array([0, 54]), 4, "train"))
    assert "kept at 8 px" in refusal(lambda: data.images(index, 16, "train"))
    assert "power of two" in refusal(lambda: data.images(index, 3, "train"))


def test_orientation_and_crop_come_before_the_size(tmp_path: Path) -> None:
    wide = np.zeros((16, 40, 3), np.uint8)
    wide[:, 12:28] = pixels_of(11, 16, 16)
    files = {f"cat/{i}.png": encoded(wide if i % 2 else wide.swapaxes(0, 1)) for i in range(4)}
    data = opened(folder_of(tmp_path / "a", files))
    expected = np.rint(wide[:, 12:28].reshape(8, 2, 8, 2, 3).mean((1, 3)))
    found = [data.images(np.arange(3), 8, "train"), data.images(np.arange(1), 8, "val")]
    for image in np.concatenate(found):
        assert (image == expected).all() or (image == expected.swapaxes(0, 1)).all()


def test_all_bad_images_are_named_in_one_message(tmp_path: Path, cache: Path) -> None:
    files = two_classes(20)
    for i in range(7):
        files[f"cat/{i}.png"] = files[f"cat/{i}.png"][: 60 + i]
    path = folder_of(tmp_path / "a", files)
    message = refusal(lambda: opened(path))
    assert "7 of 40 files cannot be used: 'cat/0.png' is truncated" in message
    assert "'cat/4.png'" in message
    assert "and 2 more: replace or remove them" in message
    for i in range(7):
        (path / f"cat/{i}.png").unlink()
    assert opened(path).size("train") == 30


def test_images_that_would_only_be_enlarged(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "a", two_classes())
    assert "at most 8" in refusal(lambda: opened(path, 16))
    (path / "cat/big.png").write_bytes(encoded(pixels_of(3, 20, 20)))
    assert opened(path, 16).images(np.array([0]), 16, "train").shape == (1, 16, 16, 3)


def test_other_images_than_the_recipe_says(tmp_path: Path) -> None:
    one, two = folder_of(tmp_path / "a", two_classes(5)), folder_of(tmp_path / "b", two_classes(6))
    config = describe(one, 8, "pets")
    message = refusal(lambda: open_dataset(config, lambda _: two))
    assert config.digest[:20] in message
    assert describe(two, 8).digest[:20] in message
    assert "--data" in refusal(lambda: open_dataset(config))
    assert "known: embedded, images" in refusal(lambda: open_dataset(DataConfig.model_construct()))
    renamed = config.model_copy(update={"classes": ("a", "b")})
    assert "classes" in refusal(lambda: open_dataset(renamed, lambda _: one))


def test_open_dataset(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "a", two_classes())
    config = describe(path, 8, "pets")
    asked: list[str] = []

    def find(digest: str) -> Path:
        asked.append(digest)
        return path

    data = open_dataset(config, find)
    assert asked == [config.digest]
    assert data.classes == config.classes
    assert isinstance(config, ImageData)
    assert open_dataset(EmbeddedData()).size("train") is None


def test_nothing_is_read_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder_of(tmp_path / "a", two_classes(40))
    calls: list[tuple[int, int, str]] = []

    def progress(done: int, total: int, what: str) -> None:
        calls.append((done, total, what))

    first = Images(describe(path, 8, progress=progress), path, progress=progress)
    assert calls == [(80, 80, "hashing images"), (80, 80, "decoding images")]
    monkeypatch.setattr(images_module, "decode", None)
    again = Images(describe(path, 8, progress=progress), path, progress=progress)
    assert len(calls) == 2
    np.testing.assert_array_equal(first.images(np.arange(9), 8, "train"), again.images(np.arange(9), 8, "train"))
    assert again.verify()


def test_a_changed_file_is_noticed(tmp_path: Path) -> None:
    path = folder_of(tmp_path / "a", two_classes())
    before = describe(path, 8)
    (path / "cat/0.png").write_bytes(encoded(pixels_of(77), "JPEG"))
    assert describe(path, 8).digest != before.digest


@pytest.mark.parametrize("damage", ["short", "meta", "labels", "missing", "shape"])
def test_a_damaged_cache_is_made_again(tmp_path: Path, cache: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    path = folder_of(tmp_path / "a", two_classes())
    expected = opened(path).images(np.arange(8), 8, "train")
    (folder,) = (cache / "pixels").glob("*px-*[0-9a-f]/")
    (memo,) = (cache / "sources").glob("*.json")
    if damage == "short":
        os.truncate(folder / "images.npy", 500)
    elif damage == "meta":
        (folder / "meta.json").write_text("{")
    elif damage == "labels":
        (folder / "labels.npy").write_bytes(b"")
    elif damage == "missing":
        (folder / "labels.npy").unlink()
    else:
        np.save(folder / "images.npy", np.zeros((3, 8, 8, 3), np.uint8))
    memo.write_text("[]")
    np.testing.assert_array_equal(opened(path).images(np.arange(8), 8, "train"), expected)
    assert "made again" in caplog.text


def test_verify_sees_a_changed_pixel(tmp_path: Path, cache: Path) -> None:
    data = opened(folder_of(tmp_path / "a", two_classes()))
    (file,) = (cache / "pixels").glob("*/images.npy")
    assert data.verify()
    with file.open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))
    assert not data.verify()


class Stop(BaseException):
    pass


@pytest.mark.parametrize("torn", [0, 1, 100, 192])
def test_decoding_goes_on_where_it_stopped(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, torn: int) -> None:
    path = folder_of(tmp_path / "a", two_classes(20))
    expected = opened(path)
    monkeypatch.setattr(images_module, "CHUNK_BYTES", 8 * 192)
    monkeypatch.setenv("PAGODA_BENCH_CACHE", str(tmp_path / "other"))
    config = describe(path, 8)

    def stop(done: int, total: int, what: str) -> None:
        if done == 24 and what == "decoding images":
            raise Stop

    with pytest.raises(Stop):
        Images(config, path, progress=stop, workers=2)
    (partial,) = (tmp_path / "other/pixels").glob("*.partial")
    file = partial / "images.npy"
    os.truncate(file, file.stat().st_size - torn)  # as a kill in the middle of a write leaves it
    seen: list[int] = []
    data = Images(config, path, progress=lambda done, total, what: seen.append(done), workers=2)
    assert seen == [32, 40] if torn == 0 else seen == [31, 39, 40]
    for split in ("train", "val"):
        index = np.arange(data.size(split))
        np.testing.assert_array_equal(data.images(index, 8, split), expected.images(index, 8, split))
        np.testing.assert_array_equal(data.labels(index, split), expected.labels(index, split))
    assert data.verify()
    assert not partial.exists()


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder_of(tmp_path / "a", two_classes())
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PAGODA_BENCH_CACHE", str(tmp_path / "file"))
    message = refusal(lambda: opened(path))
    assert "PAGODA_BENCH_CACHE" in message


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_an_error_of_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = folder_of(tmp_path / "a", two_classes())
    resume = images_module._resume

    def full(file: Path, stream: io.BufferedRandom, shape: tuple[int, ...]) -> object:
        result = resume(file, stream, shape)
        os.dup2(os.open("/dev/full", os.O_WRONLY), stream.fileno())
        return result

    monkeypatch.setattr(images_module, "_resume", full)
    assert "no space left" in refusal(lambda: opened(path))


def test_two_processes_share_the_work(tmp_path: Path, cache: Path) -> None:
    path = folder_of(tmp_path / "a", two_classes(300))
    code = (
        "import sys, hashlib, numpy as np; from pathlib import Path\n"
        "from pagoda_bench.data.sources import describe\n"
        "from pagoda_bench.data.images import Images\n"
        "path = Path(sys.argv[1]); config = describe(path, 8); calls = []\n"
        "data = Images(config, path, progress=lambda done, total, what: calls.append(done))\n"
        "pixels = data.images(np.arange(data.size('train')), 8, 'train')\n"
        "print(hashlib.sha256(pixels).hexdigest(), bool(calls))\n"
    )
    running = [
        subprocess.Popen([sys.executable, "-W", "error", "-c", code, str(path)], stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=120)[0].split() for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert printed[0][0] == printed[1][0]
    assert sorted(line[1] for line in printed) == ["False", "True"]
    assert not list((cache / "pixels").glob("*.partial"))


@pytest.mark.skipif(not CIFAR.exists(), reason="the CIFAR-10 zip is not beside the checkout")
def test_cifar10(tmp_path: Path) -> None:
    with zipfile.ZipFile(CIFAR) as whole:
        files = {n: whole.read(n) for n in whole.namelist() if int(Path(n).stem) < (20 if n.startswith("train") else 5)}
    config = describe(CIFAR, 32, "cifar10")
    assert config.classes == ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
    part = opened(zip_of(tmp_path / "part.zip", files), 32)
    assert (part.size("train"), part.size("val")) == (200, 50)
    assert np.bincount(part.labels(np.arange(200), "train")).tolist() == [20] * 10
    assert np.bincount(part.labels(np.arange(50), "val")).tolist() == [5] * 10
    from pagoda_bench.data.sources import facts_of

    facts = facts_of(CIFAR)
    assert (facts.train, facts.val, facts.digest) == (50_000, 10_000, config.digest)
