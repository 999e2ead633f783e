"""What a text-to-image row is asked for: the name of the sample's class in a template, or a caption of the data."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from baselines.pipelines.recipes import Prompts
from pagoda_bench.data import open_dataset
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.data import DataConfig
from pagoda_bench.sampling.generators import ByClass


class Texts:
    """`of(indices, labels)` gives one text a sample, a function of its index and label alone."""

    def __init__(self, config: Prompts, data: DataConfig, ctx: Any) -> None:
        """Raises `UserError` where the data have no captions, or no names of classes that one could say."""
        self.config, self.names = config, config.names
        self.data: Any = None
        if config.source == "captions":
            self.data = open_dataset(data, ctx.data_path)
            if not hasattr(self.data, "captions"):
                raise UserError(f"the data '{data.describe()}' have no captions: set prompts.source to classes")
            self.by_class = ByClass(self.data, "val")
            self.names = tuple(self.data.classes)
        elif not self.names:
            self.names = tuple(open_dataset(data, ctx.data_path).classes)
            if strange := next((name for name in self.names if not any(c.isalpha() for c in name) or _is_wordnet(name)), None):
                raise UserError(
                    f"the classes of '{data.describe()}' are called '{strange}' and the like, which says nothing to a text "
                    "encoder: set options.names to a text file of names, one a line in the order of the labels"
                )

    def of(self, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> list[str]:
        """Captions are those of the images that stand for real ones at these indices (`real` in a table)."""
        if self.config.source == "captions":
            images = self.by_class.indices(labels, indices // len(self.names), "far")
            found: list[str] = self.data.captions(images, "val")
            return found
        return [prompt(self.config.template, self.names[label]) for label in labels.tolist()]


def prompt(template: str, name: str) -> str:
    """The template with the first of a class's names ("tench, Tinca tinca" has two), underscores read as spaces."""
    return template.replace("{}", name.partition(",")[0].replace("_", " ").strip())


def _is_wordnet(name: str) -> bool:
    """Whether this is a WordNet number, as the folders of ILSVRC2012 are called ("n01440764")."""
    return len(name) == 9 and name[0] == "n" and name[1:].isdigit()
