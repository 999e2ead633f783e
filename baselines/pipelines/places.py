"""Where published weights lie, that they are what the row means, and the digest that identifies them. No network, no torch.

Weights come in diffusers' folder layout: one folder a component, each with its configuration and its safetensors. They are a
folder of the user's, or a revision in Hugging Face's cache; what is not here is never fetched.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pagoda_bench.artifacts.digests import sha256
from pagoda_bench.errors import Unavailable

PACKAGES = ("diffusers", "transformers", "accelerate")
EXTRA = "diffusers"
PICKLES = (".bin", ".ckpt", ".pt", ".pth", ".pkl", ".msgpack")
BASES = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}  # names of files of weights, by library
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")


@dataclass(frozen=True)
class Part:
    """A component: its folder, and the classes that it may be of. `library` is "" for what holds no weights."""

    name: str
    classes: tuple[str, ...] = ()
    library: str = ""


@dataclass(frozen=True)
class Place:
    """A folder of weights, and what of the cache it is where it is of the cache."""

    folder: Path
    repository: str = ""
    revision: str = ""  # the commit


@dataclass(frozen=True)
class Inspected:
    """The components that were asked for, all there: their configurations, and the digest of every file that is read."""

    configs: Mapping[str, Mapping[str, Any]]
    digest: str


def need_packages() -> None:
    """Raises `Unavailable` unless the packages that run the weights are installed."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise Unavailable(
            f"not available: the package {missing[0]} is not installed: pip install 'pagoda-bench[{EXTRA}]' "
            f"(in a checkout: pip install -e '.[{EXTRA}]')"
        )


def cache_folder() -> Path:
    """Hugging Face's cache of repositories, by the variables that its own programs obey."""
    if named := os.environ.get("HF_HUB_CACHE"):
        return Path(named).expanduser()
    if home := os.environ.get("HF_HOME"):
        return Path(home).expanduser() / "hub"
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface" / "hub"


def locate(weights: str, revision: str | None) -> Place:
    """The folder that `weights` names: a folder, or "owner/name" at a revision (branch, tag, "refs/pr/1" or commit) in the
    cache. Raises `Unavailable` when it is not here."""
    folder = Path(weights).expanduser()
    if folder.is_dir():
        return Place(folder.absolute())
    if not _REPOSITORY.fullmatch(weights):
        raise Unavailable(f"not available: {weights}: no such folder: put the weights there, or name another place")
    if not revision:
        raise Unavailable(f"not available: {weights}: say which revision of it: set options.revision to a commit or branch")
    root = cache_folder() / f"models--{weights.replace('/', '--')}"
    commit = revision if re.fullmatch(r"[0-9a-f]{40}", revision) else _read(root / "refs" / revision)
    if not commit or not (root / "snapshots" / commit).is_dir():
        raise Unavailable(
            f"not available: {weights} at revision {revision} is not in {cache_folder()}: hf download {weights} --revision "
            f"{revision}, where there is a network, or set options.weights to a folder that holds it"
        )
    return Place(root / "snapshots" / commit, weights, commit)


def check_pipeline(place: Place, classes: Sequence[str]) -> str:
    """The class of pipeline that the folder was saved as, one of `classes`; `Unavailable` for another or none."""
    index = _json(place.folder / "model_index.json")
    found = str(index.get("_class_name")) if index else None
    if found is None:
        raise Unavailable(f"not available: {place.folder} has no model_index.json: name the folder of a {' or '.join(classes)}")
    if found not in classes:
        raise Unavailable(f"not available: {place.folder} holds a {found}: name the folder of a {' or '.join(classes)}")
    return found


def inspect(place: Place, parts: Sequence[Part], variant: str = "", root: str = "") -> Inspected:
    """Looks at the components `parts` below the folder (`root`: those of a single model lie in the folder itself).

    Raises:
        Unavailable: a component is missing, of another class, holds pickles only, lacks a shard, or has two sets of weights.
    """
    configs: dict[str, Mapping[str, Any]] = {}
    files: list[Path] = []
    for part in parts:
        folder = place.folder if part.name == root else place.folder / part.name
        if not folder.is_dir():
            raise Unavailable(f"not available: {place.folder} lacks the component '{part.name}': download it whole")
        if not part.library:
            files += sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
            continue
        config = _json(folder / "config.json")
        if config is None:
            raise Unavailable(f"not available: {folder} has no readable config.json: download it whole")
        named = {str(config.get("_class_name")), *map(str, config.get("architectures") or ())}
        if not named & set(part.classes):
            what = ", ".join(sorted(named - {"None"})) or "nothing known"
            raise Unavailable(f"not available: {folder} holds {what}, not {part.classes[0]}: name the right folder")
        configs[part.name] = config
        files += [folder / "config.json", *weight_files(folder, BASES[part.library], variant)]
    lines = "".join(f"{path.relative_to(place.folder).as_posix()} {_digest(path)}\n" for path in sorted(files))
    return Inspected(configs, hashlib.sha256(lines.encode()).hexdigest())


def weight_files(folder: Path, base: str, variant: str = "") -> list[Path]:
    """The safetensors of a component: one file, or an index and all its shards. `Unavailable` when they are not so there."""
    mark = f".{variant}" if variant else ""
    single, index = folder / f"{base}{mark}.safetensors", folder / f"{base}.safetensors.index{mark}.json"
    if single.is_file() and index.is_file():
        raise Unavailable(f"not available: {folder} holds both {single.name} and {index.name}: remove one of them")
    if single.is_file():
        return [single]
    if not index.is_file():
        others = sorted(path.name for path in folder.iterdir() if path.suffix in (".safetensors", *PICKLES))
        if any(name.endswith(".safetensors") for name in others):
            raise Unavailable(
                f"not available: {folder} has no {single.name} among {', '.join(others)[:120]}: set options.variant to theirs"
            )
        if others:
            raise Unavailable(
                f"not available: {folder} holds pickles only ({others[0]}), which are never opened here: save safetensors "
                "(baselines/pipelines/README.md says how)"
            )
        raise Unavailable(f"not available: {folder} lacks {single.name}: download it whole")
    listed = (_json(index) or {}).get("weight_map")
    names = sorted(set(map(str, listed.values()))) if isinstance(listed, dict) else []
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise Unavailable(f"not available: {index} names no safetensors beside it: download it again")
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise Unavailable(f"not available: {folder} lacks the shard {missing[0]} of {len(names)}: download it whole")
    return [index, *(folder / name for name in names)]


def _digest(path: Path) -> str:
    """SHA-256 of a file. Large files of the cache are links to blobs that bear it as their name, checked when downloaded."""
    if path.is_symlink():
        blob = path.resolve()
        if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name):
            return blob.name
    stat = path.stat()
    return _hashed(str(path), stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=1024)
def _hashed(path: str, size: int, changed: int) -> str:
    return sha256(Path(path))  # once a process, while size and time stay: several rows have the same weights


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _json(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
