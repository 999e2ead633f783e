"""`digests.json`: what an artifact's files hold, so that damage is found before it is used.

{"digest": over all payload files, "payload": {name: sha256}, "about": {"recipe.json": sha256, "provenance.json": sha256}}
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from pagoda_bench.artifacts.checkpoint import read_json, write_json

DIGESTS, RECIPE, PROVENANCE = "digests.json", "recipe.json", "provenance.json"
ABOUT = (RECIPE, PROVENANCE)


def files(folder: Path) -> dict[str, os.stat_result]:
    """All files below `folder` by their name relative to it, with `/`, sorted. Hidden ones (`.name`) do not count."""
    found: dict[str, os.stat_result] = {}
    for directory, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(directory, name)
            if not name.startswith("."):
                found[path.relative_to(folder).as_posix()] = path.lstat()
    return dict(sorted(found.items()))


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def payload_digest(payload: dict[str, str]) -> str:
    """One digest of all payload files: SHA-256 of the sorted, compact JSON of {name: sha256}."""
    return hashlib.sha256(json.dumps(payload, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def write_digests(folder: Path) -> None:
    """Writes `digests.json` for what is in `folder`; its presence means that all else is there."""
    payload = {name: sha256(folder / name) for name in files(folder) if name not in (*ABOUT, DIGESTS)}
    about = {name: sha256(folder / name) for name in ABOUT}
    write_json(folder / DIGESTS, {"digest": payload_digest(payload), "payload": payload, "about": about})


def damage(folder: Path, key: str) -> str | None:
    """What is wrong with the artifact in `folder`, in a few words; None when every file is as it was made."""
    listed = read_json(folder / DIGESTS)
    try:
        payload, about = dict(listed["payload"]), dict(listed["about"])
        digest = listed["digest"]
    except (TypeError, KeyError, ValueError):
        return f"{DIGESTS} is missing or damaged"
    if digest != payload_digest(payload) or sorted(about) != sorted(ABOUT):
        return f"{DIGESTS} is damaged"
    there = files(folder)
    expected = {**payload, **about}
    for name in sorted(expected):
        if name not in there:
            return f"{name} is missing"
        try:
            found = sha256(folder / name)
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
        if found != expected[name]:
            return f"{name} is not as it was made (SHA-256 {found[:12]}, not {expected[name][:12]})"
    if extra := sorted(there.keys() - expected.keys() - {DIGESTS}):
        return f"{extra[0]} does not belong to it"
    recipe = read_json(folder / RECIPE)
    if not isinstance(recipe, dict) or recipe.get("key") != key:
        return f"{RECIPE} is of another artifact"
    return None
