"""Values of the method by scale."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    # LDM-4's layout: four times smaller latents of three channels.
    "embedded": {
        "autoencoder": {
            "net": {"widths": [32, 48, 64], "groups": 8},
            "train": {"steps": 1, "batch": 24, "lr": 1.0e-3, "betas": [0.5, 0.99], "ema": 0.998},
            "share": 0.5,
        },
        "diffusion": {
            "net": {"channels": 32, "encoder": [1.25, 2.5], "attention": [8], "group_channels": 4},
            "train": {"steps": 1, "batch": 64, "lr": 1.0e-3, "ema": 0.998},
        },
        "sampler": {"points": 12},
    },
    "smoke": {
        "autoencoder": {
            "net": {"widths": [16, 16], "groups": 4},
            "train": {"steps": 1, "batch": 16, "lr": 1.0e-3},
            "share": 0.5,
        },
        "diffusion": {
            "net": {"channels": 16, "encoder": [1, 2], "attention": [4], "group_channels": 4},
            "train": {"steps": 1, "batch": 32, "lr": 1.0e-3},
        },
        "sampler": {"points": 4},
    },
}
PRESETS["cifar10"] = {
    **PRESETS["embedded"],
    "autoencoder": {**PRESETS["embedded"]["autoencoder"], "net": {"widths": [32, 64], "groups": 8}},
}
