"""Which class and split an image has: folders, labels files, and what is wrong with them."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from image_files import encoded, folder_of, opened, pixels_of, refusal, two_classes, zip_of

from pagoda_bench.data.images import Images
from pagoda_bench.data.labels import Row, parse_labels
from pagoda_bench.data.layout import Entry, sort_classes, stratified
from pagoda_bench.data.sources import describe
from pagoda_bench.errors import UserError


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
    st.lists(st.tuples(st.text("ab 1.,;#'\"\u00e9\u4e2d", min_size=1, max_size=6), st.integers(0, 99)), min_size=1, max_size=5)
)
@settings(max_examples=60, deadline=None)
def test_parse_labels_reads_what_csv_and_json_write(pairs: list[tuple[str, int]]) -> None:
    pairs = [(f"x/{file}.png", label) for file, label in pairs]
    expected = [(file, str(label), "") for file, label in pairs]
    assert parse_labels(b".\\x\\a.png,7", "labels.csv")[0][:3] == ("x/a.png", "7", "")
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
