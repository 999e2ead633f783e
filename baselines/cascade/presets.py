"""Values of the cascade by scale. `stages` go from low to high; with equal work their shares rise, and the last takes 1."""

from __future__ import annotations

from typing import Any

Values = dict[str, Any]

_BLUR = [0.4, 0.6]
_SMALL: Values = {"lr": 1.0e-3, "ema": 0.998, "precision": "bf16"}
_TO_32: Values = {
    "resolution": 32,
    "patch": 2,
    "channels": 32,
    "encoder": [1.25, 2],
    "attention": [8],
    "group_channels": 4,
}

PRESETS: dict[str, Values] = {
    "smoke": {
        "stages": [
            {
                "match": None,
                "net": {"resolution": 16, "channels": 16, "encoder": [1, 2], "attention": [8]},
                "train": {"steps": 20, "batch": 16, "warmup": 2},
            },
        ],
        "levels": 0.1,
    },
    # Two leaps, by 2 and by 4, as 32 to 64 to 256 px in the paper. The upper network is that of the equal-work EDM row.
    "embedded": {
        "stages": [
            {
                "net": {"resolution": 16, "channels": 32, "encoder": [1.25, 2], "attention": [8], "group_channels": 4},
                "train": {**_SMALL, "batch": 16, "lr": 3.0e-3},
                "strata": "shuffled",
                "share": 0.35,
            },
            {
                "net": {
                    "resolution": 64,
                    "patch": 2,
                    "channels": 32,
                    "encoder": [0.75, 1.5, 2],
                    "attention": [8],
                    "group_channels": 4,
                },
                "train": {**_SMALL, "batch": 8, "lr": 3.0e-3},
                "strata": "shuffled",
                "augment": {"blur": _BLUR},
            },
        ],
        "points": [18, 12, 12],
        "levels": 0.1,
    },
    # 32 px in one leap by 4, for the little work that experiments/growing.yaml gives.
    "embedded-32": {
        "stages": [
            {
                "net": _TO_32,
                "train": {**_SMALL, "batch": 8, "lr": 3.0e-3},
                "strata": "shuffled",
                "augment": {"blur": _BLUR},
            },
        ],
        "points": [18, 12],
        "levels": 0.1,
    },
    "cifar10": {
        "stages": [
            {
                "net": _TO_32,
                "train": {**_SMALL, "batch": 48},
            },
        ],
        "points": [18, 12],
        "levels": 0.1,
    },
    # From a base at 64 px. The networks are those of ADM's upsamplers, since the paper's sizes could not be read here.
    "paper": {
        "stages": [
            {
                "match": None,
                "net": {
                    "resolution": 256,
                    "channels": 192,
                    "encoder": [1, 1, 2, 2, 4, 4],
                    "blocks": 2,
                    "attention": [32, 16, 8],
                    "head_channels": 64,
                    "classes": 1000,
                },
                "train": {"steps": 500_000, "batch": 256, "lr": 1.0e-4, "betas": [0.9, 0.999], "warmup": 10_000, "ema": 0.9999},
                "augment": {"blur": _BLUR},
            },
        ],
        "points": [256, 128],
        "levels": 0.1,
    },
}
