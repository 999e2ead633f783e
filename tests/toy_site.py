"""Makes the toy stages known to commands that tests start: as a package that registers them, the way a third party's does."""

from __future__ import annotations

import os
from pathlib import Path

TESTS = Path(__file__).resolve().parent


def toy_environment(folder: Path, *, name: str = "toys") -> dict[str, str]:
    """Variables with which `pagoda-bench run-stage`, run anywhere, knows the recipes of `toy_jobs` and `toy_stages`."""
    about = folder / "site" / f"{name}-0.dist-info"
    about.mkdir(parents=True, exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
    (about / "entry_points.txt").write_text("[pagoda_bench.methods]\ntoys = toy_jobs\n")
    paths = [str(about.parent), str(TESTS), str(TESTS.parent)]
    return {"PYTHONPATH": os.pathsep.join(paths), "PAGODA_BENCH_STORE": str(folder / "default-store")}
