"""Data sets: random access to square images and their labels, by (split, index) alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from pagoda_bench.errors import UserError
from pagoda_bench.recipes.data import DataConfig, EmbeddedData, ImageData, PreparedData, Split

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Dataset", "open_dataset"]


class Dataset(Protocol):
    """Images with one class label each. The same index is always the same image; order and batching change nothing."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names; a label is an index into them."""

    def size(self, split: Split) -> int | None:
        """How many images there are; None when there is no end."""

    def images(self, indices: NDArray[np.int64], resolution: int, split: Split) -> NDArray[np.uint8]:
        """uint8 (N, resolution, resolution, 3): exact box means, rounded half to even, of the master resolution; of prepared
        data, the crop of each size."""

    def labels(self, indices: NDArray[np.int64], split: Split) -> NDArray[np.int64]:
        """int64 (N,)."""


def open_dataset(
    config: DataConfig,
    data_path: Callable[[str], Path] | None = None,
    progress: Callable[..., None] | None = None,
) -> Dataset:
    """The data set that `config` identifies. `data_path` says where the images of a digest lie.

    `progress(done, total, what=...)` is called while images are decoded for the first time.
    """
    if isinstance(config, EmbeddedData):
        from pagoda_bench.data.embedded import Embedded

        return Embedded(config)
    if isinstance(config, ImageData):
        from pagoda_bench.data.images import Images

        if data_path is None:
            raise UserError(f"the images of '{config.name}' are on your disk: say where with --data PATH")
        return Images(config, data_path(config.digest), progress=progress)
    if isinstance(config, PreparedData):
        from pagoda_bench.data.imagenet import Prepared

        if data_path is None:
            raise UserError(f"'{config.name}' is on your disk: say where 'data prepare' put it with --data PATH")
        return Prepared(config, data_path(config.digest))
    raise UserError(f"no data set can be opened from a config of the kind '{config.kind}' (known: embedded, images, prepared)")
