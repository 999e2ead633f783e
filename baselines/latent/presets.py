"""Values of the method by scale."""

from __future__ import annotations

from typing import Any

LAYOUTS: dict[str, dict[str, Any]] = {
    "kl-f4": {"widths": [128, 256, 512], "layers": 2, "latent": 3},
    "kl-f8": {"widths": [128, 256, 512, 512], "layers": 2, "latent": 4},
    "vq-f4": {"widths": [128, 256, 512], "layers": 2, "latent": 3, "codes": 8192},
    "vq-f8": {"widths": [128, 256, 256, 512], "layers": 2, "latent": 4, "codes": 16384, "attention": [3]},
}
"""The published autoencoders of LDM-4 and LDM-8 (and, kl-f8, of Stable Diffusion), as fields of `autoencoder.net`."""

PRESETS: dict[str, dict[str, Any]] = {
    # LDM-4's layout: four times smaller latents of three channels.
    "embedded": {
        "autoencoder": {
            "net": {"widths": [32, 48, 64], "groups": 8},
            "train": {"steps": 1, "batch": 6, "lr": 1.0e-3, "betas": [0.5, 0.99], "ema": 0.998, "precision": "bf16"},
            "share": 0.5,
        },
        "diffusion": {
            "net": {"channels": 32, "encoder": [1.25, 2.5], "attention": [8], "group_channels": 4},
            "train": {"steps": 1, "batch": 16, "lr": 3.0e-3, "ema": 0.998, "precision": "bf16"},
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
# LDM-4 at 256 px on VQ-f4. Its U-Net has the sizes of the one that was released for faces; how long it trains is ours.
PRESETS["ldm-4"] = {
    "match": None,
    "autoencoder": {
        "net": LAYOUTS["vq-f4"],
        "loss": {"adversarial_from": 50_000},
        "train": {"steps": 500_000, "batch": 16, "lr": 7.2e-5, "betas": [0.5, 0.9], "ema": 0.9999},
    },
    "diffusion": {
        "net": {
            "channels": 224,
            "encoder": [1, 2, 3, 4],
            "blocks": 2,
            "attention": [32, 16, 8],
            "head_channels": 32,
            "classes": 1000,
        },
        "train": {"steps": 500_000, "batch": 256, "lr": 1.0e-4, "ema": 0.9999},
    },
    "sampler": {"points": 50},
}
PRESETS["cifar10"] = {
    **PRESETS["embedded"],
    "autoencoder": {**PRESETS["embedded"]["autoencoder"], "net": {"widths": [32, 64], "groups": 8}},
}
