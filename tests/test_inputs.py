"""Images to be measured, from every kind of file, and what is said of files that cannot be used."""

from __future__ import annotations

import io
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from image_files import encoded, folder_of, pixels_of, refusal, zip_of
from PIL import Image

from pagoda_bench.metrics.inputs import Crop, Stream, crop_lanczos
from pagoda_bench.metrics.opening import open_images
from pagoda_bench.metrics.statistics import Statistics, is_statistics, read_statistics, write_statistics
from pagoda_bench.metrics.unpickle import read_pickle

IMAGES = np.stack([pixels_of(i) for i in range(7)])


def files(prefix: str = "") -> dict[str, bytes]:
    return {f"{prefix}{i}.png": encoded(image) for i, image in enumerate(IMAGES)}


def tar_of(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def all_of(stream: Stream, size: int = 3) -> np.ndarray:
    batches = list(stream.batches(size))
    assert all(len(batch.images) == size for batch in batches[:-1])
    return np.concatenate([batch.images for batch in batches])


def npz_of(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.mark.parametrize("kind", ["folder", "zip", "tar", "tar.gz", "npz", "compressed", "npy", "array"])
def test_every_container_gives_the_same_images_twice(tmp_path: Path, kind: str) -> None:
    value: Any = tmp_path / f"images.{kind}"
    if kind == "folder":
        folder_of(value, files())
    elif kind == "zip":
        zip_of(value, files())
    elif kind.startswith("tar"):
        tar_of(value, files(), "w:gz" if kind.endswith("gz") else "w")
    elif kind == "npz":
        npz_of(value, arr_0=IMAGES)
    elif kind == "compressed":
        value = tmp_path / "images.npz"
        np.savez_compressed(value, images=IMAGES)
    elif kind == "npy":
        np.save(value, IMAGES)
    else:
        value = IMAGES
    stream = open_images(value)
    assert stream.n == 7
    for _ in range(2):
        np.testing.assert_array_equal(all_of(stream), IMAGES)
    assert stream.digest() == open_images(value).digest()


def test_parquet_of_hugging_face(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install 'pagoda-bench[eval]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    cells = [{"bytes": encoded(image), "path": None} for image in IMAGES]
    parquet.write_table(pyarrow.table({"image": cells, "label": list(range(7))}), tmp_path / "a.parquet")
    stream = open_images(tmp_path / "a.parquet")
    np.testing.assert_array_equal(all_of(stream), IMAGES)
    assert np.concatenate([b.labels for b in stream.batches(4)]).tolist() == list(range(7))
    parquet.write_table(pyarrow.table({"text": ["a"]}), tmp_path / "b.parquet")
    assert "no column 'image'" in refusal(lambda: open_images(tmp_path / "b.parquet"))
    (tmp_path / "c.parquet").write_bytes(b"PAR1 nothing")
    assert "c.parquet" in refusal(lambda: open_images(tmp_path / "c.parquet"))


def test_labels_come_from_folders_npz_and_webdataset(tmp_path: Path) -> None:
    folder_of(
        tmp_path / "a", {"dog/1.png": encoded(IMAGES[0]), "cat/1.png": encoded(IMAGES[1]), "cat/2.png": encoded(IMAGES[2])}
    )
    (batch,) = open_images(tmp_path / "a").batches(9)
    assert batch.labels is not None
    assert batch.labels.tolist() == [0, 0, 1]
    (batch,) = open_images(npz_of(tmp_path / "b.npz", arr_0=IMAGES, arr_1=np.arange(7))).batches(9)
    assert batch.labels is not None
    assert batch.labels.tolist() == list(range(7))
    members = {k: v for i in range(7) for k, v in ((f"{i}.png", encoded(IMAGES[i])), (f"{i}.cls", str(6 - i).encode()))}
    (batch,) = open_images(tar_of(tmp_path / "c.tar", members)).batches(9)
    assert batch.labels is not None
    assert batch.labels.tolist() == list(range(6, -1, -1))


def test_folders_named_by_numbers_are_the_labels_of_these_numbers(tmp_path: Path) -> None:
    """As in an npz or of a generator, which they are held against by class; by name, 10 would come before 2."""
    folder_of(tmp_path / "a", {f"{label}/1.png": encoded(IMAGES[label % 7]) for label in range(12)})
    (batch,) = open_images(tmp_path / "a").batches(99)
    assert batch.labels is not None
    assert sorted(batch.labels.tolist()) == list(range(12))
    for label, image in zip(batch.labels.tolist(), batch.images, strict=True):
        np.testing.assert_array_equal(image, IMAGES[label % 7])


def test_a_digest_is_of_the_content_and_of_the_crop(tmp_path: Path) -> None:
    folder_of(tmp_path / "a", files())
    folder_of(tmp_path / "b", files())
    assert open_images(tmp_path / "a").digest() == open_images(tmp_path / "b").digest()
    assert open_images(tmp_path / "a").digest() != open_images(tmp_path / "a", Crop("box", 4)).digest()
    (tmp_path / "b" / "3.png").write_bytes(encoded(pixels_of(99)))
    assert open_images(tmp_path / "a").digest() != open_images(tmp_path / "b").digest()


def test_a_crop_brings_mixed_sizes_to_one(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.png": encoded(pixels_of(1, 8, 12)), "b.png": encoded(pixels_of(2, 16, 16))})
    for name in ("adm", "box", "lanczos", "center-crop-dhariwal"):
        assert all_of(open_images(tmp_path, Crop.parse(f"{name}:4"))).shape == (2, 4, 4, 3)
    square = pixels_of(1, 8, 12)[:, 2:10]
    expected = np.asarray(Image.fromarray(square).resize((4, 4), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(crop_lanczos(pixels_of(1, 8, 12), 4), expected)
    assert "did you mean 'lanczos'" in refusal(lambda: Crop.parse("lanzos:4"))
    assert "write adm:256" in refusal(lambda: Crop.parse("adm"))


def test_under_a_published_crop_pixels_are_read_as_they_are_stored(tmp_path: Path) -> None:
    """As ADM's and EDM2's programs and `data prepare` read them; without a crop, and under our own, as one looks at them."""
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    pixels, stored = pixels_of(1, 8, 12), {"a/1.png": encoded(pixels_of(1, 8, 12), "PNG", exif=exif)}
    folder_of(tmp_path / "folder", stored)
    tar_of(tmp_path / "a.tar", stored)
    for path in (tmp_path / "folder", tmp_path / "a.tar"):
        np.testing.assert_array_equal(all_of(open_images(path))[0], pixels[::-1, ::-1])
        for name in ("adm", "center-crop-dhariwal", "lanczos", "box"):
            crop = Crop(name, 4)
            expected = crop(pixels[::-1, ::-1] if name == "box" else pixels)
            np.testing.assert_array_equal(all_of(open_images(path, crop))[0], expected)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (np.zeros((3, 8, 8, 3), np.float32), "float32 and must be uint8: round them"),
        (np.zeros((3, 8, 8, 3), np.int64), "int64 and must be uint8"),
        (np.zeros((3, 8, 8, 1), np.uint8), "1 channels"),
        (np.zeros((3, 8, 8, 4), np.uint8), "4 channels"),
        (np.zeros((3, 3, 8, 8), np.uint8), "transpose it to channels last"),
        (np.zeros((0, 8, 8, 3), np.uint8), "no images"),
        (np.zeros((8, 8, 3), np.uint8), "must be (N, H, W, 3)"),
    ],
)
def test_arrays_of_another_kind_are_refused(tmp_path: Path, array: np.ndarray, words: str) -> None:
    assert words in refusal(lambda: open_images(array))
    path = npz_of(tmp_path / "a.npz", arr_0=array)
    message = refusal(lambda: open_images(path))
    assert words in message
    assert "a.npz" in message


def test_an_npz_of_pickled_objects_is_refused(tmp_path: Path) -> None:
    path = npz_of(tmp_path / "a.npz", arr_0=np.array([{"a": 1}], dtype=object))
    assert "could run code" in refusal(lambda: open_images(path))


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.npz"
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "|u1", "fortran_order": False, "shape": (1 << 12, 128, 128, 3)})
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("arr_0.npy", "w") as stream:
        stream.write(header.getvalue())
        for _ in range(192):
            stream.write(bytes(1 << 20))
    assert bomb.stat().st_size < 1 << 20
    assert "zip bomb" in refusal(lambda: open_images(bomb))


@pytest.mark.parametrize("name", ["a.npz", "a.tar", "a.zip", "a.npy"])
def test_damaged_files_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.tar":
        tar_of(path, files())
    elif name == "a.zip":
        zip_of(path, files())
    elif name == "a.npz":
        npz_of(path, arr_0=IMAGES)
    else:
        np.save(path, IMAGES)
    content = path.read_bytes()
    path.write_bytes(content[: 2 * len(content) // 5])
    assert str(path) in refusal(lambda: all_of(open_images(path)))
    path.write_bytes(b"")
    assert str(path) in refusal(lambda: all_of(open_images(path)))


def test_unusable_folders_and_files_are_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(lambda: open_images(tmp_path / "nowhere"))
    assert "holds no images" in refusal(lambda: open_images(folder_of(tmp_path / "a", {"a.txt": b""}) or tmp_path))
    mixed = folder_of(tmp_path / "b", {"a.png": encoded(pixels_of(1)), "b.png": encoded(pixels_of(1, 16, 8))})
    message = refusal(lambda: all_of(open_images(mixed)))
    assert "'b.png' is 8 x 16 px" in message
    assert "choose a crop" in message
    broken = folder_of(tmp_path / "c", {"a.png": encoded(pixels_of(1)), "b.png": b"no image"})
    assert "'b.png' is no readable" in refusal(lambda: all_of(open_images(broken)))
    assert "not int" in refusal(lambda: open_images(3))


def edm2(protocol: int) -> bytes:
    rng = np.random.default_rng(0)
    part = {"mu": rng.normal(size=4), "sigma": np.cov(rng.normal(size=(9, 4)).T)}
    return pickle.dumps({"num_images": 50_000, "fid": part, "fd_dinov2": dict(part)}, protocol=protocol)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_statistics_in_a_pickle_are_read_without_running_it(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "stats.pkl"
    path.write_bytes(edm2(protocol))
    found = read_statistics(path)
    expected = pickle.loads(edm2(protocol))
    np.testing.assert_array_equal(found.features["pool3"].mean, expected["fid"]["mu"])
    np.testing.assert_allclose(found.features["cls"].covariance, expected["fid"]["sigma"], rtol=1e-15)
    assert found.features["pool3"].n == 50_000


class Attack:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "value",
    [
        Attack(os.mkdir, "made-by-a-pickle"),
        Attack(eval, "1"),
        Attack(np.ndarray, (1 << 40,)),
        Attack(np.load, "x"),
        {"fid": {"mu": Attack(getattr, [], "append"), "sigma": 0}},
        np.array([{"a": 1}], dtype=object),
        np.array(["text"]),
        Path("x"),
    ],
    ids=["mkdir", "eval", "array", "load", "getattr", "objects", "text", "path"],
)
def test_a_pickle_that_asks_for_more_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: Any) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "evil.pkl"
    path.write_bytes(pickle.dumps(value))
    assert "evil.pkl" in refusal(lambda: read_pickle(path))
    assert os.listdir(tmp_path) == ["evil.pkl"]


def test_damaged_pickles_are_refused(tmp_path: Path) -> None:
    path, good = tmp_path / "a.pkl", edm2(4)
    for content in (b"", b"garbage", good[:-9], good[: len(good) // 2]):
        path.write_bytes(content)
        assert "a.pkl" in refusal(lambda: read_pickle(path))


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"mu": np.zeros(3), "sigma": np.eye(4)}, "shape"),
        ({"mu": np.full(3, np.nan), "sigma": np.eye(3)}, "not finite"),
        ({"mu": np.zeros(2), "sigma": np.array([[1.0, 2.0], [0.0, 1.0]])}, "not symmetric"),
        ({"mu": np.zeros(2), "sigma": -np.eye(2)}, "negative variances"),
        ({"mu": np.array(["a", "b"]), "sigma": np.eye(2)}, "numbers"),
    ],
)
def test_numbers_that_are_no_statistics_are_refused(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    path = npz_of(tmp_path / "a.npz", **arrays)
    message = refusal(lambda: read_statistics(path))
    assert words in message
    assert "a.npz" in message


def test_own_statistics_come_back(tmp_path: Path) -> None:
    features = np.random.default_rng(0).normal(size=(50, 3))
    value = Statistics(50, features.mean(0), np.cov(features.T))
    path = tmp_path / "a.npz"
    write_statistics(path, {"pool3": value, "odd name": value}, {"crop": "adm:256", "extractor": {"weights": "ab"}})
    assert is_statistics(path)
    found = read_statistics(path)
    assert set(found.features) == {"pool3", "odd name"}
    np.testing.assert_array_equal(found.features["odd name"].mean, value.mean)
    assert found.features["pool3"].n == 50
    assert found.meta["crop"] == "adm:256"
    with np.load(path) as arrays:  # what pytorch-fid and clean-fid look for
        np.testing.assert_array_equal(arrays["mu"], value.mean)
    assert "ends so" in refusal(lambda: write_statistics(tmp_path / "a.pkl", {"pool3": value}, {}))
