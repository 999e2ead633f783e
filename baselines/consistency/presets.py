"""Values of the consistency rows by scale. Those called "paper" are of the official launch scripts (ImageNet 64 px) and, for
iCT, of 2310.14189; the smaller scales keep the method and cut sizes, learning rates and numbers of noise levels."""

from __future__ import annotations

from typing import Any

Values = dict[str, Any]

_SHORT: Values = {"match": None, "train": {"steps": 20, "batch": 16, "warmup": 2}}
_SMALL: Values = {"batch": 64, "lr": 1.0e-3, "betas": [0.9, 0.99], "ema": 0.99}

_PAPER: Values = {"betas": [0.9, 0.999], "warmup": 1, "schedule": "constant"}  # of the learning rate: no decay

_CD: Values = {"first": 18, "distance": "features", "eps": 0.1, "decay": 0.9}
_CT: Values = {"schedule": "sqrt", "first": 2, "last": 60, "distance": "features", "eps": 0.1, "decay": 0.9, "adaptive": True}
_ICT: Values = {
    "schedule": "exponential",
    "first": 10,
    "last": 160,
    "levels": "lognormal",
    "distance": "pseudo-huber",
    "weight": "inverse-step",
    "decay": 0.0,
}

CD: dict[str, Values] = {
    "smoke": {**_SHORT, "objective": {**_CD, "first": 8}},
    "embedded": {"train": {**_SMALL, "batch": 32, "lr": 5.0e-4}, "objective": _CD},
    "cifar10": {"train": {**_SMALL, "lr": 5.0e-4}, "objective": _CD},
    # Two steps: the levels 0 and 22 of the grid of 40.
    "paper": {
        "match": None,
        "train": {"steps": 600_000, "batch": 2048, "lr": 8.0e-6, **_PAPER, "ema": 0.9999432189950708},
        "objective": {"first": 40, "decay": 0.95},
    },
}

CT: dict[str, Values] = {
    "smoke": {**_SHORT, "objective": {**_CT, "last": 12}},
    "embedded": {"train": {**_SMALL, "batch": 32}, "objective": _CT},
    "cifar10": {"train": _SMALL, "objective": _CT},
    # Two steps: the levels 0 and 106 of the grid of 201.
    "paper": {
        "match": None,
        "train": {"steps": 800_000, "batch": 2048, "lr": 1.0e-4, **_PAPER, "ema": 0.9999432189950708},
        "objective": {"schedule": "sqrt", "first": 2, "last": 200, "decay": 0.95, "adaptive": True},
    },
}

ICT: dict[str, Values] = {
    "smoke": {**_SHORT, "objective": {**_ICT, "first": 4, "last": 16}},
    "embedded": {"train": {**_SMALL, "batch": 32}, "objective": _ICT},
    "cifar10": {"train": _SMALL, "objective": _ICT},
    "paper": {
        "match": None,
        "train": {"steps": 800_000, "batch": 4096, "lr": 1.0e-4, **_PAPER, "ema": 0.99997},
        "objective": {**_ICT, "last": 1280},
    },
}

TWO_STEPS: dict[str, float] = {"cd": 1.3823679566485092, "ct": 1.9128436206953614, "ict": 0.821}
"""The second noise level of the published two-step samplers (CD and CT at 64 px by the official scripts, iCT on CIFAR-10)."""
