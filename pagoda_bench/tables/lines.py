"""The parts of an experiment file: a line of its grid, and a figure that answers one question from some of its rows."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from pagoda_bench.errors import UserError, nearest
from pagoda_bench.recipes.base import Config
from pagoda_bench.recipes.values import merged
from pagoda_bench.tables.cells import ALIGNMENT, DIRECTIONS
from pagoda_bench.tables.scales import Scale

SHORTHANDS = ("samples", "command")
COLUMNS = tuple(name for name in DIRECTIONS if name != ALIGNMENT)


class RowSpec(Config):
    """One line of the grid: a method at some of the scale's resolutions ("base", "grown", "top", "all" or a list)."""

    id: str
    label: str
    system: str
    method: str
    at: str | tuple[int, ...]
    published: str | None = None  # the system in the published table whose values stand beside this row
    options: dict[str, Any] = Field(default_factory=dict)  # of this row, over the scale's section `methods.<method>`
    against: str | None = None  # the row over whose distance this one's is drawn

    @model_validator(mode="wrap")  # around the check for unknown keys
    @classmethod
    def _shorthand(cls, value: Any, handler: Any) -> Any:
        """`samples: PATH` and `command: LINE` in the place of `method`, for images that others made or that a program makes."""
        named = [name for name in SHORTHANDS if isinstance(value, dict) and name in value]
        if not named:
            return handler(value)
        if len(named) > 1 or "method" in value:
            raise ValueError(f"give one of {', '.join(('method', *SHORTHANDS))}, not several")
        rest = {k: v for k, v in value.items() if k != named[0]}
        options = {named[0]: value[named[0]], **rest.get("options", {})}
        return handler({**rest, "method": named[0], "options": options})

    def values(self, scale: Scale) -> Scale:
        """The scale as this row's method sees it: its options merged over the section of the method."""
        if not self.options:
            return scale
        section = merged(scale.methods.get(self.method, {}), self.options)
        return scale.model_copy(update={"methods": {**scale.methods, self.method: section}})

    def resolutions(self, scale: Scale) -> tuple[int, ...]:
        places = {"base": (scale.base,), "grown": scale.grown, "top": (scale.top,), "all": scale.resolutions}
        if isinstance(self.at, str):
            if self.at not in places:
                raise UserError(f"row '{self.id}': unknown place '{self.at}'{nearest(self.at, places)}")
            return places[self.at]
        if absent := [r for r in self.at if r not in scale.resolutions]:
            raise UserError(f"row '{self.id}' is at {absent[0]} px, scale '{scale.name}' has {list(scale.resolutions)}")
        return self.at


class PlotSpec(Config):
    """Distance, and alignment where the table has it, of some rows side by side: points over the numbers `over`, one for each
    row and a line for each system among them, or a bar for each row. Errors are those of the table."""

    name: str
    title: str
    rows: tuple[str, ...] = Field(min_length=1)
    over: tuple[float, ...] = ()  # where on the axis each row stands
    axis: str = ""  # what the numbers are
    spacing: Literal["even", "log"] = "log"

    @model_validator(mode="after")
    def _placed(self) -> PlotSpec:
        if self.over and len(self.over) != len(self.rows):
            raise ValueError(f"plot '{self.name}' has {len(self.rows)} rows and {len(self.over)} numbers in `over`: one each")
        if bool(self.over) != bool(self.axis):
            raise ValueError(f"plot '{self.name}': `axis` says what the numbers in `over` are: give both or neither")
        if self.over and (min(self.over) <= 0 and self.spacing == "log"):
            raise ValueError(f"plot '{self.name}': numbers on a logarithmic axis must be above 0: use spacing 'even'")
        return self
