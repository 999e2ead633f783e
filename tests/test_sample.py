"""`sample`: what is written, with which labels, rounding and noise, and that an interrupted run goes on where it stopped."""

from __future__ import annotations

import csv
import json
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from pagoda_bench.artifacts.context import StageContext
from pagoda_bench.artifacts.store import Store
from pagoda_bench.cli import main as cli
from pagoda_bench.diffusion.edm import one_step
from pagoda_bench.errors import UserError
from pagoda_bench.pagoda import sampling
from pagoda_bench.pagoda.importing import recipe_of, run
from pagoda_bench.pagoda.rejection import FAR
from pagoda_bench.recipes.data import EmbeddedData
from pagoda_bench.recipes.imported import ImportedHeun, ImportedOneStep, SampleProtocol, Samples
from pagoda_bench.recipes.registry import read_recipe
from pagoda_bench.recipes.stages import RealImages, UNetConfig
from pagoda_bench.sampling.noise import noise
from tests.official import fill, filled_net

NET = UNetConfig(resolution=8, channels=8, encoder=(1, 2), attention=(4,), head_channels=8, classes=3)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("PAGODA_BENCH_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("pagoda_bench.resources.released_roots", list)
    return Store(tmp_path / "store")


@pytest.fixture
def imported(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A tiny network in the store under the name of a published one."""
    monkeypatch.setattr("pagoda_bench.pagoda.importing.PUBLISHED", {"pagoda-64": (NET,), "edm-openai-64": (NET,)})
    path = tmp_path / "weights.safetensors"
    save_file(fill(filled_net(NET).state_dict()), path)
    made = {}
    for name in ("pagoda-64", "edm-openai-64"):
        recipe = recipe_of(path, name)  # type: ignore[arg-type]
        with store.making(recipe, data={recipe.digest: path}) as context:
            run(recipe, context)
        made[name] = recipe
    return made


def command(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return code, out, err


def expected(first: int, n: int, labels: np.ndarray, seed: int = 0) -> torch.Tensor:
    z = 80 * torch.from_numpy(noise(np.arange(first, first + n), (3, 8, 8), seed))
    with torch.inference_mode():
        return one_step(filled_net(NET), z, torch.from_numpy(labels))


def test_a_folder_of_images_with_labels_and_protocol(tmp_path: Path, imported: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    code, printed, err = command(capsys, "sample", "pagoda-64", "--n", 7, "--first", 4, "--out", out)
    assert (code, printed.strip()) == (0, str(out)), err
    assert sorted(p.name for p in out.glob("*.png")) == [f"{i:06d}.png" for i in range(4, 11)]
    labels = np.arange(4, 11) % 3
    with open(out / "labels.csv", newline="") as file:
        assert [(int(r["index"]), int(r["label"])) for r in csv.DictReader(file)] == list(
            zip(range(4, 11), labels, strict=True)
        )
    exact = (expected(4, 7, labels).clamp(-1, 1) + 1) * 127.5
    for i in range(7):
        with Image.open(out / f"{i + 4:06d}.png") as image:
            found = np.asarray(image).astype(np.float64)
        assert np.abs(found - exact[i].permute(1, 2, 0).numpy()).max() < 0.51
    facts = json.loads((out / "samples.json").read_text())
    assert facts["protocol"] == {
        "labels": "balanced over 3 classes",
        "rounding": "nearest",
        "noise": "one stream for each index, seed 0",
        "precision": "float32",
        "device": "cpu",
        "batch": 64,
    }
    assert facts["nfe"] == 1
    assert facts["recipe"]["generator"]["of"]["digest"] == imported["pagoda-64"].digest


def test_the_official_protocol_in_one_file(tmp_path: Path, imported: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "official.npz"
    options = ("--labels", "random", "--rounding", "truncate", "--seed", 5)
    assert command(capsys, "sample", "pagoda-64", "--n", 70, *options, "--out", out)[0] == 0
    with np.load(out) as stored:
        images, labels, protocol = stored["arr_0"], stored["arr_1"], json.loads(str(stored["protocol"]))
    assert (images.shape, images.dtype, labels.shape, labels.dtype) == ((70, 8, 8, 3), np.uint8, (70,), np.int64)
    assert protocol["recipe"]["protocol"] == {
        "labels": "random",
        "rounding": "truncate",
        "seed": 5,
        "precision": "float32",
        "reject": None,
    }
    exact = ((expected(0, 70, labels, seed=5).clamp(-1, 1) + 1) * 127.5).permute(0, 2, 3, 1).numpy()
    gap = exact - images
    assert -0.01 < gap.min() < gap.max() < 1.01  # cut off, never rounded up
    assert gap.mean() > 0.2
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".off")) == []


def test_truncation_and_rounding_differ_where_they_should() -> None:
    x = torch.tensor([-1.2, -1.0, 0.0, 0.999, 1.0, 1.5, 126.6 / 127.5 - 1]).view(1, 1, 1, -1).expand(1, 3, 1, -1)
    assert sampling.to_bytes(x, "nearest")[0, 0, :, 0].tolist() == [0, 0, 128, 255, 255, 255, 127]
    assert sampling.to_bytes(x, "truncate")[0, 0, :, 0].tolist() == [0, 0, 127, 254, 255, 255, 126]


def test_labels_belong_to_their_index() -> None:
    balanced, random_, other = (SampleProtocol(labels=k, seed=s) for k, s in (("balanced", 0), ("random", 0), ("random", 1)))
    indices = np.arange(3000)
    assert Counter(sampling.labels_of(indices, 10, balanced).tolist()) == dict.fromkeys(range(10), 300)
    drawn = sampling.labels_of(indices, 10, random_)
    assert np.array_equal(drawn[[2999, 5, 17]], sampling.labels_of(np.array([2999, 5, 17]), 10, random_))
    assert not np.array_equal(drawn, sampling.labels_of(indices, 10, other))
    counts = np.bincount(drawn, minlength=10)
    assert counts.min() != counts.max()
    assert float(((counts - 300) ** 2 / 300).sum()) < 27.9  # chi square with 9 degrees of freedom, one in a thousand


class Counting:
    """Images that show their index; fails after `limit` batches, as a kill would."""

    resolution, classes, parameters = 2, 3, 0

    def __init__(self, limit: int = 10**9) -> None:
        self.limit, self.asked = limit, 0

    def sample(self, indices: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, int]:
        if self.asked == self.limit:
            raise KeyboardInterrupt
        self.asked += 1
        return np.broadcast_to(indices.astype(np.uint8)[:, None, None, None], (len(indices), 2, 2, 3)).copy(), 1


@pytest.mark.parametrize("name", ["out.npz", "out"])
def test_an_interrupted_run_goes_on(name: str, tmp_path: Path, imported: Any) -> None:
    recipe = Samples(generator=ImportedOneStep(of=imported["pagoda-64"]), n=200)
    write = sampling.to_npz if name.endswith("npz") else sampling.to_folder
    seen: list[tuple[int, int]] = []
    with pytest.raises(KeyboardInterrupt):
        write(recipe, Counting(limit=2), tmp_path / name, lambda *done: seen.append(done))
    assert seen == [(64, 200), (128, 200)]
    assert not (tmp_path / "out.npz").exists()
    source = Counting()
    write(recipe, source, tmp_path / name, lambda *done: None)
    assert source.asked == 2  # of four batches
    if name == "out":
        pictures = sorted((tmp_path / name).glob("*.png"))
        values = [int(np.asarray(Image.open(p))[0, 0, 0]) for p in pictures]
        assert json.loads((tmp_path / name / "samples.json").read_text())["nfe"] == 1
    else:
        with np.load(tmp_path / name) as stored:
            values = stored["arr_0"][:, 0, 0, 0].tolist()
    assert values == list(range(200))


def test_a_folder_whose_images_were_all_there_still_says_what_one_takes(tmp_path: Path, imported: Any) -> None:
    """Stopped after the last image: one batch is drawn again to count, and nothing once that is known."""
    out = tmp_path / "out"
    recipe = Samples(generator=ImportedOneStep(of=imported["pagoda-64"]), n=70)
    sampling.to_folder(recipe, Counting(), out, lambda *done: None)
    facts = json.loads((out / "samples.json").read_text())
    (out / "samples.json").write_text(json.dumps({**facts, "nfe": None}))
    for asked in (1, 0):
        source = Counting()
        sampling.to_folder(recipe, source, out, lambda *done: None)
        assert source.asked == asked
        assert json.loads((out / "samples.json").read_text()) == facts


def test_a_folder_with_something_else_is_left_alone(tmp_path: Path, imported: Any) -> None:
    recipe = Samples(generator=ImportedOneStep(of=imported["pagoda-64"]), n=2)
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(UserError, match="holds other files"):
        sampling.to_folder(recipe, Counting(), tmp_path, lambda *done: None)
    out = tmp_path / "out"
    sampling.to_folder(recipe, Counting(), out, lambda *done: None)
    with pytest.raises(UserError, match="the same command as before"):
        sampling.to_folder(recipe.model_copy(update={"n": 3}), Counting(), out, lambda *done: None)


def test_a_diffusion_model_takes_many_evaluations(tmp_path: Path, imported: Any, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a.npz"
    assert command(capsys, "sample", "edm-openai-64", "--n", 2, "--points", 3, "--out", out)[0] == 0
    with np.load(out) as stored:
        facts = json.loads(str(stored["protocol"]))
    assert facts["nfe"] == 5
    assert facts["recipe"]["generator"] == ImportedHeun(of=imported["edm-openai-64"], points=3).to_dict()


def test_names_keys_and_files_mean_the_same(
    tmp_path: Path, store: Store, imported: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = imported["pagoda-64"]
    (tmp_path / "generator.json").write_text(json.dumps(ImportedOneStep(of=recipe).to_dict()))
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    names = ("pagoda-64", f"imported/{recipe.key[:8]}", tmp_path / "generator.json", tmp_path / "recipe.json")
    keys = set()
    for number, name in enumerate(names):
        code, _, err = command(capsys, "sample", name, "--n", 1, "--out", tmp_path / str(number))
        assert code == 0, err
        keys.add(json.loads((tmp_path / str(number) / "samples.json").read_text())["key"])
    assert len(keys) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("pagoda-128",), "no artifact 'pagoda-128'"),
        (("imported/",), "means 2 artifacts"),
        (("pagoda-64", "--points", 5), "takes one step"),
        (("pagoda-64", "--device", "nowhere"), "--device nowhere"),
        (("missing.json",), "cannot read missing.json"),
    ],
)
def test_mistakes_take_one_line(
    arguments: tuple[object, ...], words: str, tmp_path: Path, imported: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = command(capsys, "sample", *arguments, "--n", 1, "--out", tmp_path / "out")
    assert (code, len(err.splitlines())) == (2, 1)
    assert words in err


def test_half_the_precision_is_close(imported: Any, store: Store) -> None:
    folder = store.find(imported["pagoda-64"])
    assert folder is not None
    context = StageContext(folder.path, folder.path, {imported["pagoda-64"].key: folder.path})
    indices = np.arange(4)
    generator = ImportedOneStep(of=imported["pagoda-64"])
    full, half = (
        sampling.sampler(generator, SampleProtocol(precision=p), context).sample(indices, indices % 3)[0].astype(int)  # type: ignore[arg-type]
        for p in ("float32", "bfloat16")
    )
    assert 0 < np.abs(full - half).mean() < 8


def test_a_set_of_samples_is_a_stage_too(tmp_path: Path, store: Store, imported: Any) -> None:
    recipe = Samples(generator=ImportedOneStep(of=imported["pagoda-64"]), n=3)
    assert recipe.inputs() == [imported["pagoda-64"]]
    with store.making(recipe) as context:
        assert context is not None
        sampling.run(recipe, context)
    artifact = store.find(recipe)
    assert artifact is not None
    assert len(list(artifact.path.glob("*.png"))) == 3
    assert read_recipe(artifact.path / "recipe.json") == recipe


def test_what_the_options_cannot_reach_is_refused(tmp_path: Path) -> None:
    generator = RealImages(data=EmbeddedData(master=8), at=8)
    context = StageContext(tmp_path, tmp_path)
    assert sampling.sampler(generator, SampleProtocol(labels="random"), context).resolution == 8
    for other in ({"rounding": "truncate"}, {"seed": 1}, {"precision": "bfloat16"}):
        with pytest.raises(UserError, match="leave these options away"):
            sampling.sampler(generator, SampleProtocol.load(other), context)


# Rejection (tests/test_rejection.py has which candidates are kept)


@pytest.mark.parametrize("name", ["out.npz", "out"])
def test_the_command_keeps_what_a_user_s_classifier_likes(
    name: str,
    tmp_path: Path,
    store: Store,
    imported: Any,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Classes by brightness: class 0 dark, class 2 bright. Two in three of a hundred candidates a class are kept."""

    def judge(images: np.ndarray) -> np.ndarray:
        light = images.astype(float).mean((1, 2, 3)) / 20
        return np.stack([-light, 0 * light, light], 1)

    module = types.ModuleType("my_judge")
    module.judge = judge  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "my_judge", module)
    out = tmp_path / name
    command_line = ("sample", "pagoda-64", "--n", 150, "--reject", 1, "--classifier", "my_judge:judge", "--out", out)
    code, _, err = command(capsys, *command_line)
    assert code == 0, err
    if name == "out":
        facts = json.loads((out / "samples.json").read_text())
        images = np.stack([np.asarray(Image.open(p)) for p in sorted(out.glob("*.png"))])
        assert [line.split(",")[0] for line in (out / "labels.csv").read_text().split()[1:]] == [str(i) for i in range(150)]
    else:
        with np.load(out) as stored:
            images, facts = stored["arr_0"], json.loads(str(stored["protocol"]))
            assert np.array_equal(stored["arr_1"], np.arange(150) % 3)
    assert facts["nfe"] == 2  # one evaluation a candidate
    assert facts["protocol"]["candidates"] == 300
    assert facts["protocol"]["rejection"].startswith("the 50 of every 100 of a class")
    assert facts["recipe"]["protocol"]["reject"] == {"ratio": 1.0, "classifier": "my_judge:judge", "group": 50}
    folder = store.find(imported["pagoda-64"])
    assert folder is not None
    plain = sampling.sampler(
        ImportedOneStep(of=imported["pagoda-64"]),
        SampleProtocol(),
        StageContext(folder.path, folder.path, {imported["pagoda-64"].key: folder.path}),
    )
    for label in range(3):
        indices = np.concatenate([np.arange(50) * 3 + label, FAR + np.arange(50) * 3 + label])
        found, _ = plain.sample(indices, np.full(100, label))
        p = torch.from_numpy(judge(found)).log_softmax(1)[:, label]
        best = np.sort(torch.sort(p, descending=True, stable=True).indices[:50].numpy())
        off = np.abs(images[label::3].astype(int) - found[best]).reshape(50, -1).max(1)
        assert (off > 1).sum() <= 2  # batches of another size round differently, and may turn a near tie


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--reject", 0.5, "--labels", "random", "--classifier", "a:b"), "balanced labels"),
        (("--reject", 0.5), "trained beside none"),
        (("--reject", 0.5, "--classifier", "pagoda-64"), "pagoda-64 is none"),
        (("--reject", 0.5, "--classifier", "not_there:f"), "cannot be imported"),
        (("--reject", 0.001, "--classifier", "a:b"), "adds no candidate"),
        (("--classifier", "a:b"), "give --reject RATIO too"),
        (("--reject", 0), "--reject"),
    ],
)
def test_mistakes_of_rejection_take_one_line(
    options: tuple[object, ...],
    words: str,
    tmp_path: Path,
    imported: Any,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, err = command(capsys, "sample", "pagoda-64", *options, "--n", 1, "--out", tmp_path / "out")
    assert (code, len(err.splitlines())) == (2, 1), err
    assert words in err
