"""The edits of `pagoda-bench edit`: images on a desk, with the networks that edit them, and a folder for what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagoda_bench.errors import UserError
from pagoda_bench.pagoda import editing
from pagoda_bench.pagoda import editor as tools
from pagoda_bench.pagoda.editing import Path as Way
from pagoda_bench.pagoda.editor import Editor, Pixels, in_batches, shown, to_tensor
from pagoda_bench.recipes.data import Split
from pagoda_bench.recipes.imported import Imported
from pagoda_bench.recipes.stages import EDM, Generator
from pagoda_bench.sampling.counting import Evaluations
from pagoda_bench.sampling.network import Draw

GREY = 128  # of what inpainting has to fill in


class Desk:
    """Images `high` at the generator's size and `low` at the teacher's, with `labels`; each method is one edit."""

    high: Pixels
    low: Pixels
    labels: NDArray[np.int64]

    def __init__(
        self,
        generator: Generator,
        teacher: EDM | Imported,
        editor: Editor,
        how: dict[str, Any],
        ctx: Any,
        out: Path,
        device: str = "cpu",
    ) -> None:
        self.generator, self.teacher, self.editor, self.how = generator, teacher, editor, how
        self.ctx, self.out, self.device = ctx, out, device
        self.data = getattr(teacher, "data", None)
        self.names = tools.class_names(self.data, editor.nets[1].config.classes, ctx)
        self.images: list[str] = []

    def take_data(self, indices: Sequence[int], split: Split) -> None:
        """Images of the teacher's data set. `UserError` where it has none: released weights do not know theirs."""
        if self.data is None:
            raise UserError("released weights do not say where their images are: give image files in the place of --index")
        (self.low, self.labels), (self.high, _) = (
            tools.from_data(self.data, indices, size, split, self.ctx) for size in self.editor.sizes
        )
        self.images = [f"{split} {index} of {self.data.describe()}" for index in indices]

    def take_files(self, paths: Sequence[Path], classes: Sequence[str]) -> None:
        """Image files of the given classes, one for all or one each."""
        if len(classes) not in (1, len(paths)):
            raise UserError(f"--label names {len(classes)} classes for {len(paths)} images: give one, or one for each")
        labels = [tools.label_of(text.strip(), self.names) for text in classes]
        self.low, self.high = (tools.from_files(paths, size) for size in self.editor.sizes)
        self.labels = np.array(labels * (len(paths) if len(labels) == 1 else 1), np.int64)
        self.images = [path.name for path in paths]

    def reconstruct(self) -> None:
        with self._working() as counted:
            x = in_batches(self._reconstructed, *self._inputs())
        psnr = editing.psnr(x.cpu(), to_tensor(self.high, "cpu"))
        self._write("reconstruct", [self.high, shown(x)], [1], self.labels, counted, psnr_db=[round(v, 3) for v in psnr])

    def super_resolve(self) -> None:
        """`UserError` for a generator that was not grown."""
        base, top = self.editor.sizes
        if top == base:
            raise UserError(f"this generator makes {top} px, as its teacher does: super-resolve needs a grown one")
        with self._working() as counted:
            x = in_batches(self._reconstructed, *self._inputs())
        self._write("super-resolve", [self.low, shown(x)], [1], self.labels, counted, size=[base, top])

    def transfer(self, classes: Sequence[str]) -> None:
        targets = [tools.label_of(text.strip(), self.names) for text in classes]
        image, labels = self._inputs()
        with self._working() as counted:
            made = [
                in_batches(
                    lambda x, y, target=target: editing.transfer(
                        self.editor.encoder, self.editor.generator, x, y, torch.full_like(y, target)
                    ),
                    image,
                    labels,
                )
                for target in targets
            ]
        columns = [self.high, *map(shown, made)]
        results = np.broadcast_to(np.array(targets), (len(image), len(targets)))
        self._write("transfer", columns, range(1, len(columns)), results, counted, to=[self.names[t] for t in targets])

    def interpolate(self, steps: int, path: Way) -> None:
        if len(self.images) % 2:
            raise UserError(f"interpolation goes from one image to another: give pairs of images, not {len(self.images)}")
        image, labels = self._inputs()
        fractions = [i / (steps - 1) for i in range(steps)]

        def way(a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor) -> Tensor:
            encode, generator = self.editor.encoder, self.editor.generator
            return torch.stack(editing.interpolate(encode, generator, (a, b), (of_a, of_b), fractions, path), 1)

        with self._working() as counted:
            made = in_batches(way, image[::2], image[1::2], labels[::2], labels[1::2])
        columns = [self.high[::2], *(shown(x) for x in made.unbind(1)), self.high[1::2]]
        ends = np.stack([self.labels[::2], self.labels[1::2]], 1)
        results = np.stack([ends[:, 0] if t < 0.5 else ends[:, 1] for t in fractions], 1)
        self._write("interpolate", columns, range(1, steps + 1), results, counted, steps=steps, path=path)

    def inpaint(self, fill: str, samples: int, turns: int, seed: int) -> None:
        """Noise of fill k of image i belongs to (seed, i, k) and the turn."""
        base, top = self.editor.sizes
        known = tools.mask_of(fill, top)
        mask = torch.from_numpy(known)[None, None].to(self.device)
        levels = [float(level) for level in editing.inpainting_levels(turns)]
        rows = np.repeat(np.arange(len(self.images)), samples)
        numbers = torch.arange(len(rows))

        def filled(x: Tensor, y: Tensor, which: Tensor) -> Tensor:
            noise = Draw(which.numpy(), y.cpu().numpy(), seed)
            normal = lambda: noise.normal(3, base, base).to(self.device)  # noqa: E731
            return editing.inpaint(self.editor.encoder, self.editor.generator, x, mask, y, levels, normal)

        with self._working() as counted:
            x = in_batches(filled, to_tensor(self.high[rows], self.device), self._labels()[rows], numbers)
        made = shown(x).reshape(len(self.images), samples, top, top, 3)
        given = np.where(known[..., None], self.high, np.uint8(GREY))
        about = {"fill": Path(fill).name, "samples": samples, "turns": turns, "levels": levels, "seed": seed}
        results = np.broadcast_to(self.labels[:, None], (len(self.images), samples))
        columns = [self.high, given, *(made[:, k] for k in range(samples))]
        self._write("inpaint", columns, range(2, samples + 2), results, counted, **about)

    def _working(self) -> AbstractContextManager[tuple[Evaluations, Evaluations]]:
        """Counts the evaluations inside, once the folder is sure to take what they make."""
        tools.claim(self.out)
        return self.editor.counting()

    def _inputs(self) -> tuple[Tensor, Tensor]:
        return to_tensor(self.low, self.device), self._labels()

    def _labels(self) -> Tensor:
        return torch.from_numpy(self.labels).to(self.device)

    def _reconstructed(self, x: Tensor, labels: Tensor) -> Tensor:
        return editing.reconstruct(self.editor.encoder, self.editor.generator, x, labels)

    def _write(
        self,
        verb: str,
        columns: Sequence[Pixels],
        results: Sequence[int],
        labels: NDArray[np.int64],
        counted: Any,
        **about: Any,
    ) -> None:
        made = len(columns[0]) * len(results)
        encoder, generator = (found.images for found in counted)
        of = getattr(self.generator, "of")  # noqa: B009 - of one-step generators
        said = {
            "edit": verb,
            "images": self.images,
            "classes": [self.names[label] for label in self.labels],
            **about,
            "encoder": {**self.how, "teacher": f"{self.teacher.kind}/{self.teacher.key}"},
            "generator": {"kind": self.generator.kind, "of": f"{of.kind}/{of.key}"},
            # of the networks, over everything; one result takes the mean of it
            "evaluations": {"teacher": encoder, "generator": generator, "results": made, "nfe": (encoder + generator) / made},
            "device": self.device,
            "torch": str(torch.__version__),
        }
        tools.write(self.out, columns, results, np.asarray(labels), said)
