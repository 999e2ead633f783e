"""Folders and zips: what is read, what is refused, and that the message names the file."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
from image_files import encoded, folder_of, pixels_of, refusal, two_classes, zip_of

from pagoda_bench.data.sources import describe


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
