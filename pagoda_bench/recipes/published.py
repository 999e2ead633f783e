"""The published networks. Import and tests read these tables."""

from __future__ import annotations

from pagoda_bench.recipes.formats import Format
from pagoda_bench.recipes.stages import UNetConfig

ADM64 = UNetConfig(
    resolution=64, channels=192, encoder=(1, 2, 3, 4), blocks=3, attention=(32, 16, 8), head_channels=64, classes=1000
)
"""ImageNet 64: guided diffusion, the EDM and consistency models of openai/consistency_models, CTM, PaGoDA's base."""

ADM32 = ADM64.model_copy(update={"resolution": 32, "channels": 256, "encoder": (1.0, 2.0, 4.0), "attention": (16, 8)})
"""PaGoDA's base of 32 px (sony/pagoda at e6c850d). No released weights of it are known."""


def grown(*decoder: float) -> UNetConfig:
    """The 64 px network with these multipliers of the decoder, from the highest resolution to the lowest."""
    return ADM64.model_copy(update={"decoder": decoder})


PUBLISHED: dict[Format, tuple[UNetConfig, ...]] = {
    "pagoda-64": (ADM64,),
    "pagoda-128": (grown(1.0, 1.0, 2.0, 3.0, 4.0),),
    "pagoda-256": (grown(1.0, 1.0, 1.0, 2.0, 3.0, 4.0),),
    # The multipliers that go on from 256 px, and those of the released script, which change the widths of the base.
    "pagoda-512": (grown(0.5, 1.0, 1.0, 1.0, 2.0, 3.0, 4.0), grown(0.5, 1.0, 1.0, 1.0, 1.0, 2.0, 4.0)),
    "edm-openai-64": (ADM64,),
    "adm-64": (ADM64,),
    "cd-lpips-64": (ADM64,),
    "cd-l2-64": (ADM64,),
    "ct-64": (ADM64,),
    "ctm-64": (ADM64,),
}
"""The networks that a name may stand for; the first is the consistent one. CTM's is what is left with the end of its
trajectories fixed (pagoda/trajectory.py)."""
