"""The names of released weights, and what those of each are for. No recipes here: a command's help lists the names at once."""

from __future__ import annotations

from typing import Literal

Format = Literal[
    "pagoda-64",
    "pagoda-128",
    "pagoda-256",
    "pagoda-512",
    "edm-openai-64",
    "adm-64",
    "cd-lpips-64",
    "cd-l2-64",
    "ct-64",
    "ctm-64",
]
Role = Literal["generator", "consistency", "trajectory", "edm", "adm"]

ROLES: dict[Format, Role] = {
    "pagoda-64": "generator",
    "pagoda-128": "generator",
    "pagoda-256": "generator",
    "pagoda-512": "generator",
    "edm-openai-64": "edm",
    "adm-64": "adm",
    "cd-lpips-64": "consistency",
    "cd-l2-64": "consistency",
    "ct-64": "consistency",
    "ctm-64": "trajectory",
}
"""What the network's output means. generator: the image (PaGoDA). consistency, trajectory: the image between the boundary
factors of consistency models, of CTM. edm: a denoised image by EDM's preconditioning. adm: the noise at a time step."""
