"""Released checkpoints: what network a file holds, whether it is the one that was named, and its weights as float32.

Nothing in a file is executed: `.pt` is read with PyTorch's weights-only reader. A file is taken over whole or not at all:
a key that is missing, too many or of another shape is named, and no network is left with random values somewhere.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from pagoda_bench.artifacts.digests import sha256
from pagoda_bench.diffusion.edm import SIGMA_MIN
from pagoda_bench.errors import UNREADABLE, UserError
from pagoda_bench.nets.unet import UNet
from pagoda_bench.nets.weights import stored
from pagoda_bench.pagoda import trajectory
from pagoda_bench.recipes.formats import Format
from pagoda_bench.recipes.imported import Imported
from pagoda_bench.recipes.published import PUBLISHED
from pagoda_bench.recipes.stages import UNetConfig

GROWN_BLOCKS = 2
VARIANCES = 3  # output channels of ADM that hold learnt variances


class Mismatch(UserError):
    """A file that is not what it was said to be. `lines` name every key at fault, the message the first ones."""

    def __init__(self, message: str, lines: list[str]) -> None:
        super().__init__(message)
        self.lines = lines


@dataclass
class Checkpoint:
    """The tensors of a file, ready to load, and what was done to them."""

    tensors: dict[str, Tensor]
    notes: list[str] = field(default_factory=list)


def recipe_of(path: Path, format_: Format, *, own_architecture: bool = False, head_channels: int | None = None) -> Imported:
    """The recipe of a file: its digest and the network that its tensors have the shapes of.

    With `own_architecture` it may differ from the published one, as long as it is of the family. The tensors do not say
    how many channels an attention head has: 64 in all published networks, else `head_channels`.

    Raises:
        Mismatch: the file holds another network than `format_` names.
        UserError: it cannot be read, or is no ADM U-Net.
    """
    checkpoint = prepare(read(path), format_)
    published = PUBLISHED[format_]
    if trajectory.has_end(checkpoint.tensors):
        raise Mismatch(
            f"{path.name} is not {format_}: it has tensors of a second noise level, as ctm-64 has",
            problems(checkpoint.tensors, published[0]),
        )
    try:
        net = infer(checkpoint.tensors, published[0].output_resolution, head_channels or published[0].head_channels)
    except UserError as error:
        raise Mismatch(f"{path.name} is not {format_}: {error}", problems(checkpoint.tensors, published[0])) from None
    known = next((p for p in published if _same(p, net)), None)
    if known is None and not own_architecture:
        like = [name for name in get_args(Format) if any(_same(p, net, resolution=False) for p in PUBLISHED[name])]
        hint = f"; its architecture is that of {' and '.join(like)}" if like else ""
        lines = problems(checkpoint.tensors, published[0])
        raise Mismatch(
            f"{path.name} is not {format_}: {'; '.join(_differences(published[0], net))}{hint}"
            + ("" if like else " (--own-architecture takes it as it is)"),
            lines,
        )
    net = known or net
    check(checkpoint.tensors, net, path.name)
    return Imported(format=format_, digest=sha256(path), net=net)


def run(recipe: Imported, ctx: Any) -> None:
    """Payload: `model.safetensors`, float32. The file must be the one of the recipe, byte for byte."""
    path = ctx.data_path(recipe.digest)
    if not path.is_file() or (found := sha256(path)) != recipe.digest:
        what = f"has SHA-256 {found[:12]}" if path.is_file() else "is no file"
        raise UserError(f"{path} {what}, the recipe is of {recipe.digest[:12]}: name the right file with --data DIGEST=FILE")
    checkpoint = prepare(read(path), recipe.format)
    check(checkpoint.tensors, recipe.net, path.name)
    save_file({key: value.contiguous() for key, value in sorted(checkpoint.tensors.items())}, ctx.out / "model.safetensors")
    ctx.record(parameters=sum(value.numel() for value in checkpoint.tensors.values()), source=path.name, notes=checkpoint.notes)


def read(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.safetensors` file or of a `.pt` file that holds nothing but tensors, as they are stored.

    One dictionary inside another (`{"model": {...}}`) is opened when there is only one.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = stored(path)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from None
    except SafetensorError as error:
        raise UserError(f"{path} is no whole safetensors file: {error}") from None
    except pickle.UnpicklingError:
        raise UserError(
            f"{path} holds more than tensors, or is no checkpoint: it is not opened, because reading it could run code; "
            "save its state_dict alone"
        ) from None
    except UNREADABLE as error:  # broken zips, truncated files, other bytes
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise UserError(f"{path} is no whole PyTorch file: {reason}") from None
    return _tensors(loaded, path)


def _tensors(loaded: Any, path: Path) -> dict[str, Tensor]:
    if isinstance(loaded, Mapping) and loaded and all(isinstance(value, Tensor) for value in loaded.values()):
        return {str(key): value for key, value in loaded.items()}
    inner = {k: v for k, v in loaded.items() if isinstance(v, Mapping)} if isinstance(loaded, Mapping) else {}
    if len(inner) == 1:
        return _tensors(next(iter(inner.values())), path)
    held = f"the dictionaries {', '.join(map(str, inner))}" if inner else f"a {type(loaded).__name__}"
    raise UserError(f"{path} holds {held}, not one state_dict of tensors: save the one you mean alone")


def prepare(tensors: Mapping[str, Tensor], format_: Format) -> Checkpoint:
    """The tensors under the names and in the shapes of this project's network, as float32; each change is noted.

    Raises `Mismatch` when a value is not finite.
    """
    found, notes = dict(tensors), []
    if found and all(key.startswith("module.") for key in found):
        found = {key.removeprefix("module."): value for key, value in found.items()}
        notes.append("removed the prefix 'module.' from all keys")
    for key, value in found.items():
        if key.endswith(("qkv.weight", "proj_out.weight")) and value.ndim == 3:  # 1-D convolutions of the same numbers
            found[key] = value[..., None]
    if format_ == "adm-64":
        for key in ("out.2.weight", "out.2.bias"):
            if key in found and len(found[key]) == 3 + VARIANCES:
                found[key] = found[key][:3].clone()
                notes.append(f"dropped the learnt variances of {key} (a deterministic sampler does not use them)")
    cast: dict[str, list[str]] = {}
    for key, value in found.items():
        if value.is_floating_point() and value.dtype != torch.float32:
            cast.setdefault(str(value.dtype).removeprefix("torch."), []).append(key)
            found[key] = value.float()
    for name, keys in sorted(cast.items()):
        notes.append(f"cast {len(keys)} of {len(found)} tensors from {name} to float32 (first: {min(keys)})")
    if broken := sorted(k for k, v in found.items() if v.is_floating_point() and not bool(torch.isfinite(v).all())):
        lines = [f"not finite: {key}" for key in broken]
        raise Mismatch(
            f"{len(broken)} tensors hold values that are not finite, first '{broken[0]}': the file is damaged", lines
        )
    if format_ == "ctm-64":
        found, taken = _at_fixed_end(found)
        notes.append(taken)
    return Checkpoint(found, notes)


def _at_fixed_end(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The tensors of CTM's network for one step, and a note of what became of those that are left out."""
    if not trajectory.has_end(tensors):
        raise Mismatch(f"this is no CTM: it has no tensor '{trajectory.EMBED}0.weight' of a second noise level", [])
    rest, wrong = trajectory.fixed_end(tensors)
    if wrong:
        raise Mismatch(f"the tensors of CTM's second noise level are not those of its network ({wrong[0]})", wrong)
    count = len(tensors) - len(rest)
    return rest, f"fixed the end of trajectories at sigma {SIGMA_MIN}: {count} tensors became parts of biases"


