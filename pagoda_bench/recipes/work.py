"""The work of a chain of trainings, known before any of them is made."""

from __future__ import annotations

from typing import ClassVar

from pagoda_bench.recipes.base import Recipe

PAYLOAD = "work.json"  # {"flops": all of them, "stages": {name: those of one}}


class Work(Recipe, kind="work"):
    """The counted training work of `of` and everything upstream of it, each stage once, without the feature network.

    Counted on networks that were never trained: how many operations a step takes does not depend on what a network has
    learnt. So nothing needs to be made first, and a row of equal work trains beside the chain that it is matched with.
    """

    runner: ClassVar[str] = "pagoda_bench.plan.work:run"

    of: Recipe

    @property
    def title(self) -> str:
        return f"work of {self.of.title}"

    def inputs(self) -> list[Recipe]:
        return []
