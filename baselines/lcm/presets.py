"""Values of the method by scale. Autoencoder and network are those of the latent diffusion row: what stands here is laid over
its section. The autoencoder takes half of the matched work, as there, the teacher what is left up to its share."""

from __future__ import annotations

from typing import Any

_TEACHER: dict[str, Any] = {"drop": 0.1, "share": 0.8}

PRESETS: dict[str, dict[str, Any]] = {
    "embedded": {
        "diffusion": _TEACHER,
        "distillation": {
            "train": {"steps": 1, "batch": 8, "lr": 5.0e-4, "ema": 0.99, "precision": "bf16"},
            "objective": {"points": 50, "w": [0.0, 2.0]},
        },
        "steps": 4,
        "w": 0.5,
    },
    "smoke": {
        "diffusion": _TEACHER,
        "distillation": {
            "train": {"steps": 1, "batch": 32, "lr": 3.0e-4},
            "objective": {"points": 50, "w": [0.0, 2.0]},
        },
        "steps": 4,
        "w": 0.5,
    },
}
PRESETS["cifar10"] = PRESETS["embedded"]
