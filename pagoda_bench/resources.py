"""Where the files that travel with the package lie: experiments, published tables, results and released artifacts.

In a checkout they are folders beside the package; in an installed package they are inside it, under `_data`.
"""

from __future__ import annotations

from pathlib import Path

from pagoda_bench.errors import UserError, nearest

FOLDERS = ("experiments", "paper_tables", "results")
_PACKAGE = Path(__file__).resolve().parent


def folder(name: str) -> Path:
    """The folder `name` (one of `FOLDERS`); a `UserError` when it is unknown or did not come with this installation."""
    if name not in FOLDERS:
        raise UserError(f"unknown resource folder '{name}'" + nearest(name, FOLDERS))
    for place in (_PACKAGE / "_data" / name, _PACKAGE.parent / name):
        if place.is_dir():
            return place
    raise UserError(f"this installation of pagoda-bench lacks its '{name}' folder: install it again with 'pip install .'")


def released_roots() -> list[Path]:
    """The stores of released artifacts, `results/released`; none where none came along."""
    try:
        released = folder("results") / "released"
    except UserError:
        return []
    return [released] if released.is_dir() else []
