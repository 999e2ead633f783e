"""From what a user names, a path or an array, to a stream of images."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.archives import BY_SUFFIX
from pagoda_bench.metrics.inputs import Array, Crop, Files, Stream


def open_images(value: Any, crop: Crop | None = None) -> Stream:
    """The stream of a path (folder, zip, tar, npz, npy, parquet), of an array, or `value` itself when it is a stream."""
    if isinstance(value, Stream):
        return value
    if isinstance(value, np.ndarray):
        return Array(value)
    if not isinstance(value, (str, os.PathLike)):
        raise UserError(f"images must be a path or a uint8 array (N, H, W, 3), not {type(value).__name__}")
    path = Path(value).expanduser()
    name = path.name.lower()
    if not path.exists():
        raise UserError(f"{path} does not exist: give a folder, zip, tar, npz, npy or parquet file of images")
    for suffixes, opener in BY_SUFFIX.items():
        if name.endswith(suffixes):
            return opener(path, crop)
    return Files(path, crop)
