"""Noise that belongs to the index of a sample, never to its batch or process."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def noise(indices: np.ndarray | Sequence[int], shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """Standard normal noise, (N, *shape) float32: row k depends on `seed` and `indices[k]` alone.

    Each row is the start of its own stream of Philox 4x64 (Salmon et al. 2011), whose 128-bit key is (seed, index), so any
    subset in any order gives the same rows. `seed` and the indices are integers in [0, 2^64).
    """
    keys = np.asarray(indices, dtype=np.uint64).tolist()
    rows = np.empty((len(keys), math.prod(shape)), dtype=np.float32)
    # One generator, set back to the start of another stream for each row: four times as fast as a new one each.
    philox = np.random.Philox(key=np.array([seed, 0], np.uint64))  # a list of large and small integers becomes floats
    generator = np.random.Generator(philox)
    start = philox.state
    key = start["state"]["key"]
    for row, index in zip(rows, keys, strict=True):
        key[1] = index
        philox.state = start
        generator.standard_normal(dtype=np.float32, out=row)
    return rows.reshape(len(keys), *shape)
