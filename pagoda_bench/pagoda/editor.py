"""From names to edited images: a one-step generator and its teacher out of the store, images out of files or the data set, and
what `editing` makes of them as pictures, one npz and a note of what was done."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pagoda_bench.artifacts.checkpoint import save_atomic, write_json
from pagoda_bench.data import open_dataset
from pagoda_bench.data.containers import BadFile
from pagoda_bench.data.decode import decode
from pagoda_bench.data.resize import center_crop_box
from pagoda_bench.diffusion import edm
from pagoda_bench.errors import UserError, nearest
from pagoda_bench.nets.features import from_network, to_network
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda import generate, released
from pagoda_bench.pagoda.editing import Encoder
from pagoda_bench.recipes.base import Recipe
from pagoda_bench.recipes.data import DataConfig, Split
from pagoda_bench.recipes.imported import Imported, ImportedHeun, ImportedOneStep
from pagoda_bench.recipes.stages import EDM, Distill, Generator, Grow, Heun, OneStep, Pairs
from pagoda_bench.sampling.counting import Evaluations, count_evaluations
from pagoda_bench.sampling.generators import load

BATCH = 64
Pixels = NDArray[np.uint8]  # (N, R, R, 3)


def teacher_of(found: Generator | Recipe) -> EDM | Imported | None:
    """The diffusion model behind a generator, pairs, or the model itself; None where a recipe names none."""
    recipe = found.of if isinstance(found, (OneStep, Heun, ImportedHeun)) else found
    if isinstance(recipe, (Distill, Grow)):
        recipe = recipe.pairs
    if isinstance(recipe, Pairs):
        recipe = recipe.teacher
    if isinstance(recipe, EDM) or (isinstance(recipe, Imported) and not recipe.one_step):
        return recipe
    return None


def denoiser(teacher: EDM | Imported, ctx: Any) -> tuple[UNet, Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """The teacher's network, and `denoise(x, sigma, labels)` by it."""
    if isinstance(teacher, Imported):
        net = released.load(teacher, ctx)
        return net, released.denoiser(teacher, net)
    net = generate.load(teacher, ctx)
    return net, partial(edm.denoise, net)


def how_encoded(generator: Generator) -> dict[str, Any]:
    """Solver, points and clamp of the pairs that a generator was trained on; of released weights, the official code's."""
    pairs = generator.of.pairs if isinstance(generator, OneStep) else None
    if pairs is None or type(pairs) is not Pairs:
        return {"solver": "heun", "points": 40, "clamp": True}
    return {"solver": pairs.solver, "points": pairs.points, "clamp": pairs.clamp}


@dataclass
class Editor:
    """E and G of one generator, on one device, and how often each was called."""

    encoder: Encoder
    generator: Callable[[Tensor, Tensor], Tensor]
    nets: tuple[UNet, UNet]  # the teacher's, the generator's

    @property
    def sizes(self) -> tuple[int, int]:
        """Of the latent and of what is generated, in pixels."""
        return self.nets[1].config.resolution, self.nets[1].config.output_resolution

    @contextmanager
    def counting(self) -> Iterator[tuple[Evaluations, Evaluations]]:
        """Inside the block no gradients are kept, and the evaluations of the teacher and of the generator are counted."""
        with torch.inference_mode(), count_evaluations(self.nets[0]) as e, count_evaluations(self.nets[1]) as g:
            yield e, g


def open_editor(generator: Generator, teacher: EDM | Imported, how: dict[str, Any], ctx: Any, device: str = "cpu") -> Editor:
    """`how` is what `Encoder` takes beside the denoiser."""
    found, (net, denoise) = load(generator, ctx), denoiser(teacher, ctx)
    if not isinstance(generator, (OneStep, ImportedOneStep)) or not isinstance(found, generate.NoiseSampler):
        raise UserError(f"a generator of kind '{generator.kind}' takes more than a latent: editing needs a one-step generator")
    makes, takes = net.config, found.net.config
    if (makes.output_resolution, makes.classes) != (takes.resolution, takes.classes):
        raise UserError(
            f"the teacher makes {makes.output_resolution} px of {makes.classes} classes, the generator's latents are of "
            f"{takes.resolution} px and {takes.classes} classes: give --teacher the model that it was distilled from"
        )
    net.to(device)
    found.net.to(device)
    return Editor(Encoder(denoise, **how), found.draw, (net, found.net))


def from_files(paths: Sequence[Path], resolution: int) -> Pixels:
    """Image files as squares of `resolution` px: the centre, box-resized. `UserError` names one that cannot be used."""
    images = []
    for path in paths:
        try:
            images.append(center_crop_box(decode(path.read_bytes()), resolution))
        except OSError as error:
            raise UserError(f"cannot read {path}: {error.strerror}") from None
        except BadFile as error:
            raise UserError(f"{path} {error}") from None
    return np.stack(images)


