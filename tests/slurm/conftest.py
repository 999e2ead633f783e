"""Every test on a private cluster gets a store of its own, and leaves an empty queue behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import private_cluster
import pytest
from following import until
from toy_site import toy_environment

from pagoda_bench.artifacts.store import Store


@pytest.fixture
def store(cluster: private_cluster.Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An empty store, with this process speaking to the `cluster` of the test's module, whose jobs know the toy stages."""
    pytest.importorskip("submitit", reason="pip install 'pagoda-bench[slurm]'")
    for name, value in {**cluster.environment, **toy_environment(tmp_path), "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    yield Store(tmp_path / "store")
    cluster.run("scancel", "--user=root", check=False)
    until(lambda: not cluster.run("squeue", "--noheader").strip(), 120, "the queue does not empty")
