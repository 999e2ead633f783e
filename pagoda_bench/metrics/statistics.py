"""Reference statistics: means and covariances of features that somebody computed before, in the layouts that are published.

ADM, pytorch-fid, clean-fid, EDM   npz with `mu`, `sigma`; ADM's also with `mu_s`, `sigma_s` (sFID) and perhaps images `arr_0`
EDM2                               pickle {num_images, fid: {mu, sigma}, fd_dinov2: {mu, sigma}}
pagoda-bench stats                 npz as above, and `meta`: JSON that says which images, crop and extractor these are of
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pagoda_bench.artifacts.checkpoint import save_atomic
from pagoda_bench.errors import UserError
from pagoda_bench.metrics.archives import npz_headers, read_npz
from pagoda_bench.metrics.extractors.base import Extractor
from pagoda_bench.metrics.unpickle import read_pickle

VERSION = 1
PUBLISHED = {"pool3": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}  # names in an npz, by feature
PICKLED = {"fid": "pool3", "fd_dinov2": "cls"}  # names in EDM2's pickle
META = "meta"
META_BYTES = 1 << 20
ASYMMETRY = 1e-4  # of the largest entry: more than float32 rounding of a symmetric matrix


@dataclass(frozen=True)
class Statistics:
    """Moments of one feature."""

    n: int | None  # images; None where the file does not say
    mean: NDArray[np.float64]  # (d,)
    covariance: NDArray[np.float64]  # (d, d)


@dataclass(frozen=True)
class StatisticsFile:
    """What a file of statistics holds. `meta` is empty for files of others."""

    where: str
    digest: str  # SHA-256 of the file
    features: Mapping[str, Statistics]
    meta: Mapping[str, Any] = field(default_factory=dict)

    def of(self, extractor: Extractor, feature: str) -> Statistics:
        """Raises `UserError` when the file has no statistics of that feature, or of another network, or of another length."""
        if feature not in self.features:
            known = ", ".join(sorted(self.features))
            raise UserError(f"{self.where} has statistics of {known}, not of '{feature}' of {extractor.name}: give the images")
        found, dimensions = self.features[feature], extractor.dimensions[feature]
        if len(found.mean) != dimensions:
            raise UserError(
                f"{self.where} has {len(found.mean)} dimensions for '{feature}' and {extractor.name} gives {dimensions}: "
                "it was made with another network"
            )
        for key, mine in extractor.protocol.items():
            theirs = self.meta.get("extractor", {}).get(key, mine)
            if theirs != mine:
                raise UserError(
                    f"{self.where} was made with another protocol ({key}: {_short(theirs)}, here {_short(mine)}): make it "
                    "again with 'pagoda-bench stats'"
                )
        return found


def is_statistics(path: Path) -> bool:
    """Whether the file is a pickle, or an npz with `mu` and `sigma`."""
    if path.suffix.lower() in (".pkl", ".pickle"):
        return True
    if path.suffix.lower() != ".npz":
        return False
    names = npz_headers(path)
    return META in names or {"mu", "sigma"} <= set(names)


def read_statistics(path: Path) -> StatisticsFile:
    """Raises `UserError`, naming the file, when it is damaged, holds pickled code, or numbers that are no statistics."""
    meta: dict[str, Any] = {}
    found: dict[str, tuple[Any, Any, int | None]] = {}
    if path.suffix.lower() in (".pkl", ".pickle"):
        value = read_pickle(path)
        if isinstance(value, dict) and {"mu", "sigma"} <= set(value):
            value = {"fid": value}
        for name, feature in PICKLED.items():
            part = value.get(name) if isinstance(value, dict) else None
            if isinstance(part, dict) and {"mu", "sigma"} <= set(part):
                found[feature] = (part["mu"], part["sigma"], value.get("num_images"))
    else:
        headers = npz_headers(path)
        if META in headers:
            meta = _meta(path, headers[META])
        names = {name: (f"mu__{name}", f"sigma__{name}") for name in meta.get("features", [])} | PUBLISHED
        for feature, (mu, sigma) in names.items():
            if mu in headers and sigma in headers:
                arrays = read_npz(path, [mu, sigma])
                found[feature] = (arrays[mu], arrays[sigma], meta.get("n"))
    if not found:
        raise UserError(f"{path} holds no statistics (mu and sigma): give one that does, or a set of images")
    features = {name: _checked(f"{path} ({name})", *value) for name, value in found.items()}
    return StatisticsFile(str(path), hashlib.sha256(path.read_bytes()).hexdigest(), features, meta)


def write_statistics(path: Path, features: Mapping[str, Statistics], meta: Mapping[str, Any]) -> None:
    """An npz that this module reads, and that others read where the feature has a published name; whole or not at all."""
    if path.suffix.lower() != ".npz":
        raise UserError(f"{path}: statistics are written as .npz: give a name that ends so")
    if not path.parent.is_dir():
        raise UserError(f"{path.parent} is no folder: make it first")
    (n,) = {value.n for value in features.values()}
    text = json.dumps({"version": VERSION, "n": n, "features": sorted(features), **meta}, sort_keys=True)
    arrays: dict[str, Any] = {META: np.array(text)}
    for name, value in features.items():
        mu, sigma = PUBLISHED.get(name, (f"mu__{name}", f"sigma__{name}"))
        arrays |= {mu: value.mean, sigma: value.covariance}
    save_atomic(path, lambda temporary: np.savez(temporary, **arrays))


def _meta(path: Path, header: tuple[tuple[int, ...], np.dtype[Any]]) -> dict[str, Any]:
    shape, dtype = header
    if shape != () or dtype.kind != "U" or dtype.itemsize > META_BYTES:
        raise UserError(f"{path}: its 'meta' is no text: it was not made by 'pagoda-bench stats'")
    try:
        value = json.loads(str(read_npz(path, [META])[META]))
    except ValueError:
        value = None
    if not isinstance(value, dict) or value.get("version") != VERSION:
        raise UserError(f"{path}: its 'meta' is of another release: make it again with 'pagoda-bench stats'")
    return value


def _checked(where: str, mu: Any, sigma: Any, n: Any) -> Statistics:
    mean, covariance = np.asarray(mu), np.asarray(sigma)
    if mean.dtype.kind not in "fiu" or covariance.dtype.kind not in "fiu":
        raise UserError(f"{where}: mu and sigma must be numbers, not {mean.dtype} and {covariance.dtype}")
    mean, covariance = np.squeeze(mean).astype(np.float64), covariance.astype(np.float64)
    if mean.ndim != 1 or covariance.shape != (len(mean), len(mean)):
        raise UserError(f"{where}: mu has shape {mean.shape} and sigma {covariance.shape}; (d,) and (d, d) are needed")
    if not np.isfinite(mean).all() or not np.isfinite(covariance).all():
        raise UserError(f"{where}: mu or sigma has values that are not finite: make the statistics again")
    if np.abs(covariance - covariance.T).max() > ASYMMETRY * max(np.abs(covariance).max(), 1e-30):
        raise UserError(f"{where}: sigma is not symmetric, so it is no covariance: give other statistics")
    if (np.diag(covariance) < 0).any():
        raise UserError(f"{where}: sigma has negative variances: give other statistics")
    return Statistics(int(n) if isinstance(n, (int, np.integer)) else None, mean, (covariance + covariance.T) / 2)


def _short(value: Any) -> str:
    text = str(value)
    return text[:12] if len(text) == 64 else text
