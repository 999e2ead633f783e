"""Images of somebody else's and of a program's, as rows: they score as what they are, and what is broken says so."""

from __future__ import annotations

import csv
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from toy_scale import VALUES, models, toy_scale

from baselines.samples import make, recipes
from baselines.samples.recipes import CommandImages, FromCommand, GivenImages
from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.recipes.stages import RealImages
from pagoda_bench.sampling.generators import load
from pagoda_bench.tables import lines, spec

N, SIZE = 20, 16
DATA = EmbeddedData(master=16)
INDICES = np.arange(N)


@pytest.fixture(scope="module")
def real() -> np.ndarray:
    source = load(RealImages(data=DATA, at=SIZE), StageContext(Path(), Path()))
    images, _ = source.sample(INDICES, INDICES % 10)
    return images


def ctx(folder: Path, inputs: dict[str, Path] | None = None) -> StageContext:
    return StageContext.for_test(folder / "out", folder / "work", inputs)


def sampled(generator: Any, folder: Path, inputs: dict[str, Path] | None = None) -> np.ndarray:
    source = load(generator, ctx(folder, inputs))
    images, nfe = source.sample(INDICES, INDICES % 10)
    assert (nfe, source.parameters, source.resolution) == (0, 0, SIZE)
    backwards, _ = source.sample(INDICES[::-1], INDICES[::-1] % 10)
    np.testing.assert_array_equal(backwards[::-1], images)
    return images


def write(place: Path, images: np.ndarray, labels: np.ndarray | None) -> Path:
    """A folder, or an npz, by the name of the place."""
    if place.suffix == ".npz":
        arrays: dict[str, Any] = {"arr_0": images} | ({} if labels is None else {"arr_1": labels})
        np.savez(place, **arrays)
        return place
    place.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(place / f"{index:06d}.png")
    if labels is not None:
        with (place / "labels.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("index", "label"), *enumerate(labels.tolist())])
    return place


@pytest.mark.parametrize("name", ["images.npz", "images"])
@pytest.mark.parametrize("labelled", [True, False])
def test_images_are_what_they_were(name: str, labelled: bool, real: np.ndarray, tmp_path: Path) -> None:
    """Written in another order, labels bring them back to their classes."""
    order = np.argsort(INDICES % 7, kind="stable") if labelled else INDICES
    place = write(tmp_path / name, real[order], (INDICES % 10)[order] if labelled else None)
    generator = recipes.samples(toy_scale(samples={"samples": str(place)}), SIZE)
    images = sampled(generator, tmp_path / "run")
    assert generator.guided_by == "not stated"
    if not labelled:
        np.testing.assert_array_equal(images, real)
    else:
        labels = INDICES % 10
        for label in range(10):
            theirs, ours = ({a.tobytes() for a in part[labels == label]} for part in (images, real))
            assert theirs == ours


def test_the_identity_is_the_content(real: np.ndarray, tmp_path: Path) -> None:
    first, second = write(tmp_path / "a.npz", real, None), write(tmp_path / "b.npz", real, None)
    at = [recipes.samples(toy_scale(samples={"samples": str(p)}), SIZE) for p in (first, second)]
    assert at[0].to_dict() | {"place": ""} == at[1].to_dict() | {"place": ""}
    write(second, real[::-1], None)
    with pytest.raises(UserError, match="holds other images now"):
        load(at[1], ctx(tmp_path))
    second.unlink()
    with pytest.raises(UserError, match=r"not available: .* are gone"):
        load(at[1], ctx(tmp_path))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no archive", "no npz with an array 'arr_0'"),
        ({"images": np.zeros((2, 16, 16, 3), np.uint8)}, "no npz with an array 'arr_0'"),
        ({"arr_0": np.zeros((2, 16, 16, 3), np.float32)}, "is float32 of shape"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.uint8)}, "the row is at 16 px"),
        ({"arr_0": np.zeros((2, 16, 16, 3), np.uint8), "arr_1": np.zeros(3, np.int64)}, "3 labels, 2 images"),
        ({"arr_0": np.array([{}, {}])}, "no npz with an array"),  # a pickle: never opened
    ],
)
def test_a_file_that_is_no_set_of_images_is_refused(content: Any, words: str, tmp_path: Path) -> None:
    place = tmp_path / "images.npz"
    if isinstance(content, bytes):
        place.write_bytes(content)
    else:
        np.savez(place, **content)
    generator = recipes.samples(toy_scale(samples={"samples": str(place)}), SIZE)
    with pytest.raises(UserError, match=words) as refused:
        load(generator, ctx(tmp_path))
    assert "\n" not in str(refused.value)


