"""Speed and memory against the libraries of the field, as ratios within one run (slow; figures belong to one machine).

    python -m pytest -m slow tests/bench_metrics.py tests/bench_suite.py -s

prints every ratio and, with PAGODA_BENCH_RATIOS=FILE, writes them there as JSON. Both sides of a ratio are run in turns, so
that a busy machine slows both. PAGODA_BENCH_SIZE (default 3000) is the number of images of the comparison with prdc; 10000 is
what the docs speak of. PAGODA_BENCH_FULL=1 adds 50,000 against 50,000 images of 2048 dimensions, which takes long.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg

from pagoda_bench.metrics.frechet import frechet_distance, frechet_from_features

pytestmark = pytest.mark.slow
SIZE = int(os.environ.get("PAGODA_BENCH_SIZE", "3000"))
FULL = os.environ.get("PAGODA_BENCH_FULL") == "1"
D = 2048


def timed(*functions: Callable[[], Any], times: int = 1) -> list[tuple[float, Any]]:
    """For each function the least CPU seconds of this process, which other programs disturb less than the clock, and its
    result; in turns."""
    best: list[tuple[float, Any]] = [(float("inf"), None)] * len(functions)
    for _ in range(times):
        for i, function in enumerate(functions):
            start = time.process_time()
            result = function()
            best[i] = min(best[i], (time.process_time() - start, result), key=lambda pair: pair[0])
    return best


def report(benchmark: Any, line: str, **ratios: float) -> None:
    """Prints a line, keeps the ratios with the benchmark, and adds them to the file of ratios."""
    print(f"\n{line}")
    benchmark.extra_info |= ratios
    if name := os.environ.get("PAGODA_BENCH_RATIOS"):
        path = Path(name)
        known = json.loads(path.read_text()) if path.exists() else {}
        known[benchmark.name] = {"said": line, **ratios}
        path.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")


def sqrtm_distance(m1: np.ndarray, s1: np.ndarray, m2: np.ndarray, s2: np.ndarray) -> float:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of singular products and of its own future
        root = scipy.linalg.sqrtm(s1 @ s2)
    return float(((m1 - m2) ** 2).sum() + np.trace(s1 + s2 - 2 * np.real(root)))


def of(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return x.mean(0), np.cov(x, rowvar=False)


def test_frechet_of_full_rank_is_ten_times_faster_than_sqrtm(benchmark: Any) -> None:
    rng = np.random.default_rng(0)
    sides = [*of(rng.normal(size=(2 * D, D))), *of(1.1 * rng.normal(size=(2 * D, D)) + 0.1)]
    (slow, expected), (fast, found) = timed(lambda: sqrtm_distance(*sides), lambda: frechet_distance(*sides), times=2)
    benchmark.pedantic(lambda: frechet_distance(*sides), rounds=1)
    line = f"Frechet, {D} dimensions, full rank: sqrtm {slow:.2f} s, here {fast:.2f} s: {slow / fast:.1f} times"
    report(benchmark, line, times_faster=slow / fast)
    assert found == pytest.approx(expected, rel=1e-8)
    assert slow >= 10 * fast


def test_frechet_of_a_thousand_images_is_fifty_times_faster_than_sqrtm(benchmark: Any) -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(1000, D)), 1.1 * rng.normal(size=(1000, D)) + 0.1
    (slow, expected), (fast, found) = timed(
        lambda: sqrtm_distance(*of(a), *of(b)), lambda: frechet_from_features(a, b), times=2
    )
    benchmark.pedantic(lambda: frechet_from_features(a, b), rounds=1)
    line = f"Frechet, 1,000 images: sqrtm {slow:.2f} s, here {fast:.2f} s: {slow / fast:.1f} times"
    report(benchmark, line, times_faster=slow / fast)
    assert found == pytest.approx(expected, rel=1e-6)
    assert slow >= 50 * fast


# Run in a process of its own, whose peak is then that of one function. The features are made before, and not counted.
PEAK = """
import contextlib, io, resource, sys, time
import numpy as np
which, n, d = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if which == "prdc":
    from prdc import compute_prdc
