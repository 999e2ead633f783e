"""Values of the GAN by scale. `net` is the stem's generator, `grown` has one block for each doubling above it; with equal work
their shares rise, and the last stage that a row has takes 1."""

from __future__ import annotations

from typing import Any

Values = dict[str, Any]

_TRAIN: Values = {"batch": 16, "lr": 2.0e-3, "betas": [0.0, 0.99], "ema": 0.995, "precision": "bf16"}
_SMALL: Values = {**_TRAIN, "lr": 3.0e-3}
_TRAIN_32: Values = {**_TRAIN, "batch": 32}
_LONG: Values = {
    "steps": 500_000,
    "batch": 2048,
    "lr": 2.5e-3,
    "betas": [0.0, 0.99],
    "warmup": 1,
    "ema": 0.998,
    "schedule": "constant",
}

PRESETS: dict[str, Values] = {
    "smoke": {
        "match": None,
        "net": {"channels": [16, 16], "layers": [1, 1], "latent": 16, "width": 32},
        "stem": {"train": {"steps": 20, "batch": 16, "warmup": 2}},
        "grown": [{"channels": 16, "layers": 1, "train": {"steps": 20, "batch": 16, "warmup": 2}}],
        "adversary": {"width": 16},
    },
    "embedded": {
        "net": {"channels": [96, 96], "layers": [2, 2], "mapping_rate": 1.0},
        "stem": {"train": _SMALL, "share": 0.3},
        "grown": [
            {"channels": 64, "train": _SMALL, "share": 0.42},
            {"channels": 48, "train": _SMALL, "share": 0.58},
            {"channels": 32, "train": _SMALL},
        ],
        "adversary": {"discriminator": "deep", "width": 64, "updates": 2},
    },
    "cifar10": {
        "net": {"channels": [96, 96], "layers": [2, 2], "mapping_rate": 0.1},
        "stem": {"train": _TRAIN_32, "share": 0.35},
        "grown": [{"channels": 64, "train": _TRAIN_32, "share": 0.6}, {"channels": 48, "train": _TRAIN_32}],
        "adversary": {"width": 64, "updates": 2, "augment": True},
    },
    "paper": {
        "match": None,
        "net": {"grid": 16, "channels": [1024], "layers": [10], "latent": 64, "width": 512, "classes": 1000},
        "stem": {"train": _LONG},
        "grown": [
            {"channels": 768, "layers": 7, "train": {**_LONG, "batch": 2048}},
            {"channels": 384, "layers": 7, "train": {**_LONG, "batch": 2048}},
            {"channels": 256, "layers": 7, "train": {**_LONG, "batch": 256}},
            {"channels": 128, "layers": 7, "train": {**_LONG, "batch": 256}},
            {"channels": 64, "layers": 7, "train": {**_LONG, "batch": 128}},
        ],
        "adversary": {
            "features": "projected",
            "discriminator": "stylegan-xl",
            "updates": 1,
            "lr": 2.0e-3,
            "augment": True,
        },
    },
}
