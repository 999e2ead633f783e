"""Edits against a Gaussian, whose E and G have closed forms and undo each other; and the command on networks that were never
trained."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from pagoda_bench.artifacts.store import Store
from pagoda_bench.cli import main as cli
from pagoda_bench.diffusion.edm import karras_grid
from pagoda_bench.diffusion.solvers import invert
from pagoda_bench.nets.features import save_half
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda import editing
from pagoda_bench.pagoda.editing import Encoder
from pagoda_bench.recipes.base import walk
from tests import tiny_chain as tiny
from tests.official import fill

SIZE = 2  # pixels a side: 12 values an image
D = 3 * SIZE * SIZE


class Gaussian:
    """Data of class c are N(mean_c, S) in 12 dimensions. PF-ODE in closed form: x at sigma goes to 80 by
    mean + ((S + 80^2) / (S + sigma^2))^(1/2) (x - mean), in the eigenbasis of S; G goes from 80 to 0."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        a = torch.randn(D, D, generator=generator, dtype=torch.float64)
        self.covariance = a @ a.T / (8 * D) + 0.1 * torch.eye(D, dtype=torch.float64)
        self.values, self.vectors = torch.linalg.eigh(self.covariance)
        self.means = torch.linspace(-0.5, 0.5, D, dtype=torch.float64) * torch.tensor([[1.0], [-2.0]], dtype=torch.float64)

    def _scaled(self, x: Tensor, labels: Tensor, factors: Tensor) -> Tensor:
        mean = self.means[labels]
        out = mean + (x.flatten(1) - mean) @ self.vectors * factors @ self.vectors.T
        return out.view(x.shape)

    def encode(self, x: Tensor, labels: Tensor, sigma: float = 0.0) -> Tensor:
        return self._scaled(x, labels, ((self.values + 6400) / (self.values + sigma**2)).sqrt())

    def generate(self, z: Tensor, labels: Tensor) -> Tensor:
        return self._scaled(z, labels, (self.values / (self.values + 6400)).sqrt())

    def denoise(self, x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        mean = self.means[labels]
        factors = self.values / (self.values + sigma.view(-1, 1) ** 2)
        return (mean + ((x.flatten(1) - mean) @ self.vectors * factors) @ self.vectors.T).view(x.shape)


MODEL = Gaussian()


def images(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


ZEROS = torch.zeros(5, dtype=torch.int64)


def test_reconstruction_by_exact_maps_is_exact() -> None:
    x = images(5)
    assert torch.allclose(editing.reconstruct(MODEL.encode, MODEL.generate, x, ZEROS), x, atol=1e-12)


def test_the_encoder_is_the_closed_solution_and_starts_at_any_level() -> None:
    """Heun on 160 levels against the formula; from a level between two of the grid too; from 80 nothing is evaluated."""
    encoder = Encoder(MODEL.denoise, points=160, clamp=False)
    for sigma in (0.002, 0.3, 7.77):
        x = images(5) * max(0.5, sigma)
        exact = MODEL.encode(x, ZEROS, sigma)
        assert float((encoder(x, ZEROS, sigma) - exact).norm() / exact.norm()) < 2e-3
    calls: list[float] = []

    def counted(x: Tensor, sigma: Tensor, labels: Tensor) -> Tensor:
        calls.append(float(sigma[0]))
        return MODEL.denoise(x, sigma, labels)

    x = images(5)
    assert Encoder(counted, points=12)(x, ZEROS, 80.0) is x
    assert not calls
    grid = karras_grid(12)
    Encoder(counted, points=12)(x, ZEROS, float(grid[5]))
    assert len(calls) == 2 * 5
    whole = invert(lambda s, level: MODEL.denoise(s, level, ZEROS), x, grid, "heun")
    assert torch.equal(Encoder(MODEL.denoise, points=12)(x, ZEROS), whole)  # the latents of pairs


def test_transfer_moves_the_mean_as_computed_by_hand() -> None:
    """G(E(x, c), c') = x + (I - (S / (S + 80^2))^(1/2)) ... : the shift of the mean, less what the latent keeps of it."""
    x, target = images(5), torch.ones(5, dtype=torch.int64)
    moved = editing.transfer(MODEL.encode, MODEL.generate, x, ZEROS, target)
    gain = (MODEL.values / (MODEL.values + 6400)).sqrt()
    shift = MODEL.means[1] - MODEL.means[0]
    by_hand = (shift @ MODEL.vectors * (1 - gain)) @ MODEL.vectors.T
    assert torch.allclose((moved - x).flatten(1), by_hand.expand(5, D), atol=1e-12)
    assert float((by_hand - shift).abs().max()) < 0.05  # all but the whole shift


@pytest.mark.parametrize("path", ["spherical", "linear"])
def test_ends_are_the_images_themselves(path: Any) -> None:
    a, b = images(5), images(5, 1)
    first, middle, last = editing.interpolate(MODEL.encode, MODEL.generate, (a, b), (ZEROS, ZEROS + 1), (0, 0.5, 1), path)
    assert torch.allclose(first, a, atol=1e-10)
    assert torch.allclose(last, b, atol=1e-10)
    z = editing.between(MODEL.encode(a, ZEROS), MODEL.encode(b, ZEROS + 1), 0.5, path)
    assert torch.allclose(middle, MODEL.generate(z, ZEROS + 1))  # from the middle on, the second class


def test_the_spherical_way_turns_evenly_and_keeps_lengths() -> None:
    a, b = images(5) * 80, images(5, 1) * torch.tensor([1.0, 2, 3, 4, 5]).view(-1, 1, 1, 1)
    lengths = [v.flatten(1).norm(dim=1) for v in (a, b)]
    angle = torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).arccos()
    for t in (0.0, 0.25, 0.7, 1.0):
        z = editing.between(a, b, t)
        assert torch.allclose(z.flatten(1).norm(dim=1), (1 - t) * lengths[0] + t * lengths[1])
        turned = torch.nn.functional.cosine_similarity(a.flatten(1), z.flatten(1)).clamp(-1, 1).arccos()
        assert torch.allclose(turned, t * angle, atol=1e-6)
        straight = editing.between(a, b, t, "linear")
        assert torch.allclose(straight, (1 - t) * a + t * b)
    e = torch.eye(2, dtype=torch.float64).view(2, 1, 1, 2)
    assert torch.allclose(editing.between(e[:1], e[1:], 0.5), torch.full((1, 1, 1, 2), math.sqrt(0.5), dtype=torch.float64))
    assert float(editing.between(e[:1], e[1:], 0.5, "linear").norm()) == pytest.approx(math.sqrt(0.5))
    for same in (e[:1], 3 * e[:1], -e[:1], 0 * e[:1]):
        assert editing.between(e[:1], same, 0.5).isfinite().all()


def conditional(image: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the unknown values given the known ones, from the precision matrix."""
    u = ~known.expand(1, 3, SIZE, SIZE).flatten()
    precision = torch.linalg.inv(MODEL.covariance)
    covariance = torch.linalg.inv(precision[u][:, u])
    return MODEL.means[0][u] - covariance @ precision[u][:, ~u] @ (image.flatten()[~u] - MODEL.means[0][~u]), covariance


def test_inpainting_samples_the_conditional_and_keeps_what_is_known() -> None:
    n, known = 1000, torch.tensor([[True, False], [True, True]]).view(1, 1, SIZE, SIZE)
    image = images(1, 5) * 0.6
    generator = torch.Generator().manual_seed(9)

    def normal() -> Tensor:
        return torch.randn(n, 3, SIZE, SIZE, generator=generator, dtype=torch.float64)

    labels = torch.zeros(n, dtype=torch.int64)
    levels = [*editing.inpainting_levels(20), *[0.07] * 400]
    x = editing.inpaint(MODEL.encode, MODEL.generate, image.expand(n, -1, -1, -1), known, labels, levels, normal)
    assert torch.equal(x.where(known, 0), image.where(known, 0).expand_as(x))
    u = ~known.expand(1, 3, SIZE, SIZE).flatten()
    found, (mean, covariance) = x.flatten(1)[:, u], conditional(image, known)
    deviations = covariance.diagonal().sqrt()
    assert float(((found.mean(0) - mean) / deviations).abs().max()) < 0.12
    assert float(((MODEL.means[0][u] - mean) / deviations).abs().max()) > 0.5  # far from what it would be without the known
    assert torch.allclose(found.T.cov(), covariance, atol=0.15 * float(covariance.max()))


def test_without_noise_nothing_would_happen() -> None:
    known, image = torch.zeros(1, 1, SIZE, SIZE, dtype=torch.bool), images(5)
    known[..., 0] = True
    x = editing.inpaint(MODEL.encode, MODEL.generate, image, known, ZEROS, [0.002] * 5, lambda: torch.zeros_like(image))
    assert torch.allclose(x, image * known, atol=1e-4)


def test_a_grown_generator_sees_the_box_mean() -> None:
    """E of a state at the teacher's size, known pixels put back at the generator's."""
    seen: list[Tensor] = []

    def encode(x: Tensor, labels: Tensor, sigma: float) -> Tensor:
        seen.append(x)
        return x

    image = torch.arange(16.0).view(1, 1, 4, 4).expand(1, 3, 4, 4) / 16
    known = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    x = editing.inpaint(encode, lambda z, y: z.repeat_interleave(2, 2).repeat_interleave(2, 3), image, known, ZEROS[:1],
                        [1.0], lambda: torch.zeros(1, 3, 2, 2))  # fmt: skip
    assert torch.equal(x, image)
    assert seen[0][0, 0].tolist() == [[2.5 / 16, 4.5 / 16], [10.5 / 16, 12.5 / 16]]
    assert editing.psnr(image, image + 0.2) == pytest.approx([20.0])


# The command


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """The tiny chain with weights from a formula: editing needs networks, not good ones."""
    found = Store(tmp_path_factory.mktemp("formula"))
    for recipe in walk(tiny.GROWN):
        with found.making(recipe) as context:
            assert context is not None
            net = getattr(recipe, "net", None)
            if net is None:
                (context.out / "nothing.txt").write_text("for the tests")
            else:
                save_half(fill(UNet(net).state_dict()), context.out / "model.safetensors")
            context.record(training_flops=1.0)
    return found


def run(store: Store, capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = cli.main([*map(str, arguments), "--store", str(store.root)])
    out, err = capsys.readouterr()
    return code, out, err


def picture(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


GROWN, BASE = f"grow/{tiny.GROWN.key}", f"distill/{tiny.BASE.key}"


@pytest.mark.parametrize(
    ("arguments", "shape", "labels", "evaluations"),
    [
        (("reconstruct", GROWN, "--index", "0,11"), (2, 16), [0, 1], (2 * 4, 2)),
        (("super-resolve", GROWN, "--index", "4", "--points", 5, "--solver", "ddim"), (1, 16), [4], (4, 1)),
        (("transfer", BASE, "--index", "0,11", "--to", "3,disc on light"), (4, 8), [3, 1, 3, 1], (4 * 4, 4)),
        (("interpolate", GROWN, "--index", "0,3", "--steps", 3), (3, 16), [0, 3, 3], (2 * 4, 3)),
        (("inpaint", GROWN, "--index", "0,1", "--samples", 2, "--turns", 3), (4, 16), [0, 0, 1, 1], (4 * 6, 4 * 3)),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) and isinstance(value[0], str) else "",
)
def test_every_edit_writes_what_it_did(
    arguments: tuple[object, ...],
    shape: tuple[int, int],
    labels: list[int],
    evaluations: tuple[int, int],
    store: Store,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Pairs have 3 levels: 4 evaluations an inversion. Inpainting's three turns start at 80 (none), between, and at the end."""
    out = tmp_path / "out"
    code, printed, err = run(store, capsys, "edit", *arguments, "--out", out)
    assert (code, printed.strip()) == (0, str(out)), err
    n, size = shape
    with np.load(out / "edits.npz") as made:
        assert (made["arr_0"].shape, made["arr_0"].dtype) == ((n, size, size, 3), np.uint8)
        assert made["arr_1"].tolist() == labels
        first = made["arr_0"][0]
    assert len(list(out.glob("???-??.png"))) == n
    assert np.array_equal(picture(out / "000-00.png"), first)
    about = json.loads((out / "edit.json").read_text())
    assert about["edit"] == arguments[0]
    assert about["encoder"]["teacher"] == f"edm/{tiny.TEACHER.key}"
    assert f"{about['generator']['of']}" == arguments[1]
    counted = about["evaluations"]
    assert counted["generator"] == evaluations[1]
    assert counted["teacher"] == evaluations[0]
    assert counted["nfe"] == sum(evaluations) / n
    assert len(picture(out / "grid.png")) == size * (1 if arguments[0] == "interpolate" else len(about["images"]))


def test_inpainting_keeps_the_bytes_and_its_noise(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The mask is a file; each fill has its own noise, whatever else is filled in beside it."""
    rng = np.random.default_rng(0)
    photo = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    mask = np.zeros((16, 16), np.uint8)
    mask[4:9, 2:11] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    common = (GROWN, tmp_path / "photo.png", "--label", 2, "--fill", tmp_path / "mask.png", "--turns", 3)
    found = []
    for samples in (1, 2):
        out = tmp_path / f"out{samples}"
        code, _, err = run(store, capsys, "edit", "inpaint", *common, "--samples", samples, "--out", out)
        assert code == 0, err
        with np.load(out / "edits.npz") as made:
            found.append(made["arr_0"])
    for image in (found[0][0], *found[1]):
        assert np.array_equal(image[mask == 0], photo[mask == 0])
    assert np.abs(found[0][0].astype(int) - found[1][0]).max() <= 1
    assert np.abs(found[1][0].astype(int) - found[1][1]).max() > 8


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("reconstruct", GROWN), "give image files, or images of the data set"),
        (("reconstruct", GROWN, "no.png", "--index", "1"), "one of the two"),
        (("reconstruct", GROWN, "no.png"), "--label says"),
        (("reconstruct", GROWN, "no.png", "--label", "1"), "cannot read no.png"),
        (("reconstruct", GROWN, "no.png", "--label", "ring on drak"), "did you mean 'ring on dark'"),
        (("reconstruct", GROWN, "no.png", "--label", "1", "--split", "val"), "--split is of --index"),
        (("reconstruct", GROWN, "--index", "1", "--label", "1"), "--label is of image files"),
        (("reconstruct", GROWN, "--index", "x"), "'x' is no number"),
        (("reconstruct", f"edm/{tiny.TEACHER.key}", "--index", "1"), "needs a one-step generator"),
        (("reconstruct", f"pairs/{tiny.PAIRS.key}", "--index", "1"), "is no generator"),
        (("reconstruct", "table1:pagoda-65", "--index", "1"), "did you mean 'pagoda-64'"),
        (("reconstruct", "table1/smoke:pagoda-16", "--index", "1"), "which is not in the store"),
        (("transfer", GROWN, "--index", "1", "--to", "10"), "unknown class '10'"),
        (("interpolate", GROWN, "--index", "1,2,3"), "give pairs of images, not 3"),
        (("super-resolve", BASE, "--index", "1"), "needs a grown one"),
        (("inpaint", GROWN, "--index", "1", "--fill", "rihgt"), "no such file"),
        (("inpaint", GROWN, "--index", "1", "--device", "nowhere"), "--device nowhere"),
        (("reconstruct", GROWN, "--index", "9" * 30), "is no number of an image"),
        (("paint", GROWN), "did you mean 'inpaint'"),
    ],
)
def test_mistakes_take_one_line(
    arguments: tuple[object, ...], words: str, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run(store, capsys, "edit", *arguments, "--out", tmp_path / "out")
    assert (code, len(err.splitlines())) == (2, 1), err
    assert words in err
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_else_is_left_alone(store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    code, _, err = run(store, capsys, "edit", "reconstruct", BASE, "--index", 1, "--out", tmp_path)
    assert (code, "holds other files" in err) == (2, True)


def test_the_round_trip_of_a_teacher_on_the_command_line(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for name in (GROWN, f"pairs/{tiny.PAIRS.key}", f"edm/{tiny.TEACHER.key}"):
        code, out, err = run(store, capsys, "roundtrip", name, "--n", 3, "--points", "2,4", "--reference-points", 6)
        assert code == 0, err
        assert f"edm/{tiny.TEACHER.key}), 3 images" in out
        rows = [line.split() for line in out.splitlines()[2:]]
        assert [row[:3] for row in rows] == [["heun", "2", "5"], ["heun", "4", "13"], ["ddim", "2", "3"], ["ddim", "4", "7"]]
    code, out, _ = run(store, capsys, "roundtrip", GROWN, "--n", 3, "--points", 4, "--solvers", "heun", "--json")
    (row,) = json.loads(out)
    assert (row["solver"], row["evaluations"], row["latent_rms"]) == ("heun", 13, None)
    for arguments, words in (
        ((GROWN, "--points", "1"), "no number of noise levels"),
        ((GROWN, "--solvers", "euler"), "unknown solver 'euler'"),
        ((GROWN, "--label", "1"), "--label is of --images"),
        ((GROWN, "--images", "/", "--label", "1", "--n", "64"), "--n is of the data's own images"),
        ((f"features/{tiny.FEATURES.key}",), "is no diffusion model"),
    ):
        code, _, err = run(store, capsys, "roundtrip", *arguments)
        assert (code, len(err.splitlines()), words in err) == (2, 1, True), err
