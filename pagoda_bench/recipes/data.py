"""What images a stage sees. A data config identifies pixels, never a place on a disk."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pagoda_bench.recipes.base import Config

Split = Literal["train", "val"]

# Noise levels of a batch are drawn one from each of its strata, in the order of the images or in a random one. In order is
# right where images come in random order. The endless data have their classes in turn: there a class would meet every second
# stratum of an even batch and never the others (docs/embedded.md).
Strata = Literal["in_order", "shuffled"]


class DataConfig(Config):
    """A data set of square RGB images with one class label each."""

    def describe(self) -> str:
        return self.kind


class EmbeddedData(DataConfig, kind="embedded"):
    """The procedural data set: ten classes, unlimited, rendered at `master` px and box-downsampled to lower resolutions."""

    master: int = Field(64, ge=8, le=512)  # a power of two


class ImageData(DataConfig, kind="images"):
    """Photographs from a folder tree or a zip, centre-cropped to squares and box-resized to `master` px.

    `digest` is the SHA-256 over the sorted (name, content) pairs, so that the same images in a folder and in a zip are the
    same data. The place is given at run time (`--data PATH`) and never enters the identity.
    """

    digest: str
    master: int = Field(ge=1)
    classes: tuple[str, ...]
    name: str = "images"

    def describe(self) -> str:
        return self.name


class PreparedData(DataConfig, kind="prepared"):
    """What `pagoda-bench data prepare` made of an ILSVRC2012 tree: each image at every prepared size, by ADM's crop.

    `digest` is over the names of the classes, the labels and the SHA-256 of every file, in the order of the store; sizes can
    be added without changing it. The place is given at run time (`--data PATH`).
    """

    digest: str
    classes: int = Field(1000, ge=1)
    name: str = "imagenet"

    def describe(self) -> str:
        return self.name