else:
    from pagoda_bench.metrics.neighbours import neighbours
rng = np.random.default_rng(0)
def draw(shift):
    x = rng.standard_normal((n, d), dtype=np.float32)
    x += np.float32(shift)
    return x
real, generated = draw(0), draw(0.02)
def run(a, b):
    if which == "prdc":
        with contextlib.redirect_stdout(io.StringIO()):
            found = compute_prdc(a, b, nearest_k=5)
        return [found[name] for name in ("precision", "recall", "density", "coverage")]
    return list(neighbours(a, b, 5, inclusive=False, dtype=None))
run(real[:64], generated[:64])  # libraries load and warm up
def peak():
    with open("/proc/self/status") as lines:
        found = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith(("VmHWM", "VmRSS"))}
    return int(found["VmHWM"]) * 1024, int(found["VmRSS"]) * 1024
_, before = peak()
start = time.process_time()
values = run(real, generated)
spent = time.process_time() - start
most, _ = peak()
print(spent, most - before, most, *values)
"""


def measured(which: str, n: int, d: int) -> tuple[float, float, float, list[float]]:
    """(CPU seconds, peak bytes above the features, peak bytes of the process, the four numbers)."""
    done = subprocess.run([sys.executable, "-c", PEAK, which, str(n), str(d)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    spent, above, most, *values = map(float, done.stdout.split())
    return spent, above, most, values


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux: peak memory is read from /proc")
def test_neighbours_against_prdc(benchmark: Any) -> None:
    slow = measured("prdc", SIZE, D)
    fast = benchmark.pedantic(lambda: measured("here", SIZE, D), rounds=1)
    line = (
        f"{SIZE:,} x {SIZE:,} x {D}: prdc {slow[0]:.1f} s, {slow[1] / 2**20:.0f} MiB; here {fast[0]:.1f} s, "
        f"{fast[1] / 2**20:.0f} MiB: {slow[0] / fast[0]:.1f} times faster, {slow[1] / fast[1]:.1f} times less"
    )
    report(benchmark, line, times_faster=slow[0] / fast[0], part_of_the_memory=fast[1] / slow[1])
    assert fast[3] == pytest.approx(slow[3], rel=1e-3)
    if SIZE >= 10_000:  # below, what does not grow with N counts too much
        assert slow[0] >= 5 * fast[0]
        assert fast[1] <= slow[1] / 10
    else:
        assert slow[0] > fast[0]


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux: peak memory is read from /proc")
def test_memory_does_not_grow_with_pairs(benchmark: Any) -> None:
    """Four times the images: sixteen times the pairs, and next to no more memory above the features."""
    small = measured("here", 2_500, 64)
    large = benchmark.pedantic(lambda: measured("here", 10_000, 64), rounds=1)
    line = f"above the features: {small[1] / 2**20:.0f} MiB for 2,500 images, {large[1] / 2**20:.0f} MiB for 10,000"
    report(benchmark, line, mebibytes_more=(large[1] - small[1]) / 2**20)
    assert large[1] - small[1] < 64 * 2**20  # one matrix of 10,000 x 10,000 has 400 MB


@pytest.mark.skipif(not FULL, reason="takes long: set PAGODA_BENCH_FULL=1")
def test_fifty_thousand_against_fifty_thousand_in_two_gigabytes(benchmark: Any) -> None:
    spent, above, most, _ = benchmark.pedantic(lambda: measured("here", 50_000, D), rounds=1)
    line = f"50,000 x 50,000 x {D}: {spent:.0f} s of CPU, {most / 1e9:.2f} GB, {above / 2**20:.0f} MiB above the features"
    report(benchmark, line, gigabytes=most / 1e9)
    assert most <= 2e9
