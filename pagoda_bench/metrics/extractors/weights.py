"""Where the weights of feature networks come from, and that they are the ones that were meant.

In this order: the path that was given; `$PAGODA_BENCH_WEIGHTS/<file>`; `<cache>/weights/<file>`; the original download, into
the first of these two folders that is set. What was not given by path must have the pinned SHA-256.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import torch

from pagoda_bench.data.sources import cache_folder
from pagoda_bench.errors import UNREADABLE, UserError
from pagoda_bench.nets.weights import stored

FOLDER = "PAGODA_BENCH_WEIGHTS"
OFFLINE = "PAGODA_BENCH_OFFLINE"


@dataclass(frozen=True)
class Original:
    """A published file of weights. Without a pinned hash it is never downloaded."""

    file: str
    url: str
    sha256: str | None


_DINO = "https://dl.fbaipublicfiles.com/dinov2"
_CLIP = "https://openaipublic.azureedge.net/clip/models"  # its addresses hold the SHA-256 of what they lead to

ORIGINALS = {
    "inception": Original(
        "weights-inception-2015-12-05-6726825d.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth",
        "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    ),
    "clean": Original(
        "inception-2015-12-05.pt",
        "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt",
        "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4",
    ),
    "vgg16": Original(
        "vgg16-397923af.pth",
        "https://download.pytorch.org/models/vgg16-397923af.pth",
        "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
    ),
    "lpips-vgg16": Original(
        "weights-vgg16-lpips.pth",
        "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-vgg16-lpips.pth",
        None,
    ),
    "dinov2-vits14": Original(
        "dinov2_vits14_pretrain.pth",
        f"{_DINO}/dinov2_vits14/dinov2_vits14_pretrain.pth",
        "b938bf1bc15cd2ec0feacfe3a1bb553fe8ea9ca46a7e1d8d00217f29aef60cd9",
    ),
    "dinov2-vitb14": Original(
        "dinov2_vitb14_pretrain.pth",
        f"{_DINO}/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
        "0b8b82f85de91b424aded121c7e1dcc2b7bc6d0adeea651bf73a13307fad8c73",
    ),
    "dinov2-vitl14": Original(
        "dinov2_vitl14_pretrain.pth",
        f"{_DINO}/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
        "d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
    ),
    "dinov2-vitg14": Original("dinov2_vitg14_pretrain.pth", f"{_DINO}/dinov2_vitg14/dinov2_vitg14_pretrain.pth", None),
    "clip-vit-b-32": Original(
        "ViT-B-32.pt",
        f"{_CLIP}/40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af/ViT-B-32.pt",
        "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
    ),
    "clip-vit-l-14": Original(
        "ViT-L-14.pt",
        f"{_CLIP}/b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836/ViT-L-14.pt",
        "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
    ),
    "clip-vit-l-14-336": Original(
        "ViT-L-14-336px.pt",
        f"{_CLIP}/3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02/ViT-L-14-336px.pt",
        "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
    ),
}


@dataclass(frozen=True)
class Found:
    """A file of weights that is there."""

    path: Path
    sha256: str


def find(original: Original, given: Path | None = None) -> Found:
    """The file of weights to use.

    A `given` file may be any (its hash goes into the protocol), unless it bears the original's name: then it is a copy, and
    has to be a true one. Raises `UserError` when nothing is there and nothing can be downloaded, and for a wrong hash.
    """
    if given is not None:
        path = Path(given).expanduser()
        found = Found(path, _sha256(path))
        if path.name == original.file:
            _check(found, original)
        return found
    own = os.environ.get(FOLDER)
    folders = [Path(own).expanduser()] if own else []
    folders.append(cache_folder() / "weights")
    for folder in folders:
        if (folder / original.file).is_file():
            found = Found(folder / original.file, _sha256(folder / original.file))
            _check(found, original)
            return found
    return _download(original, folders[0])


def state_dict(found: Found) -> dict[str, Any]:
    """The tensors of a `.safetensors` file or of one that torch saved, read without running code from it."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if found.path.suffix == ".safetensors":
            return load_file(found.path)
        value = stored(found.path)
    except (*UNREADABLE, SafetensorError) as error:  # type: ignore[misc]
        reason = " ".join(str(error).split())[:120]
        raise UserError(f"{found.path} holds no state dict that can be read safely ({reason}): give another file") from None
    if not isinstance(value, dict) or not all(isinstance(item, torch.Tensor) for item in value.values()):
        raise UserError(f"{found.path} is not a state dict (names to tensors): save model.state_dict() and give that")
    return value


def load_into(network: torch.nn.Module, state: dict[str, Any], found: Found, what: str) -> None:
    """Strictly; a `UserError` naming the file and the first parameter that does not fit."""
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{found.path} does not fit {what} ({reason}): give the weights of that network") from None


def _check(found: Found, original: Original) -> None:
    if original.sha256 is not None and found.sha256 != original.sha256:
        raise UserError(
            f"{found.path} has SHA-256 {found.sha256[:16]}..., the published weights have {original.sha256[:16]}...: "
            f"download it again from {original.url}, or give your own weights under another name"
        )


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while block := stream.read(1 << 20):
                digest.update(block)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise UserError(f"weights {path} cannot be read ({reason}): give a file that is there") from None
    return digest.hexdigest()


def _download(original: Original, folder: Path) -> Found:
    want = f" with SHA-256 {original.sha256}" if original.sha256 else ""
    remedy = f"put {original.file} from {original.url}{want} into {folder}, or set {FOLDER} to the folder that has it"
    if os.environ.get(OFFLINE):
        raise UserError(f"weights are missing and {OFFLINE} forbids downloading: {remedy}")
    if original.sha256 is None:
        raise UserError(f"weights are missing, and no hash is pinned for them so they are not downloaded: {remedy}")
    digest, temporary = hashlib.sha256(), None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=folder, prefix=f".{original.file}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as out, urllib.request.urlopen(original.url, timeout=60) as answer:
            while block := answer.read(1 << 20):
                digest.update(block)
                out.write(block)
        found = Found(folder / original.file, digest.hexdigest())
        _check(found, original)
        temporary.replace(found.path)
        return found
    except (urllib.error.URLError, HTTPException, OSError) as error:
        reason = " ".join(str(getattr(error, "reason", error)).split())[:80]
        raise UserError(f"weights are missing and cannot be downloaded ({reason}): {remedy}") from None
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
