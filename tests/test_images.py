"""Real images in: every kind of file, layout and fault, on images made here."""

from __future__ import annotations

import csv
import io
import json
import os
import struct
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pagoda_bench.data import images as images_module
from pagoda_bench.data import open_dataset
from pagoda_bench.data.containers import BadFile
from pagoda_bench.data.decode import decode, decoding
from pagoda_bench.data.images import Images
from pagoda_bench.data.labels import Row, parse_labels
from pagoda_bench.data.layout import Entry, sort_classes, stratified
from pagoda_bench.data.sources import describe
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.data import DataConfig, EmbeddedData, ImageData

CIFAR = Path(__file__).parents[2] / "shared/data/cifar10-jpg.zip"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PAGODA_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def pixels_of(seed: int, height: int = 8, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(image: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def folder_of(root: Path, files: dict[str, bytes]) -> Path:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    return root


def zip_of(path: Path, files: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def two_classes(count: int = 5, prefix: str = "") -> dict[str, bytes]:
    return {
        f"{prefix}{label}/{i}.png": encoded(pixels_of(10 * i + (label == "dog")))
        for label in ("dog", "cat")
        for i in range(count)
    }


def opened(path: Path, master: int = 8) -> Images:
    return Images(describe(path, master), path)


def refusal(action: Callable[[], object]) -> str:
    with pytest.raises(UserError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- layouts


def test_folder_and_zip_are_the_same_data(tmp_path: Path) -> None:
    files = two_classes(20)
    litter = {
        "__MACOSX/cat/._1.png": b"x",
        ".hidden/a.png": b"x",
        "cat/.DS_Store": b"x",
        "dog/Thumbs.db": b"x",
        "README.md": b"x",
    }
    folder = folder_of(tmp_path / "a", files | litter)
    stored = zip_of(tmp_path / "s.zip", dict(reversed(files.items())), zipfile.ZIP_STORED)
    wrapped = zip_of(tmp_path / "w.zip", {f"pets/{name}": content for name, content in files.items()})
    configs = [describe(path, 8) for path in (folder, stored, wrapped)]
    assert configs[0] == configs[1] == configs[2]
    assert configs[0].classes == ("cat", "dog")
    assert configs[0] != describe(zip_of(tmp_path / "t.zip", files | {"cat/0.png": encoded(pixels_of(99))}), 8)
    assert configs[0] != describe(zip_of(tmp_path / "r.zip", {n.replace("0.", "z."): c for n, c in files.items()}), 8)
    sets = [Images(configs[0], path) for path in (folder, stored, wrapped)]
    for split in ("train", "val"):
        index = np.arange(sets[0].size(split))
        for other in sets[1:]:
            np.testing.assert_array_equal(sets[0].images(index, 8, split), other.images(index, 8, split))


def test_the_digest_is_what_sha256sum_prints(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "a", two_classes(3))
    command = "find . -type f -printf '%P\\n' | LC_ALL=C sort | xargs sha256sum | sha256sum"
    printed = subprocess.run(["bash", "-c", command], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert describe(folder, 8).digest == printed.split()[0]


def test_labels_are_those_of_the_pixels(tmp_path: Path) -> None:
    """Every image of a class is of one grey value, so that a label can be told from the pixels alone."""
    values = {"ant": 10, "bee": 120, "cow": 250}
    files = {f"{c}/{i}.png": encoded(np.full((8, 8, 3), v, np.uint8)) for c, v in values.items() for i in range(15)}
    data = opened(zip_of(tmp_path / "a.zip", files))
    assert (data.size("train"), data.size("val")) == (39, 6)
    for split in ("train", "val"):
        index = np.arange(data.size(split))
        labels = data.labels(index, split)
        assert labels.dtype == np.int64
        shown = data.images(index, 8, split)[:, 0, 0, 0]
        assert [values[data.classes[label]] for label in labels] == shown.tolist()
        assert np.bincount(labels).tolist() == [data.size(split) // 3] * 3
        assert sorted(labels[:3].tolist()) == [0, 1, 2]  # every beginning holds the classes in proportion


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


def test_split_folders(tmp_path: Path) -> None:
    files = two_classes(4, "train/") | two_classes(2, "test/")
    data = opened(folder_of(tmp_path / "a", files))
    assert (data.size("train"), data.size("val")) == (8, 4)
    # With a validation split the test split is not used: neither in the digest, nor need it have classes.
    both = two_classes(4, "d/train/") | two_classes(2, "d/val/")
    flat = {"d/test/1.jpg": b"not looked at", "d/test/2.tif": b"nor this"}
    assert describe(folder_of(tmp_path / "b", both | flat), 8) == describe(zip_of(tmp_path / "b.zip", both), 8)
    only = opened(folder_of(tmp_path / "c", two_classes(10, "train/")))
    assert (only.size("train"), only.size("val")) == (18, 2)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    files = {f"{c}/{i}.png": encoded(pixels_of(i)) for c in ("car", "train") for i in range(3)}
    assert opened(folder_of(tmp_path / "a", files)).classes == ("car", "train")


@pytest.mark.parametrize("suffix", ["csv", "tsv", "txt", "json"])
def test_labels_files(tmp_path: Path, suffix: str) -> None:
    files = {f"images/{i}.png": encoded(pixels_of(i)) for i in range(8)}
    rows = [(name, "odd one" if suffix != "txt" and i % 2 else f"c{i % 2}") for i, name in enumerate(files)]
    if suffix == "json":
        text = json.dumps(dict(rows))
    else:
        mark = {"csv": ",", "tsv": "\t", "txt": "  "}[suffix]
        text = "".join(f"{mark.join(row)}\n" for row in rows)
    data = opened(zip_of(tmp_path / "a.zip", files | {f"labels.{suffix}": text.encode()}))
    assert len(data.classes) == 2
    assert data.size("train") + data.size("val") == 8
    assert (
        describe(zip_of(tmp_path / "b.zip", files | {f"labels.{suffix}": text.replace("c0", "zz").encode()}), 8) != data.config
    )
    by_name = {Path(name).stem: label for name, label in rows}
    for split in ("train", "val"):
        for i in range(data.size(split)):
            found = data.images(np.array([i]), 8, split)[0]
            stem = next(s for s in range(8) if (pixels_of(s) == found).all())
            assert data.classes[data.labels(np.array([i]), split)[0]] == by_name[str(stem)]


def test_labels_file_with_splits_and_numbers(tmp_path: Path) -> None:
    files = {f"{i}.png": encoded(pixels_of(i)) for i in range(24)}
    rows = [[f"./{i}.png", i % 12, "train" if i < 12 else "validation"] for i in range(24)]
    data = opened(folder_of(tmp_path / "a", files | {"labels.json": json.dumps(rows).encode()}))
    assert data.classes == tuple(str(i) for i in range(12))  # '10' follows '9'
    assert (data.size("train"), data.size("val")) == (12, 12)
    table = "Label,Split,File\n" + "".join(f"{label},{split},{file}\n" for file, label, split in rows)
    same = opened(folder_of(tmp_path / "b", files | {"labels.csv": table.encode("utf-8-sig")}))
    np.testing.assert_array_equal(same.images(np.arange(12), 8, "val"), data.images(np.arange(12), 8, "val"))


@given(
    st.lists(
        st.tuples(st.text("ab 1.,;#'\"\\\u00e9\u4e2d", min_size=1, max_size=6), st.integers(0, 99)), min_size=1, max_size=5
    )
)
@settings(max_examples=60, deadline=None)
def test_parse_labels_reads_what_csv_and_json_write(pairs: list[tuple[str, int]]) -> None:
    pairs = [(f"x/{file}.png", label) for file, label in pairs]
    expected = [(file.replace("\\", "/").replace("//", "/"), str(label), "") for file, label in pairs]
    for suffix, dialect in (("csv", "excel"), ("tsv", "excel-tab")):
        buffer = io.StringIO()
        csv.writer(buffer, dialect).writerows(pairs)
        assert [row[:3] for row in parse_labels(buffer.getvalue().encode(), f"labels.{suffix}")] == expected
    content = json.dumps([{"file": file, "label": label} for file, label in pairs]).encode()
    assert [row[:3] for row in parse_labels(content, "labels.json")] == expected


@given(st.binary(max_size=60), st.sampled_from(["csv", "tsv", "txt", "json"]))
@settings(max_examples=200, deadline=None)
def test_parse_labels_never_ends_otherwise_than_with_rows_or_a_user_error(content: bytes, suffix: str) -> None:
    try:
        rows = parse_labels(content, f"labels.{suffix}")
    except UserError as error:
        message = str(error)
    else:
        message = f"labels.{suffix}"
        assert rows
        assert all(isinstance(row, Row) and row.file and row.label for row in rows)
    assert message.startswith(f"labels.{suffix}")


def test_the_order_is_stratified_and_depends_on_names_alone() -> None:
    entries = [Entry(f"{label}/{i}", "", label, "train") for label, n in enumerate((60, 30, 10)) for i in range(n)]
    order = stratified(entries)
    assert order == stratified(reversed(entries))
    assert sorted(order) == sorted(entries)
    for n in range(1, 101):
        counts = np.bincount([entry.label for entry in order[:n]], minlength=3)
        assert np.abs(counts - n * np.array([0.6, 0.3, 0.1])).max() <= 1.0
    assert sort_classes(["10", "9", "1"]) == ("1", "9", "10")
    assert sort_classes(["b", "10", "9"]) == ("10", "9", "b")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.txt": b""}, "no JPEG, PNG or WebP images"),
        ({"cat/a.tiff": b""}, "'cat/a.tiff' is of a kind that is not read"),
        ({"a.png": b"", "b.png": b""}, "'a.png' lies in no class folder"),
        ({"cat/a.png": b"", "cat/b.png": b"", "dog/.keep": b""}, "class folders hold no images, the first 'dog'"),
        ({"cat/a.png": b"", "dog/b.png": b"", "dog/c.png": b""}, "class 'cat' has one image"),
        ({"train/cat/a.png": b"", "val/dog/b.png": b""}, "no images in the split"),
        ({"train/cat/a.png": b"", "more/cat/b.png": b""}, "'more/cat/b.png' is in none of the splits"),
        ({"train/a.png": b"", "test/b.png": b""}, "'test' has no class folders"),
        ({"train/cat/a.png": b"", "train/b.png": b"", "val/cat/a.png": b""}, "images in 'train' lie in no class folder"),
        ({"val/cat/a.png": b"", "test/cat/b.png": b""}, "but no train"),
        ({"x/left/a.png": b"", "y/left/a.png": b""}, "'x/left' and 'y/left' would be one class"),
        ({"cat/a.png": b"", "cat/b.png": b"", "cat/c.bmp": b""}, "'cat/c.bmp': convert"),
        ({"a.png": b"", "labels.csv": b"file,label\n"}, "labels.csv names no images"),
        ({"a.png": b"", "labels.csv": b"a.png,1\nb.png,2\n"}, "labels.csv line 2: there is no image 'b.png'"),
        ({"a.png": b"", "labels.csv": b"a.png,1\na.png,2\n"}, "labels.csv line 2: 'a.png' is named twice"),
        (
            {"a.png": b"", "b.png": b"", "labels.txt": b"# x\na.png 1\n"},
            "1 images have no entry in the labels file, the first 'b.png'",
        ),
        ({"a.png": b"", "labels.txt": b"a.png\n"}, "labels.txt line 1: a file and a label"),
        ({"a.png": b"", "labels.csv": b"a.png,1,dev\n"}, "the split 'dev' is none of train, val, test"),
        ({"a.png": b"", "labels.csv": b'"a.png,1\n'}, "mend the quotes"),
        ({"a.png": b"", "labels.json": b"{"}, "labels.json is not JSON"),
        ({"a.png": b"", "labels.json": b"3"}, "neither an object nor a list"),
        ({"a.png": b"", "labels.json": b'[["a.png", 1.5]]'}, "labels.json entry 1: a file and a label"),
        ({"a.png": b"", "labels.csv": b"\xff\xfe"}, "not UTF-8"),
        ({"a.png": b"", "labels.csv": b"a.png,1", "labels.txt": b"a.png 1"}, "keep one labels file"),
    ],
)
def test_layout_faults(tmp_path: Path, files: dict[str, bytes], words: str) -> None:
    message = refusal(lambda: describe(folder_of(tmp_path / "a", files), 8))
    assert words in message
    assert str(tmp_path / "a") in message or "labels." in message


# ---- containers


def test_missing_and_foreign_paths(tmp_path: Path) -> None:
    assert "does not exist" in refusal(lambda: describe(tmp_path / "none", 8))
    (tmp_path / "a.txt").write_text("hello")
    assert "is not a zip file" in refusal(lambda: describe(tmp_path / "a.txt", 8))
    (tmp_path / "empty.zip").write_bytes(b"")
    assert "is not a zip file" in refusal(lambda: describe(tmp_path / "empty.zip", 8))
    assert "holds no JPEG" in refusal(lambda: describe(zip_of(tmp_path / "none.zip", {}), 8))
    os.mkfifo(tmp_path / "pipe")
    assert "neither a folder nor a zip" in refusal(lambda: describe(tmp_path / "pipe", 8))


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.99])
def test_truncated_zip(tmp_path: Path, keep: float) -> None:
    path = zip_of(tmp_path / "a.zip", two_classes())
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    assert "truncated or damaged zip" in refusal(lambda: describe(path, 8))


@pytest.mark.parametrize("name", ["/etc/a.png", "../a.png", "cat/../../a.png", "C:\\a.png", "..\\a.png"])
def test_unsafe_names_in_a_zip(tmp_path: Path, name: str) -> None:
    path = zip_of(tmp_path / "a.zip", two_classes() | {name: b""})
    assert "unsafe name" in refusal(lambda: describe(path, 8))


def test_names_in_a_zip(tmp_path: Path) -> None:
    files = two_classes()
    windows = zip_of(tmp_path / "w.zip", {name.replace("/", "\\"): content for name, content in files.items()})
    assert describe(windows, 8) == describe(zip_of(tmp_path / "a.zip", files), 8)
    composed, parted = "caf\u00e9", "cafe\u0301"
    one = zip_of(tmp_path / "c.zip", {f"{composed}/{i}.png": encoded(pixels_of(i)) for i in range(3)})
    two = folder_of(tmp_path / "d", {f"{parted}/{i}.png": encoded(pixels_of(i)) for i in range(3)})
    assert describe(one, 8) == describe(two, 8)
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(tmp_path / "a.zip", "a") as archive:
        archive.writestr("cat/0.png", b"again")
    assert "'cat/0.png' twice" in refusal(lambda: describe(tmp_path / "a.zip", 8))
    folder_of(tmp_path / "n", {"cat/a\nb.png": b"", "cat/c.png": b""})
    assert "control character" in refusal(lambda: describe(tmp_path / "n", 8))


def test_damage_inside_a_zip_names_every_file(tmp_path: Path) -> None:
    files = two_classes()
    path = zip_of(tmp_path / "a.zip", files, zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    for name in ("cat/1.png", "dog/3.png"):
        content[content.index(files[name]) + 50] ^= 255
    path.write_bytes(content)
    message = refusal(lambda: describe(path, 8))
    assert "2 of 10 files" in message
    assert "'cat/1.png' is damaged" in message
    assert "'dog/3.png' is damaged" in message


def test_zip_members_that_are_not_read(tmp_path: Path) -> None:
    packed = zip_of(tmp_path / "a.zip", two_classes(), zipfile.ZIP_LZMA)
    assert "10 of 10 files" in (message := refusal(lambda: describe(packed, 8)))
    assert "zip method 14" in message
    assert "and 5 more" in message
    path = zip_of(tmp_path / "b.zip", two_classes(), zipfile.ZIP_STORED)
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    assert "is encrypted" in refusal(lambda: describe(path, 8))


def test_links(tmp_path: Path) -> None:
    real = folder_of(tmp_path / "real", two_classes())
    linked = tmp_path / "linked"
    linked.mkdir()
    for label in ("cat", "dog"):
        (linked / label).symlink_to(real / label)
    config = describe(real, 8)
    assert describe(linked, 8) == config
    (real / "cat" / "round").symlink_to(real)
    assert describe(real, 8) == config  # a loop is not entered
    (real / "cat" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(real / "dog" / "pipe.jpg")
    message = refusal(lambda: describe(real, 8))
    assert "'cat/gone.png' is a link to nothing" in message
    assert "'dog/pipe.jpg' is no regular file" in message


# ---- pixels


def decoded(data: bytes) -> np.ndarray:
    with decoding():
        return decode(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_colour_is_read_as_pil_reads_it(kind: str) -> None:
    data = encoded(pixels_of(1, 9, 14), kind)
    np.testing.assert_array_equal(decoded(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_grey_palette_and_bits() -> None:
    grey = pixels_of(2)[..., 0]
    for image in (Image.fromarray(grey), Image.fromarray(grey).convert("P")):
        np.testing.assert_array_equal(decoded(encoded(image)), np.repeat(grey[..., None], 3, 2))
    bits = Image.fromarray(grey > 100)
    np.testing.assert_array_equal(decoded(encoded(bits))[..., 1], np.where(grey > 100, 255, 0))
    few = Image.fromarray(pixels_of(3)).quantize(7)
    np.testing.assert_array_equal(decoded(encoded(few)), np.asarray(few.convert("RGB")))


def test_16_bit_grey_is_divided_by_257() -> None:
    deep = np.array([[0, 128, 129, 257, 385, 386], [32768, 40000, 65278, 65279, 65406, 65535]], dtype=np.uint16)
    out = decoded(encoded(Image.fromarray(deep)))
    np.testing.assert_array_equal(out[..., 0], [[0, 0, 1, 1, 1, 2], [128, 156, 254, 254, 254, 255]])
    assert (out == out[..., :1]).all()


def chunked_png(width: int, height: int, depth: int, colour: int, rows: bytes, **chunks: bytes) -> bytes:
    def chunk(tag: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + tag + body + struct.pack(">I", zlib.crc32(tag + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    extra = b"".join(chunk(tag.encode(), body) for tag, body in chunks.items())
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_a_transparent_grey_of_16_bits_becomes_white() -> None:
    data = chunked_png(2, 1, 16, 0, b"\0" + struct.pack(">HH", 1000, 2000), tRNS=struct.pack(">H", 1000))
    np.testing.assert_array_equal(decoded(data)[0, :, 0], [255, 8])


def test_transparency_is_composited_on_white() -> None:
    rgba = np.random.default_rng(4).integers(0, 256, (16, 16, 4), dtype=np.uint8)
    alpha = rgba[..., 3:].astype(float)
    expected = np.rint((rgba[..., :3] * alpha + 255.0 * (255 - alpha)) / 255)
    for kind, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True})):
        np.testing.assert_array_equal(decoded(encoded(rgba, kind, **options)), expected)
    la = Image.merge("LA", Image.fromarray(rgba).split()[2:])
    np.testing.assert_array_equal(decoded(encoded(la))[..., 0], expected[..., 2])
    palette = Image.new("P", (3, 1))
    palette.putdata([0, 1, 2])
    palette.putpalette([10, 20, 30, 100, 100, 100, 0, 0, 0])
    out = decoded(encoded(palette, transparency=bytes([255, 0, 128])))
    np.testing.assert_array_equal(out[0], [[10, 20, 30], [255, 255, 255], [127, 127, 127]])
    keyed = decoded(encoded(Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8)), transparency=(1, 2, 3)))
    np.testing.assert_array_equal(keyed[0], [[255, 255, 255], [4, 5, 6]])
    bit = chunked_png(2, 1, 1, 0, b"\0\x40", tRNS=b"\0\0")
    np.testing.assert_array_equal(decoded(bit)[0, :, 0], [255, 255])


def test_cmyk() -> None:
    image = Image.new("CMYK", (4, 4), (255, 0, 0, 0))
    np.testing.assert_allclose(decoded(encoded(image, "JPEG", quality=100))[0, 0], [0, 255, 255], atol=3)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(pixels_of(5, 6, 10), kind, exif=exif)
    np.testing.assert_array_equal(
        decoded(data), np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    )
    assert decoded(data).shape == ((6, 10, 3) if orientation < 5 else (10, 6, 3))


def test_damaged_exif_changes_nothing() -> None:
    picture = pixels_of(5, 6, 10)
    for exif in (b"Exif\0\0rubbish", b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01", b""):
        np.testing.assert_array_equal(decoded(encoded(picture, "PNG", exif=exif)), picture)


def test_an_animation_gives_its_first_frame() -> None:
    frames = [Image.fromarray(pixels_of(seed)) for seed in (6, 7, 8)]
    for kind, options in (("WEBP", {"lossless": True}), ("PNG", {})):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=40, **options)
        np.testing.assert_array_equal(decoded(data), np.asarray(frames[0]))


def test_what_is_refused_says_why() -> None:
    picture = Image.fromarray(pixels_of(9, 64, 64))

    def reason(data: bytes) -> str:
        with pytest.raises(BadFile) as caught:
            decoded(data)
        return str(caught.value)

    assert reason(b"") == "is empty"
    assert "no readable JPEG" in reason(b"hello")
    for kind in ("TIFF", "BMP", "GIF"):
        assert "no readable JPEG" in reason(encoded(picture, kind))
    assert "no readable JPEG" in reason(encoded(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"))
    for kind in ("JPEG", "PNG", "WEBP"):
        whole = encoded(picture, kind)
        for keep in (0.05, 0.5, 0.9):
            assert reason(whole[: int(len(whole) * keep)]).startswith("is ")
    assert reason(encoded(picture, "JPEG")[:-900]) == "is truncated"
    broken = bytearray(encoded(picture))
    broken[200] ^= 255
    assert "is damaged" in reason(bytes(broken))
    assert "decompression bomb" in reason(chunked_png(10_000, 10_000, 8, 2, b""))
    assert "decompression bomb" in reason(chunked_png(60_000, 60_000, 8, 2, b""))


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


# ---- the cache


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
