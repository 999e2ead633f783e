"""The code of the moment of submission, frozen for the jobs of a sweep.

From a checkout: a copy of the package's tracked files as they stand, and of untracked ones that git does not ignore, named by
the digest of their contents, so that many sweeps of the same code share one. From an installed version: nothing is copied.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import pagoda_bench
from pagoda_bench.artifacts.checkpoint import read_json, write_json
from pagoda_bench.artifacts.locks import Faults
from pagoda_bench.artifacts.provenance import now
from pagoda_bench.errors import UserError

MARK, DIFF = ".snapshot.json", ".snapshot.diff"
PARTS = ("pagoda_bench", "baselines", "experiments", "paper_tables")


def freeze(area: Path, root: Path | None = None) -> dict[str, Any]:
    """Makes sure of a snapshot below `area` and describes it: `path` (None: the installed version is used as it is),
    `version`, `revision`, `dirty` and `digest`. `root`: the folder that holds the package (default: the running one's)."""
    root = root or Path(pagoda_bench.__file__).resolve().parent.parent
    about: dict[str, Any] = {"version": pagoda_bench.__version__, "path": None}
    if isinstance(already := read_json(root / MARK), dict):  # this is a snapshot itself
        return {**already, "path": str(root)}
    if not (root / ".git").exists():
        return about
    try:
        revision = _git(root, "rev-parse", "HEAD").decode().strip()
        listed = _git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *PARTS)
        names = sorted({os.fsdecode(name) for name in listed.split(b"\0") if name})
        diff = _git(root, "diff", "HEAD", "--", *PARTS)
        dirty = bool(_git(root, "status", "--porcelain", "--", *PARTS).strip())
    except (OSError, subprocess.SubprocessError) as error:
        raise UserError(f"cannot take a snapshot of {root} for the jobs: git: {_reason(error)}") from None
    files = [name for name in names if (root / name).is_file()]
    digest = _digest(root, files)
    final = area / ".code" / digest
    about |= {"path": str(final), "revision": revision, "dirty": dirty, "digest": digest}
    if not final.is_dir():
        with Faults(area):
            stage = area / ".code" / f".{digest}-{secrets.token_hex(4)}"
            for name in files:
                (stage / name).parent.mkdir(parents=True, exist_ok=True)
                with suppress(FileNotFoundError):
                    shutil.copy2(root / name, stage / name)
            if _digest(stage, [name for name in files if (stage / name).is_file()]) != digest:
                shutil.rmtree(stage)
                raise UserError(f"files of {root} changed while the snapshot for the jobs was taken: submit again")
            if (root / "results").is_dir():  # released artifacts are named by their content: no need to copy them
                (stage / "results").symlink_to(root / "results")
            (stage / DIFF).write_bytes(diff)
            write_json(stage / MARK, {**about, "taken": now()})
            try:
                stage.rename(final)
            except OSError:
                if not final.is_dir():
                    raise
                shutil.rmtree(stage)  # another submission was quicker
    return about


def _digest(root: Path, files: list[str]) -> str:
    total = hashlib.sha256()
    for name in files:
        content = hashlib.sha256((root / name).read_bytes()).hexdigest()
        total.update(f"{content} {name}\n".encode())
    return total.hexdigest()[:20]


def _git(root: Path, *arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, timeout=60, check=True).stdout


def _reason(error: BaseException) -> str:
    said = getattr(error, "stderr", None)
    return " ".join(said.decode("utf-8", "replace").split()) if said else str(error)
