"""ImageNet's preparation, on small trees of synset folders with JPEGs of every size and kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from pagoda_bench.artifacts.digests import files, sha256
from pagoda_bench.cli.data import data as command
from pagoda_bench.data import imagenet, open_dataset
from pagoda_bench.data.imagenet import Prepared, check_counts, describe, prepare, scan
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.data import Split
from tests.image_files import encoded, folder_of, pixels_of, refusal

SIZES = (16, 32)
SHAPES = [(40, 64), (64, 40), (33, 32), (8, 100), (150, 150), (32, 32), (75, 500)]


def picture(i: int) -> bytes:
    """JPEGs of every size, grey ones and one in CMYK among them, one turned by its EXIF block, and a PNG under a wrong name."""
    image = Image.fromarray(pixels_of(i, *SHAPES[i % len(SHAPES)]))
    if i % 5 == 1:
        return encoded(image.convert("L"), "JPEG")
    if i % 5 == 2:
        return encoded(image.convert("CMYK"), "JPEG")
    if i % 5 == 3:
        exif = Image.Exif()
        exif[0x0112] = 6
        return encoded(image, "JPEG", exif=exif)
    return encoded(image, "PNG" if i % 5 == 4 else "JPEG")


def tree_files(train: int = 5, val: int = 2) -> dict[str, bytes]:
    found = {}
    for c, synset in enumerate(("n01440764", "n01443537", "n02085620")):
        found |= {f"train/{synset}/{synset}_{i}.JPEG": picture(7 * c + i) for i in range(train + c)}
        found |= {f"val/{synset}/ILSVRC2012_val_{10 * c + i:08d}.JPEG": picture(50 + 7 * c + i) for i in range(val)}
    return found


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("tree"), tree_files())


@pytest.fixture(scope="module")
def store(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("store")
    prepare(tree, folder, SIZES, any_counts=True, rows=4, workers=2)
    return folder


def adm(image: Image.Image, size: int) -> np.ndarray:
    """ADM's crop, written out once more with PIL alone."""
    while min(*image.size) >= 2 * size:
        image = image.resize(tuple(x // 2 for x in image.size), resample=Image.BOX)
    scale = size / min(*image.size)
    image = image.resize(tuple(round(x * scale) for x in image.size), resample=Image.BICUBIC)
    pixels = np.array(image)
    y, x = (pixels.shape[0] - size) // 2, (pixels.shape[1] - size) // 2
    return pixels[y : y + size, x : x + size]


@pytest.mark.parametrize("size", SIZES)
def test_every_row_is_adms_crop_of_its_file(tree: Path, store: Path, size: int) -> None:
    data = open_dataset(describe(store), lambda digest: store)
    assert data.classes == ("n01440764", "n01443537", "n02085620")
    for split, count in (("train", 18), ("val", 6)):
        assert data.size(split) == count  # type: ignore[arg-type]
        with imagenet.open_source(tree) as source:
            entries = next(t for t in scan(source)[1] if t.split == split).entries
        rows = data.images(np.arange(count), size, split)  # type: ignore[arg-type]
        labels = data.labels(np.arange(count), split)  # type: ignore[arg-type]
        for row, label, entry in zip(rows, labels, entries, strict=True):
            with Image.open(tree / entry.file) as image:
                np.testing.assert_array_equal(row, adm(image.convert("RGB"), size), err_msg=entry.file)
            assert data.classes[label] == Path(entry.file).parent.name


def test_every_beginning_has_the_classes_in_proportion(store: Path) -> None:
    labels = Prepared(describe(store), store).labels(np.arange(18), "train")
    for part in (6, 12, 18):
        counts = np.bincount(labels[:part], minlength=3)
        np.testing.assert_allclose(counts, part * np.array([5, 6, 7]) / 18, atol=1.01)


def test_an_interrupted_preparation_goes_on_and_ends_in_the_same_bytes(
    tree: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    decode = imagenet.decode

    def counted(data: bytes, turn: bool) -> np.ndarray:
        made.append(1)
        return decode(data, turn=turn)

    monkeypatch.setattr(imagenet, "decode", counted)

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tree, tmp_path, SIZES, any_counts=True, rows=4, workers=2, part=(1, 2), progress=stop)
    assert len(made) == 8  # shards 2 and 3 of 5
    prepare(tree, tmp_path, SIZES, any_counts=True, rows=4, workers=2)
    assert len(made) == 24  # each file once
    expected = {name: sha256(store / name) for name in files(store)}
    assert {name: sha256(tmp_path / name) for name in files(tmp_path)} == expected
    prepare(tree, tmp_path, SIZES, any_counts=True, rows=4, workers=2)
    assert len(made) == 24


def test_a_size_can_be_added_and_keeps_the_digest(tree: Path, store: Path, tmp_path: Path) -> None:
    prepare(tree, tmp_path, [16], any_counts=True, rows=4, workers=2)
    before = describe(tmp_path)
    data = Prepared(before, tmp_path)
    with pytest.raises(UserError, match="was prepared at 16 px, not at 32"):
        data.images(np.arange(1), 32, "train")
    prepare(tree, tmp_path, [32], any_counts=True, rows=4, workers=2)
    assert describe(tmp_path) == before == describe(store)
    assert Prepared(before, tmp_path).images(np.arange(2), 32, "train").shape == (2, 32, 32, 3)


def test_files_that_cannot_be_decoded_are_all_named(tmp_path: Path) -> None:
    content = tree_files()
    for name in sorted(content)[:2]:
        content[name] = content[name][:50]
    root = folder_of(tmp_path / "tree", content)
    said = refusal(lambda: prepare(root, tmp_path / "store", [16], any_counts=True, rows=32, workers=2))
    assert all(name in said for name in sorted(content)[:2])
    assert "2 of 18 files cannot be used" in said
    folder_of(root, {name: tree_files()[name] for name in sorted(content)[:2]})
    assert prepare(root, tmp_path / "store", [16], any_counts=True, rows=32, workers=2)["sizes"] == [16]


def test_other_images_do_not_go_into_the_same_store(tmp_path: Path) -> None:
    first = folder_of(tmp_path / "a", tree_files())
    other = folder_of(tmp_path / "b", {**tree_files(), "train/n01440764/more.JPEG": picture(3)})
    prepare(first, tmp_path / "store", [16], any_counts=True, rows=4, workers=2)
    said = refusal(lambda: prepare(other, tmp_path / "store", [16], any_counts=True, rows=4, workers=2))
    assert "holds other images" in said


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("train/loose.JPEG", "'train/loose.JPEG' lies in no class folder"),
        ("val/ILSVRC2012_val_00000001.JPEG", "sort the validation images into synset folders first"),
        ("val/n09999999/x.JPEG", "class 'n09999999' is in val and not in train"),
    ],
)
def test_a_tree_of_another_shape_is_refused(tmp_path: Path, name: str, words: str) -> None:
    root = folder_of(tmp_path / "tree", {**tree_files(), name: picture(0)})
    assert words in refusal(lambda: prepare(root, tmp_path / "store", [16], any_counts=True))