def from_data(
    config: DataConfig, indices: Sequence[int], resolution: int, split: Split, ctx: Any
) -> tuple[Pixels, NDArray[np.int64]]:
    """Images of the data set and their labels."""
    data = open_dataset(config, ctx.data_path)
    size, numbers = data.size(split), np.array(indices, np.int64)
    if size is not None and max(indices) >= size:
        raise UserError(f"--index {max(indices)}: the {split} split has {size:,} images, numbered from 0")
    return data.images(numbers, resolution, split), data.labels(numbers, split)


def class_names(config: DataConfig | None, classes: int, ctx: Any) -> tuple[str, ...]:
    """The names of the classes where the data have such; else their numbers."""
    found = open_dataset(config, ctx.data_path).classes if config is not None else ()
    return tuple(found) if len(found) == classes else tuple(map(str, range(classes)))


def label_of(text: str, names: Sequence[str]) -> int:
    """The label of a class by its number or its name."""
    if text in names:
        return list(names).index(text)
    if text.isdecimal() and int(text) < len(names):
        return int(text)
    raise UserError(f"unknown class '{text}'{nearest(text, names)}: give a name, or a number below {len(names)}")


def mask_of(what: str, resolution: int) -> NDArray[np.bool_]:
    """(R, R), True where pixels are known. `what` is filled in: left, right, top, bottom, centre, or an image file whose light
    parts are."""
    known, half, quarter = np.ones((resolution, resolution), bool), resolution // 2, resolution // 4
    everything, middle = slice(None), slice(quarter, resolution - quarter)
    sides = {
        "left": (everything, slice(half)),
        "right": (everything, slice(half, None)),
        "top": (slice(half), everything),
        "bottom": (slice(half, None), everything),
        "centre": (middle, middle),
    }
    if what in sides:
        known[sides[what]] = False
    else:
        if not Path(what).is_file():
            raise UserError(f"--fill {what}: no such file; give one, or one of {', '.join(sides)}")
        known = from_files([Path(what)], resolution)[0].mean(-1) < 128
    if known.all() or not known.any():
        raise UserError(f"--fill {what}: {'nothing' if known.all() else 'everything'} would be filled in")
    return known


def in_batches(function: Callable[..., Tensor], *arrays: Tensor) -> Tensor:
    """`function` on batches of the rows of `arrays`, results joined."""
    parts = [function(*(a[i : i + BATCH] for a in arrays)) for i in range(0, len(arrays[0]), BATCH)]
    return torch.cat(parts)


def claim(folder: Path) -> None:
    """Makes the folder of an edit. `UserError` where it cannot be made, or holds anything but an earlier edit."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = [p.name for p in folder.iterdir() if not p.name.startswith(".") and not (folder / "edit.json").is_file()]
    except OSError as error:
        raise UserError(f"--out {folder} cannot be used ({error.strerror}): choose another folder") from None
    if others:
        raise UserError(f"{folder} holds other files ({min(others)}): give an empty folder")


def write(
    folder: Path, columns: Sequence[Pixels], results: Sequence[int], labels: NDArray[np.int64], about: dict[str, Any]
) -> None:
    """`columns` are images of one size or smaller, one row an edited image; those numbered in `results` were made here.

    grid.png holds all of them, smaller ones by pixel repetition; ROW-COLUMN.png and edits.npz (`arr_0` uint8 NHWC, `arr_1`
    labels, row by row) hold the results; edit.json is `about`.
    """
    claim(folder)
    size = max(column.shape[1] for column in columns)
    large = [c.repeat(size // c.shape[1], 1).repeat(size // c.shape[1], 2) for c in columns]
    grid = np.concatenate([np.concatenate(list(column), 0) for column in large], 1)
    save_atomic(folder / "grid.png", partial(Image.fromarray(grid).save, format="PNG"))
    made = np.stack([columns[i] for i in results], 1)
    for row, images in enumerate(made):
        for column, image in enumerate(images):
            save_atomic(folder / f"{row:03d}-{column:02d}.png", partial(Image.fromarray(image).save, format="PNG"))
    arrays: dict[str, NDArray[Any]] = {"arr_0": made.reshape(-1, *made.shape[2:]), "arr_1": labels.reshape(-1)}
    save_atomic(folder / "edits.npz", lambda path: _npz(path, arrays))
    write_json(folder / "edit.json", json.loads(json.dumps(about)))


def _npz(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    with path.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def shown(x: Tensor) -> Pixels:
    """(N, 3, R, R) in [-1, 1] as bytes, rounded."""
    return from_network(x.cpu())


def to_tensor(images: Pixels, device: str) -> Tensor:
    return to_network(images).to(device)