def infer(tensors: Mapping[str, Tensor], output_resolution: int, head_channels: int) -> UNetConfig:
    """The config of an ADM U-Net from the shapes of its tensors. The size of its images, and how many channels a head has,
    are not in them. `UserError` where a key is missing without which nothing can be said."""

    def shape(key: str) -> torch.Size:
        if key not in tensors:
            raise UserError(f"this is no class-conditional ADM U-Net: it has no tensor '{key}'")
        return tensors[key].shape

    def width(part: str, index: int) -> int:
        return shape(f"{part}.{index}.0.in_layers.2.weight")[0]

    channels = shape("time_embed.0.weight")[1]
    classes = shape("label_emb.weight")[0]
    patch = round((shape("input_blocks.0.0.weight")[1] / 3) ** 0.5)
    inputs, outputs = _length(tensors, "input_blocks"), _length(tensors, "output_blocks")
    # The up block at the end of a level is a second residual block in its entry: the first such entry tells the number of
    # blocks a level.
    ups = [i for i in range(outputs) if any(f"output_blocks.{i}.{j}.in_layers.2.weight" in tensors for j in (1, 2))]
    blocks = ups[0] if ups else inputs - 1
    levels, rest = divmod(inputs, blocks + 1)
    grown, rest_grown = divmod(outputs - inputs, GROWN_BLOCKS + 1)
    if rest or rest_grown or levels < 1 or grown < 0:
        raise UserError(
            f"{inputs} input and {outputs} output blocks do not make a U-Net of equal levels with {GROWN_BLOCKS + 1} blocks in "
            "each grown one"
        )
    resolution = output_resolution >> grown
    starts = [level * (blocks + 1) for level in range(levels)]
    encoder = [width("input_blocks", 1 + start) for start in starts]
    base = [width("output_blocks", start) for start in starts][::-1]
    added = [inputs + level * (GROWN_BLOCKS + 1) for level in range(grown)][::-1]
    decoder = [*(width("output_blocks", start) for start in added), *base]
    attended = [level for level, start in enumerate(starts) if f"input_blocks.{1 + start}.1.qkv.weight" in tensors]
    scale_shift = bool(added) and shape(f"output_blocks.{added[-1]}.0.emb_layers.1.weight")[0] == 2 * width(
        "output_blocks", added[-1]
    )
    return UNetConfig(
        resolution=resolution,
        channels=channels,
        encoder=tuple(w / channels for w in encoder),
        decoder=None if decoder == encoder else tuple(w / channels for w in decoder),
        blocks=blocks,
        grown_blocks=GROWN_BLOCKS,
        attention=tuple(resolution // patch >> level for level in attended),
        head_channels=head_channels,
        classes=classes,
        scale_shift_grown=scale_shift,
        patch=patch,
    )


def problems(tensors: Mapping[str, Tensor], net: UNetConfig) -> list[str]:
    """Every key at fault, one line each: missing, too many, of another shape. Empty when the file is exactly this network."""
    with torch.device("meta"):
        expected = UNet(net).state_dict()
    missing = [f"missing: {key} {_shape(expected[key])}" for key in expected if key not in tensors]
    extra = [f"extra: {key} {_shape(tensors[key])}" for key in tensors if key not in expected]
    shapes = [
        f"shape: {key} is {_shape(tensors[key])}, expected {_shape(value)}"
        for key, value in expected.items()
        if key in tensors and tensors[key].shape != value.shape
    ]
    return [*missing, *extra, *shapes]


def check(tensors: Mapping[str, Tensor], net: UNetConfig, name: str) -> None:
    """Raises `Mismatch` unless `tensors` are exactly those of `net`."""
    if lines := problems(tensors, net):
        count = {word: sum(line.startswith(word) for line in lines) for word in ("missing", "extra", "shape")}
        raise Mismatch(
            f"{name} does not fit its network: {count['missing']} keys missing, {count['extra']} too many, {count['shape']} of "
            f"another shape ({lines[0]}); nothing was loaded",
            lines,
        )


def _same(a: UNetConfig, b: UNetConfig, resolution: bool = True) -> bool:
    ignored = {} if resolution else {"resolution": 0, "attention": ()}
    return a.model_copy(update=ignored) == b.model_copy(update=ignored)


def _differences(expected: UNetConfig, found: UNetConfig) -> list[str]:
    pairs = ((name, getattr(expected, name), getattr(found, name)) for name in UNetConfig.model_fields)
    return [f"{name} is {_text(there)}, not {_text(here)}" for name, here, there in pairs if here != there]


def _text(value: Any) -> str:
    return "(" + ", ".join(f"{v:g}" for v in value) + ")" if isinstance(value, tuple) else str(value)


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _length(tensors: Mapping[str, Tensor], part: str) -> int:
    """How many entries a list of blocks has, by its highest number."""
    numbers = [int(number) for key in tensors if key.startswith(f"{part}.") and (number := key.split(".")[1]).isdigit()]
    if not numbers:
        raise UserError(f"this is no ADM U-Net: it has no tensor under '{part}'")
    return max(numbers) + 1
