"""Settings of `TrainConfig` that a training does not have: refused, since they would be passed over in silence."""

from __future__ import annotations

from collections.abc import Iterable

from pagoda_bench.errors import UserError
from pagoda_bench.recipes.stages import TrainConfig


def refuse(config: TrainConfig, title: str, names: Iterable[str]) -> None:
    """`UserError` where one of `names` is not at its default, or where float16 is asked of a training without a loss scale.
    `title` is that of the recipe."""
    for name in names:
        if getattr(config, name) != TrainConfig.model_fields[name].default:
            raise UserError(f"{title}: train.{name} is not for this method: leave it out")
    if config.precision == "fp16":
        raise UserError(f"{title}: train.precision fp16 needs a loss scale, which this method has not: use bf16 or fp32")
