"""Checkpoints of a training in its work folder: `checkpoint-<step>.pt`, the last few and the best, each with its SHA-256.

Of a sharded training each process writes its part of the sharded tensors beside it, `part-<step>-<rank>-of-<processes>.pt`,
and the first process then the rest: a checkpoint is there when that file is. A damaged one is named in one line and passed
over, so that the one before it is where the training goes on.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pagoda_bench.artifacts.checkpoint import read_json, save_atomic, write_json
from pagoda_bench.artifacts.digests import sha256
from pagoda_bench.artifacts.store import say
from pagoda_bench.errors import UNREADABLE
from pagoda_bench.nets.weights import stored
from pagoda_bench.training import parallel, sharding

OLD = "checkpoint.pt"  # as earlier releases called the only one


def path_of(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step:08d}.pt"


def part_of(folder: Path, step: int, rank: int, processes: int) -> Path:
    return folder / f"part-{step:08d}-{rank}-of-{processes}.pt"


def save(folder: Path, state: dict[str, Any], keep: int, best: int = 0) -> None:
    """Writes `state` (with its "step") atomically and removes all but the newest `keep`, and the one of step `best`. Every
    process calls it; where nothing is sharded, the first one writes.

    One of a later step is damaged, or training would have gone on from it: it goes too, and takes the place of none that is
    whole."""
    rest, own = sharding.divided(state)
    processes = parallel.world()
    if own:  # in all processes alike
        _write(part_of(folder, state["step"], parallel.rank(), processes), own)
        parallel.most(0)  # waits for all
        rest["parts"] = processes
    if parallel.rank():
        return
    newest = path_of(folder, state["step"])
    _write(newest, rest)
    whole = [path for path in saved(folder) if path.name <= newest.name or path.name == OLD]
    kept = [*whole[: max(1, keep)], path_of(folder, best)]
    for old in saved(folder):
        if old not in kept:
            old.unlink(missing_ok=True)
            old.with_suffix(".json").unlink(missing_ok=True)
    steps = [path.stem.rpartition("-")[2] for path in kept]
    for old in folder.glob("part-*"):
        if old.name.split("-")[1] not in steps:
            old.unlink(missing_ok=True)


def saved(folder: Path) -> list[Path]:
    """Newest first."""
    old = folder / OLD
    return [*sorted(folder.glob("checkpoint-*.pt"), reverse=True), *([old] if old.is_file() else [])]


def newest(folder: Path) -> dict[str, Any] | None:
    """The newest state that is whole, on the CPU; None when there is none. Every process calls it, and all get the same one: of
    a sharded state, if there are as many of them as wrote it, each with its own parts alone. What processes that were killed
    had half written goes: nobody writes before all have what they go on from."""
    for left in [*folder.glob(".checkpoint-*.tmp-*"), *folder.glob(".part-*.tmp-*")] if not parallel.rank() else ():
        left.unlink(missing_ok=True)
    for path in saved(folder):
        state = read(path, own=True)
        if not parallel.anywhere(state is None):
            return state
    return None


def read(path: Path, *, own: bool = False) -> dict[str, Any] | None:
    """The state of one checkpoint, on the CPU, sharded tensors as `sharding.Parts`; None, and a line to the user, when it is
    not whole. `own`: of the parts only this process's, if there are as many processes as parts."""
    try:
        state = _load(path)
        if not isinstance(state, dict) or "step" not in state:
            raise ValueError("it holds something else")
        if (processes := state.pop("parts", 0)) > 0:
            alone = own and processes == parallel.world()
            ranks = range(processes)
            files = [part_of(path.parent, state["step"], rank, processes) for rank in ranks]
            parts = [None if alone and rank != parallel.rank() else _load(files[rank]) for rank in ranks]
            state = sharding.united(state, parts)
    except UNREADABLE as error:
        reason = str(error).strip().partition("\n")[0][:120] or type(error).__name__
        say(f"checkpoint {path} is damaged ({reason}) and passed over")
        return None
    assert isinstance(state, dict)
    return state


def _write(path: Path, value: Any) -> None:
    save_atomic(path, lambda temporary: torch.save(value, temporary))
    write_json(path.with_suffix(".json"), {"sha256": sha256(path)})


def _load(path: Path) -> Any:
    """`ValueError` when the digest is another one."""
    note = read_json(path.with_suffix(".json"))
    if isinstance(note, dict) and sha256(path) != note.get("sha256"):
        raise ValueError(f"the SHA-256 of {path.name} is another than when it was written")
    return stored(path)