def test_synset_folders_alone_are_for_training(tmp_path: Path) -> None:
    content = {name.removeprefix("train/"): data for name, data in tree_files().items() if name.startswith("train")}
    root = folder_of(tmp_path / "tree", content)
    about = prepare(root, tmp_path / "store", [16], any_counts=True, rows=8, workers=2)
    assert about["counts"] == {"train": {"n01440764": 5, "n01443537": 6, "n02085620": 7}}
    data = Prepared(describe(tmp_path / "store"), tmp_path / "store")
    with pytest.raises(UserError, match="no images of the split 'val'"):
        data.size("val")


def ilsvrc(off: dict[int, int]) -> dict[Split, dict[str, int]]:
    """Counts that ILSVRC2012 could have, 1281 or 1282 in each class, with those of some classes changed."""
    train = {f"n{c:08d}": 1281 + (c < 167) + off.get(c, 0) for c in range(1000)}
    return {"train": train, "val": dict.fromkeys(train, 50)}


def test_counts_of_ilsvrc2012_are_checked(tree: Path, tmp_path: Path) -> None:
    check_counts(ilsvrc({}), tree)
    assert "has 1,281,166 training images" in refusal(lambda: check_counts(ilsvrc({3: -1}), tree))
    assert "class 'n00000003' has 1382 images in train, ILSVRC2012 has 732 to 1300" in refusal(
        lambda: check_counts(ilsvrc({3: 100, 4: -100}), tree)
    )
    short = ilsvrc({})
    short["val"]["n00000007"] = 49
    assert "class 'n00000007' has 49 images in val, ILSVRC2012 has 50" in refusal(lambda: check_counts(short, tree))
    assert "has 3 classes, ILSVRC2012 has 1000" in refusal(lambda: prepare(tree, tmp_path, [16]))
    assert not list(tmp_path.iterdir())


def test_the_command(tree: Path, tmp_path: Path) -> None:
    run = CliRunner().invoke
    common = ["prepare", str(tree), "--to", str(tmp_path / "s"), "--any-counts"]
    dry = run(command, [*common, "--dry-run", "--json", "--sizes", "512"])
    assert json.loads(dry.stdout) == {"classes": 3, "images": 24, "bytes": {"512": 24 * 3 * 512 * 512}}
    assert not (tmp_path / "s").exists()
    done = run(command, [*common, "--sizes", "16,8"])
    assert done.exit_code == 0, done.output
    assert "18 images for train, 6 images for val" in done.stdout
    assert "3 classes, at 8, 16 px" in done.stdout
    wrong = run(command, ["prepare", str(tree), "--to", str(tmp_path / "s"), "--sizes", "big"])
    assert isinstance(wrong.exception, UserError)