def test_a_folder_that_is_no_set_of_images_is_refused(real: np.ndarray, tmp_path: Path) -> None:
    place = write(tmp_path / "images", real[:3], None)
    generator = GivenImages(digest=recipes.digest(place), size=SIZE, place=str(place))
    with pytest.raises(UserError, match="has 3 images, number 20 is asked for"):
        sampled(generator, tmp_path)
    (place / "000001.png").write_bytes(b"\x89PNG broken")
    with pytest.raises(UserError, match=r"000001\.png cannot be read as an image"):
        load(GivenImages(digest=recipes.digest(place), size=SIZE, place=str(place)), ctx(tmp_path))
    Image.new("RGB", (8, 8)).save(place / "000001.png")
    with pytest.raises(UserError, match="give one size"):
        load(GivenImages(digest=recipes.digest(place), size=SIZE, place=str(place)), ctx(tmp_path))
    (tmp_path / "empty").mkdir()
    for missing in ("empty", "nowhere"):
        with pytest.raises(UserError, match=r"holds no images|no such file"):
            recipes.samples(toy_scale(samples={"samples": str(tmp_path / missing)}), SIZE)


PROGRAM = """
import csv, shutil, sys
from pathlib import Path
out, labels, source, n = sys.argv[1:]
lines = list(csv.DictReader(open(labels)))
assert len(lines) == int(n), lines
assert [int(line["label"]) for line in lines] == [i % 10 for i in range(int(n))]
for line in lines:
    name = f"{int(line['index']):06d}.png"
    shutil.copy(Path(source) / name, Path(out) / name)
    print("made", name)
"""


def command(program: Path, source: Path, **options: Any) -> FromCommand:
    line = f"{sys.executable} {program} {{out}} {{labels}} {source} {{n}}"
    return recipes.command(toy_scale(command={"command": line, "n": N, **options}), SIZE)  # type: ignore[return-value]


def test_a_program_makes_the_images(real: np.ndarray, tmp_path: Path) -> None:
    program, source = tmp_path / "program.py", write(tmp_path / "source", real, None)
    program.write_text(PROGRAM)
    generator = command(program, source)
    assert models(generator) == [generator.of]
    assert generator.guided_by == "not stated"
    make.run(generator.of, ctx(tmp_path))
    np.testing.assert_array_equal(sampled(generator, tmp_path, {generator.of.key: tmp_path / "out"}), real)
    # Another program under the same name is another row; a longer limit is not.
    assert command(program, source, minutes=3).of.key == generator.of.key
    program.write_text(PROGRAM + "\n")
    assert command(program, source).of.key != generator.of.key
    assert command(program, source, release="2").of.key != command(program, source).of.key


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import sys; sys.exit('no weights: download them')", "ended with code 1: no weights: download them"),
        ("pass", "holds no images"),
        ("import time; time.sleep(60)", "did not end within"),
    ],
)
def test_a_program_that_fails_says_why(program: str, words: str, tmp_path: Path) -> None:
    file = tmp_path / "program.py"
    file.write_text(program)
    recipe = command(file, tmp_path, minutes=0.03 if "sleep" in program else 5).of
    with pytest.raises(UserError, match=words):
        make.run(recipe, ctx(tmp_path))
    absent = CommandImages(command="no-such-program-here {out}", n=3, size=SIZE, classes=10)
    with pytest.raises(UserError, match="not available: the program 'no-such-program-here' cannot be started"):
        make.run(absent, ctx(tmp_path))


@pytest.mark.parametrize("line", ["", "make 'images", "make images"])
def test_a_command_that_cannot_be_is_refused(line: str) -> None:
    with pytest.raises(UserError, match="command: "):
        recipes.command(toy_scale(command={"command": line}), SIZE)
    with pytest.raises(UserError, match="unknown option 'sed'"):
        recipes.command(toy_scale(command={"command": "make {out}", "sed": 1}), SIZE)


def test_rows_name_them_in_a_line(real: np.ndarray, tmp_path: Path) -> None:
    place = write(tmp_path / "theirs.npz", real, None)
    rows = f"""
    table: mine
    title: Mine
    default_scale: toy
    rows:
      - {{id: theirs, label: Theirs, system: Theirs, samples: {place}, at: top}}
      - {{id: made, label: Made, system: Made, command: "make {{out}}", at: top, options: {{n: 40}}}}
    scales: {{}}
    """
    grid = spec.TableSpec.load({**yaml.safe_load(rows), "scales": {"toy": {k: v for k, v in VALUES.items() if k != "name"}}})
    table = spec.build(grid, spec.load_scale(grid, "toy"))
    assert [row.generator.kind for row in table.rows] == ["given-images", "from-command"]
    assert table.rows[1].generator.of.n == 40  # type: ignore[attr-defined]
    both = {"id": "x", "label": "X", "system": "X", "at": "top", "samples": "a", "command": "b"}
    with pytest.raises(UserError, match="give one of method, samples, command"):
        lines.RowSpec.load(both)
