"""What holds for every test: few threads, no screen, no network of caches with the user's own, repeatable examples."""

from __future__ import annotations

import os

# Before torch, numpy or matplotlib are imported: with several workers each takes its share of the cores, since threads of
# one worker only get in the way of another's.
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_THREADS = str(max(1, (os.cpu_count() or 1) // _WORKERS))
_OURS = "PAGODA_BENCH_TEST_THREADS"  # which of these are not the user's: workers inherit what their parent has set
_NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_FREE = os.environ.get(_OURS, ",".join(name for name in _NAMES if name not in os.environ))
os.environ |= {_OURS: _FREE, **{name: _THREADS for name in _FREE.split(",") if name}}
os.environ["MPLBACKEND"] = "Agg"

import sys  # noqa: E402
import types  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402

import pytest  # noqa: E402
from hypothesis import settings  # noqa: E402

# torch-fidelity installs a package `tests`, which would hide this folder from "from tests.x import y".
sys.modules["tests"] = types.ModuleType("tests")
sys.modules["tests"].__path__ = [str(Path(__file__).resolve().parent)]

settings.register_profile("default", deadline=None, print_blob=True)
settings.register_profile("ci", deadline=None, print_blob=True, derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "default")


@pytest.fixture(autouse=True, scope="session")
def own_places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Artifacts and caches of the tests, and of the commands that they start, go to a temporary folder."""
    with pytest.MonkeyPatch.context() as patch:
        home = tmp_path_factory.mktemp("places")
        patch.setenv("PAGODA_BENCH_STORE", str(home / "store"))
        patch.setenv("PAGODA_BENCH_CACHE", str(home / "cache"))
        patch.setenv("XDG_CACHE_HOME", str(home / "xdg"))
        yield


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a SLURM that only writes down what it is asked (fake_slurm.py), in the place of the real one."""
    from fake_slurm import install

    return install(tmp_path / "fake", monkeypatch)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout that the tests belong to."""
    return Path(__file__).resolve().parent.parent
