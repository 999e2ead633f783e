"""From files to scores: time against the reference programs, one after the other, on the same weights (see bench_metrics.py).

PAGODA_BENCH_IMAGES (default 48) is the number of images of each set, of 64 px. With as few as that, two networks are nearly all
of the time, on either side; with thousands of images, or on a GPU, what the programs do besides counts more.
PAGODA_BENCH_DEVICE=cuda measures there.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from bench_metrics import report
from image_files import encoded, folder_of
from PIL import Image
from test_evaluate import images
from test_extractors import scrambled

from pagoda_bench.metrics.evaluate import evaluate
from pagoda_bench.metrics.extractors import load_extractor
from pagoda_bench.metrics.extractors.clean import clean_resize
from pagoda_bench.metrics.opening import open_images
from pagoda_bench.metrics.settings import PROTOCOLS

pytestmark = pytest.mark.slow
N = int(os.environ.get("PAGODA_BENCH_IMAGES", "48"))
DEVICE = os.environ.get("PAGODA_BENCH_DEVICE", "cpu")
INSTALL = "pip install 'pagoda-bench[eval]'"


def clocked(*functions: Callable[[], Any], times: int) -> list[tuple[float, Any]]:
    """Seconds of the clock, the least of `times` turns, and results: threads and loaders of either side count as they are."""
    best: list[tuple[float, Any]] = [(float("inf"), None)] * len(functions)
    for _ in range(times):
        for i, function in enumerate(functions):
            start = time.perf_counter()
            result = function()
            best[i] = min(best[i], (time.perf_counter() - start, result), key=lambda pair: pair[0])
    return best


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    found = [tmp_path_factory.mktemp(name) for name in ("samples", "real")]
    for seed, folder in enumerate(found, 1):
        folder_of(folder, {f"{i:05}.png": encoded(image) for i, image in enumerate(images(N, seed, 64))})
    return found


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch_fidelity", reason=INSTALL)
    from pagoda_bench.metrics.extractors.inception import Network

    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(scrambled(Network()), path)
    return path


def test_the_suite_against_the_reference_programs(benchmark: Any, folders: list[Path], inception: Path) -> None:
    """FID, KID, IS, precision, recall as torch-fidelity, FID and KID as clean-fid, density and coverage as prdc.

    Each by the calls that the program offers: one of torch-fidelity, with one network for everything; `compute_fid` and
    `compute_kid` of clean-fid, which share no features (their parts are called here, because the second takes no network of
    one's own); and prdc, which takes features, of clean-fid's network. Four passes, where two are needed.
    """
    fidelity: Any = pytest.importorskip("torch_fidelity", reason=INSTALL)
    cleanfid: Any = pytest.importorskip("cleanfid.fid", reason=INSTALL)
    prdc: Any = pytest.importorskip("prdc", reason=INSTALL)
    samples, real = map(str, folders)
    subset = min(N // 2, 1000)
    scripted: Any = load_extractor("clean", inception, DEVICE)  # its network stands for clean-fid's, whose file is not here

    def sides() -> list[np.ndarray]:
        return [
            cleanfid.get_folder_features(
                folder, lambda x: scripted.network(x, ["pool3"])["pool3"], num_workers=os.cpu_count() or 1,
                device=torch.device(DEVICE), mode="clean", verbose=False,
            )
            for folder in (samples, real)
        ]  # fmt: skip

    def theirs() -> dict[str, float]:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            found: dict[str, float] = fidelity.calculate_metrics(
                input1=samples, input2=real, cuda=DEVICE == "cuda", isc=True, fid=True, kid=True, prc=True, cache=False,
                kid_subset_size=subset, feature_extractor="inception-v3-compat", verbose=False,
                feature_extractor_weights_path=str(inception),
            )  # fmt: skip
            first, second, third = sides(), sides(), sides()
            moments = [part for side in first for part in (side.mean(0), np.cov(side, rowvar=False))]
            found["clean"] = float(cleanfid.frechet_distance(*moments))
            cleanfid.kernel_distance(*second, max_subset_size=subset)
            found |= prdc.compute_prdc(third[1], third[0], nearest_k=5)
        return found

    networks = {
        "inception": load_extractor("inception", inception, DEVICE),
        "clean": load_extractor("clean", inception, DEVICE),
    }

    def ours() -> dict[str, float]:
        with pytest.MonkeyPatch.context() as patch:
            _place(patch, subset)
            first = evaluate(samples, real, protocol="torch-fidelity", extractors=networks, device=DEVICE)
            second = evaluate(
                samples, real, ["fid", "kid", "density", "coverage"], protocol="clean", extractors=networks, device=DEVICE
            )
        return {score.metric: score.value for score in first} | {f"clean {score.metric}": score.value for score in second}

    (slow, expected), (fast, found) = clocked(theirs, ours, times=1 if DEVICE == "cpu" else 3)
    benchmark.pedantic(lambda: None, rounds=1)
    line = f"suite, {N:,} images a side on {DEVICE}: theirs {slow:.1f} s, here {fast:.1f} s: {slow / fast:.2f} times faster"
    report(benchmark, line, times_faster=slow / fast)
    assert found["fid"] == pytest.approx(expected["frechet_inception_distance"], rel=1e-4)
    assert found["clean fid"] == pytest.approx(expected["clean"], rel=1e-2)  # their PIL, of one channel at a time
    assert found["clean coverage"] == pytest.approx(expected["coverage"], abs=2.01 / N)
    if DEVICE == "cuda" and N >= 5000:
        assert slow >= 2 * fast
    else:
        assert slow > fast


def _place(patch: pytest.MonkeyPatch, subset: int) -> None:
    """One network for all of torch-fidelity's metrics, as it is called above; subsets of KID that fit."""
    from pagoda_bench.metrics import suite

    for name in ("torch-fidelity", "clean"):
        settings = PROTOCOLS[name].model_copy(update={"subset": subset, "draws": 0})
        patch.setitem(PROTOCOLS, name, settings)
    for metric in ("precision", "recall"):
        patch.setitem(suite.PLACES["torch-fidelity"], metric, ("inception", "pool3"))


def test_decoding_and_resizing_against_one_pil_process(benchmark: Any, tmp_path: Path) -> None:
    """Images a second from PNG files of 256 px to float 299 px; reported, not asserted: it is a matter of cores."""
    count = 2 * N
    folder_of(tmp_path, {f"{i:05}.png": encoded(image) for i, image in enumerate(images(count, 1, 256))})

    def pil() -> None:
        for path in sorted(tmp_path.iterdir()):
            with Image.open(path) as image:
                planes = [np.asarray(image)[..., c].astype(np.float32) for c in range(3)]
            resized = [Image.fromarray(plane).resize((299, 299), Image.Resampling.BICUBIC) for plane in planes]
            np.stack([np.asarray(plane) for plane in resized]).clip(0, 255)

    def here() -> None:
        for batch in open_images(tmp_path).batches(64):
            clean_resize(torch.from_numpy(batch.images).permute(0, 3, 1, 2).contiguous().to(DEVICE))

    (slow, _), (fast, _) = clocked(pil, here, times=3)
    benchmark.pedantic(here, rounds=1)
    line = f"decode and resize 256 to 299: one PIL process {count / slow:.0f} images/s, here {count / fast:.0f} on {DEVICE}"
    report(benchmark, line, times_faster=slow / fast)
