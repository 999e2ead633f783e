"""Checkpoints of a training in its work folder: `checkpoint-<step>.pt`, the last few and the best, each with its SHA-256.

A damaged one is named in one line and passed over, so that the one before it is where the training goes on.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from pagoda_bench.artifacts.checkpoint import read_json, save_atomic, write_json
from pagoda_bench.artifacts.digests import sha256
from pagoda_bench.artifacts.store import say

OLD = "checkpoint.pt"  # as earlier releases called the only one
# What torch.load raises for files that are cut short or changed.
UNREADABLE = (RuntimeError, OSError, EOFError, ValueError, KeyError, pickle.UnpicklingError, zipfile.BadZipFile)


def path_of(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step:08d}.pt"


def save(folder: Path, state: dict[str, Any], keep: int, best: int = 0) -> Path:
    """Writes `state` (with its "step") atomically and removes all but the newest `keep`, and the one of step `best`."""
    path = path_of(folder, state["step"])
    save_atomic(path, lambda temporary: torch.save(state, temporary))
    write_json(path.with_suffix(".json"), {"sha256": sha256(path)})
    for old in saved(folder)[max(1, keep) :]:
        if old == path_of(folder, best):
            continue
        old.unlink(missing_ok=True)
        old.with_suffix(".json").unlink(missing_ok=True)
    return path


def saved(folder: Path) -> list[Path]:
    """Newest first."""
    old = folder / OLD
    return [*sorted(folder.glob("checkpoint-*.pt"), reverse=True), *([old] if old.is_file() else [])]


def newest(folder: Path) -> dict[str, Any] | None:
    """The newest state that is whole, on the CPU; None when there is none."""
    for path in saved(folder):
        if (state := read(path)) is not None:
            return state
    return None


def read(path: Path) -> dict[str, Any] | None:
    """The state of one checkpoint, on the CPU; None, and a line to the user, when it is not whole."""
    reason, state = _read(path)
    if state is None:
        say(f"checkpoint {path} is damaged ({reason}) and passed over")
    return state


def _read(path: Path) -> tuple[str, dict[str, Any] | None]:
    try:
        note = read_json(path.with_suffix(".json"))
        if isinstance(note, dict) and sha256(path) != note.get("sha256"):
            return "its SHA-256 is another than when it was written", None
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        return str(error).strip().partition("\n")[0][:120] or type(error).__name__, None
    if not isinstance(state, dict) or "step" not in state:
        return "it holds something else", None
    return "", state
