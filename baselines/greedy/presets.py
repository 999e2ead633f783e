"""Values of the method by scale. The paper's own sizes are not published: those called paper-* are ours, by parameter count."""

from __future__ import annotations

from typing import Any

from pagoda_bench.recipes.values import merged

SMALL_TRAIN: dict[str, Any] = {"steps": 1, "batch": 64, "lr": 1.0e-3, "ema": 0.999, "precision": "bf16"}

# Images are brought to unit variance, and the noise levels of both phases lie about where those of the EDM models of the same
# resolutions do: their logarithms have means of -1.4 at 8 px and of -0.4 at 64 px, with a deviation of 1.6.
_SMALL_PROCESS: dict[str, Any] = {"deviation": 0.5, "strata": "shuffled"}

PRESETS: dict[str, dict[str, Any]] = {
    # 8 px tokens one by one, then 64 px: a quarter of the work for the core, which is cheap, the rest for the high resolution.
    "embedded": {
        "core": {"grid": 8, "width": 80, "depth": 4, "heads": 5},
        "low": {
            "outer": {"patch": 1},
            "train": {**SMALL_TRAIN, "batch": 16, "lr": 2.0e-3},
            "share": 0.25,
            "process": {"shift": 16},
        },
        "grown": {
            "outer": {"patch": 2, "widths": [32, 64]},
            "train": {**SMALL_TRAIN, "batch": 8, "lr": 2.0e-3},
            "process": {"shift": 48},
        },
        "process": _SMALL_PROCESS,
        "sampler": {"points": 12},
        "thaw_at": 2000,
    },
    "cifar10": {
        "core": {"grid": 8, "width": 128, "depth": 4, "heads": 4},
        "low": {"outer": {"patch": 1}, "train": {**SMALL_TRAIN, "batch": 128}, "share": 0.35, "process": {"shift": 16}},
        "grown": {"outer": {"patch": 1, "widths": [48, 96]}, "train": {**SMALL_TRAIN, "batch": 48}},
        "process": _SMALL_PROCESS,
        "sampler": {"points": 12},
        "thaw_at": 300,
    },
    "smoke": {
        "core": {"grid": 8, "width": 32, "depth": 2, "heads": 2},
        "low": {"outer": {"patch": 1}, "train": {**SMALL_TRAIN, "batch": 32}, "share": 0.4},
        "grown": {"outer": {"patch": 1, "widths": [16]}, "train": {**SMALL_TRAIN, "batch": 32}},
        "process": _SMALL_PROCESS,
        "sampler": {"points": 4},
        "thaw_at": 5,
    },
}

# 32 px for a third of the work: experiments/growing.yaml trains many of them. Noise as the EDM model of 32 px would have it.
PRESETS["embedded-32"] = merged(
    PRESETS["embedded"], {"grown": {"outer": {"widths": [64]}, "process": {"shift": 32}}, "thaw_at": 850}
)


def _paper(width: int, depth: int, heads: int, widths: list[int]) -> dict[str, Any]:
    """64 px low resolution over a grid of 16, then 256 px and above; T5 tokens. Batch 256 is the paper's small batch."""
    train = {"steps": 500_000, "batch": 256, "lr": 1.0e-4, "warmup": 10_000, "ema": 0.9999}
    text = {"encoder": "t5", "name": "google/t5-v1_1-xxl", "tokens": 128, "width": 4096}
    return {
        "core": {"grid": 16, "width": width, "depth": depth, "heads": heads, "text": text},
        "low": {"outer": {"patch": 4}, "train": {**train, "batch": 2048}},
        "grown": {"outer": {"patch": 4, "widths": widths, "blocks": 2}, "train": train},
        "process": {"shift": 64},
        "sampler": {"solver": "ddim", "points": 250, "eta": 1.0},
        "guidance": 4.0,
        "match": None,
    }


PRESETS |= {
    # parameters of the whole grown model at 1024 px, checked on the meta device by the tests
    "paper-600m": _paper(1024, 20, 16, [64, 128, 256, 512]),
    "paper-2b": _paper(2048, 16, 16, [128, 256, 512, 1024]),
    "paper-4b": _paper(2560, 23, 20, [128, 256, 512, 1024]),
    "paper-8b": _paper(3072, 34, 24, [128, 256, 512, 1024]),
}
