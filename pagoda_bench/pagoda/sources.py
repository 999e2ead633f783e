"""Where the pairs of L_rec come from: data and their latents, or, for L_dstl, noise and the teacher's samples."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pagoda_bench.data import Dataset
from pagoda_bench.errors import UserError
from pagoda_bench.nets.features import to_network
from pagoda_bench.pagoda.pairs import Latents
from pagoda_bench.pagoda.teacher_pairs import TeacherImages, latents, weights
from pagoda_bench.recipes.stages import Distill, Grow, Pairs, TeacherPairs


class Source(Protocol):
    @property
    def used(self) -> int:
        """How many pairs there are to choose from."""

    def batch(self, rows: NDArray[np.int64], size: int) -> tuple[Tensor, Tensor, Tensor]:
        """Target images (N, 3, size, size) in [-1, 1], latents (N, 3, R, R) in units of sigma, labels (N,)."""


class DataPairs:
    """(x, E(x)) of the first `fraction` of the images, with their mirrors where the pairs have them. What is left out is
    left out of L_rec alone."""

    def __init__(self, recipe: Pairs, fraction: float, data: Dataset, ctx: Any) -> None:
        self.recipe, self.data = recipe, data
        self.latents = Latents(recipe, ctx, data)
        self.images = max(1, round(fraction * recipe.count))

    @property
    def used(self) -> int:
        return self.images * (2 if self.recipe.flip else 1)

    def batch(self, rows: NDArray[np.int64], size: int) -> tuple[Tensor, Tensor, Tensor]:
        numbers, mirrored = rows % self.images, rows >= self.images
        image = to_network(self.data.images(numbers, size, "train"))
        image = torch.where(torch.from_numpy(mirrored)[:, None, None, None], image.flip(3), image)
        z = torch.from_numpy(self.latents[numbers + self.recipe.count * mirrored])
        return image, z, torch.from_numpy(self.data.labels(numbers, "train"))


class TeacherSource:
    """(the teacher's sample of z, z)."""

    def __init__(self, recipe: TeacherPairs, fraction: float, ctx: Any) -> None:
        self.recipe, self.images = recipe, TeacherImages(recipe, ctx)
        self.used = max(1, round(fraction * recipe.count))

    def batch(self, rows: NDArray[np.int64], size: int) -> tuple[Tensor, Tensor, Tensor]:
        z, labels = latents(self.recipe, rows)
        return torch.from_numpy(self.images[rows]), z, labels


class GuidedSource(TeacherSource):
    """(the teacher's guided sample of z, z), and the guidance weight of each."""

    def __init__(self, recipe: TeacherPairs, ctx: Any) -> None:
        super().__init__(recipe, 1.0, ctx)

    def weights(self, rows: NDArray[np.int64]) -> Tensor:
        """(N,) float32."""
        w = weights(self.recipe, rows)
        assert w is not None  # the recipe of the student refuses samples that are not guided
        return w


def source_of(recipe: Distill | Grow, data: Dataset, ctx: Any) -> Source:
    """The pairs of a recipe. `UserError` where L_dstl is asked to grow: the teacher has no larger images."""
    if not isinstance(recipe.pairs, TeacherPairs):
        return DataPairs(recipe.pairs, recipe.loss.fraction, data, ctx)
    if isinstance(recipe, Grow):
        raise UserError("grow: noise-to-data pairs end at the teacher's resolution: distil with them, and grow with data pairs")
    return TeacherSource(recipe.pairs, recipe.loss.fraction, ctx)
