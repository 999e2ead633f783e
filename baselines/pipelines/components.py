"""Loading the components of a pipeline: classes by name from a list, safetensors only, whole or not at all.

Weights are mapped from their files into networks that were made without memory of their own, so that there is never a second
copy of them. What is kept in another precision on disk is converted tensor by tensor.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from baselines.pipelines import places
from baselines.pipelines.places import Part
from baselines.pipelines.recipes import Weights
from pagoda_bench.errors import UserError
from pagoda_bench.nets.device import compute_device

TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast")
# Tables of places that older releases saved beside the weights; networks make them anew.
TABLES = ("position_ids", "pos_embed.pos_embed")
# What the libraries raise at files that do not fit; none of it is a mistake of this program.
FAILURES = (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError, ImportError)


def load_parts(weights: Weights, parts: Sequence[Part], precision: str, root: str = "") -> dict[str, Any]:
    """The components by name: networks in evaluation mode, without gradients, on the compute device.

    Raises:
        UserError: the files changed since the table was planned, or a component lacks a tensor, has one left over or of
            another shape, or cannot be read.
    """
    places.need_packages()
    place = places.Place(Path(weights.place), weights.repository, weights.revision)
    if not place.folder.is_dir():
        raise UserError(f"not available: the weights {place.folder} are gone: put them back")
    if places.inspect(place, parts, weights.variant, root).digest != weights.digest:
        raise UserError(f"{place.folder} holds other weights now than when the table was planned: start again")
    found: dict[str, Any] = {}
    for part in parts:
        folder = place.folder if part.name == root else place.folder / part.name
        try:
            found[part.name] = _network(folder, part, weights.variant, precision) if part.library else _other(folder)
        except FAILURES as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{folder} cannot be loaded as {part.name} ({reason}): download it again") from None
    return found


def _network(folder: Path, part: Part, variant: str, precision: str) -> Any:
    library = importlib.import_module(part.library)
    library.utils.logging.disable_progress_bar()
    cls = getattr(library, part.classes[0])
    dtype = getattr(torch, precision)
    how = {"torch_dtype": dtype} if part.library == "diffusers" else {"dtype": dtype}
    net, info = cls.from_pretrained(
        folder,
        variant=variant or None,
        use_safetensors=True,
        local_files_only=True,
        low_cpu_mem_usage=True,
        output_loading_info=True,
        **how,
    )
    for what, words in (("missing_keys", "lacks"), ("unexpected_keys", "has left over"), ("mismatched_keys", "misshapes")):
        if names := sorted(name for name in map(str, info.get(what) or ()) if not name.endswith(TABLES)):
            raise UserError(f"{folder} {words} the tensor {names[0]} ({len(names)} in all): name the weights of one model")
    return net.to(compute_device()).eval().requires_grad_(False)


def _other(folder: Path) -> Any:
    """A scheduler or a tokenizer, by the class that its folder names, if that is one that is known here."""
    if (folder / "scheduler_config.json").is_file():
        import diffusers

        name = str(json.loads((folder / "scheduler_config.json").read_text(encoding="utf-8")).get("_class_name"))
        cls = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
        if cls is None:
            raise ValueError(f"'{name}' is no scheduler of diffusers")
        return cls.from_pretrained(folder, local_files_only=True)
    import transformers

    name = str(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("tokenizer_class"))
    if name not in TOKENIZERS:
        raise ValueError(f"'{name}' is none of {', '.join(TOKENIZERS)}")
    return getattr(transformers, name).from_pretrained(folder, local_files_only=True)
