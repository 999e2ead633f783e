"""`pagoda-bench cost`: what a scale takes, before a day is spent on it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pagoda_bench.cli.common import bytes_text, echo_columns, echo_json, json_option
from pagoda_bench.errors import UserError

if TYPE_CHECKING:
    from pagoda_bench.tables.scales import Scale

PEAK = {"A100": 312e12, "H100": 989e12}  # dense bf16 operations a second, from NVIDIA's data sheets
PRICE = {"A100": 2.0, "H100": 3.0}  # US dollars an hour: an assumption, --price has yours
REACHED = 0.35  # share of the peak
IMAGES = 1_331_167  # of ILSVRC2012, both splits


@click.command(
    epilog="""\b
Examples:
  pagoda-bench cost experiments/scales/imagenet.yaml
  pagoda-bench cost experiments/scales/imagenet.yaml --reached 0.25 --price A100=1.1 --price H100=2.4
"""
)
@click.argument("scale", type=click.Path(path_type=Path, dir_okay=False), metavar="SCALE.yaml")
@click.option(
    "--reached", default=REACHED, show_default=True, type=click.FloatRange(0, 1, min_open=True), help="Share of the peak."
)
@click.option("--price", "prices", multiple=True, metavar="GPU=USD", help="Dollars an hour of a GPU; may be given again.")
@json_option
def cost(scale: Path, reached: float, prices: tuple[str, ...], as_json: bool) -> None:
    """Print GPU hours, storage and cost of every stage of the chain in SCALE, on A100 and H100 figures.

    Operations are counted on the networks, hours follow from the GPU's peak and the share of it that is reached. That share
    and the prices are assumptions: set your own.
    """
    from pagoda_bench.recipes.values import read_yaml
    from pagoda_bench.tables.scales import Scale

    if not 0 < reached <= 1:
        raise UserError(f"--reached {reached}: give a share above 0 and up to 1")
    values = read_yaml(scale, "the scale")
    if not isinstance(values, dict) or not isinstance(values.get("data"), dict):
        raise UserError(f"{scale} is no scale: it has no section 'data'")
    values["data"] = {"digest": "0" * 64, **values["data"]} if values["data"].get("kind") == "prepared" else values["data"]
    show_costs(Scale.load(values, str(scale)), reached, _prices(prices), as_json)


def show_costs(scale: Scale, reached: float = REACHED, price: Mapping[str, float] = PRICE, as_json: bool = False) -> None:
    """Prints GPU hours, storage and dollars of the stages of a scale's chain."""
    from pagoda_bench.pagoda.cost import cost_of
    from pagoda_bench.recipes.base import walk

    paid = dict(price)
    rows = [c for recipe in walk(scale.pagoda_model(scale.top)) if (c := cost_of(recipe)) is not None]
    data = {size: 3 * size * size * IMAGES for size in scale.resolutions}
    hours = {gpu: [c.flops / (peak * reached) / 3600 for c in rows] for gpu, peak in PEAK.items()}
    if as_json:
        echo_json(
            {
                "reached": reached,
                "price": paid,
                "data_bytes": data,
                "stages": [{**vars(c), "hours": {gpu: h[i] for gpu, h in hours.items()}} for i, c in enumerate(rows)],
            }
        )
        return
    head = (
        "STAGE",
        "PARAMETERS",
        "EXAFLOP",
        *(f"{gpu} HOURS" for gpu in PEAK),
        *(f"{gpu} USD" for gpu in PEAK),
        "PAYLOAD",
        "WORK",
    )
    table = [head]
    for i, c in enumerate(rows):
        spent = [hours[gpu][i] for gpu in PEAK]
        dollars = [hours[gpu][i] * paid[gpu] for gpu in PEAK]
        table.append(_line(c.stage, f"{c.parameters:,}" if c.parameters else "-", c.flops, spent, dollars, c.storage, c.work))
    spent = [sum(hours[gpu]) for gpu in PEAK]
    dollars = [sum(hours[gpu]) * paid[gpu] for gpu in PEAK]
    storage, work = sum(c.storage for c in rows), max(c.work for c in rows)
    table.append(_line("all", "", sum(c.flops for c in rows), spent, dollars, storage, work))
    echo_columns(table, right=range(1, len(head)))
    sizes = ", ".join(f"{size} px {bytes_text(count)}" for size, count in data.items())
    click.echo(f"prepared images: {sizes}; all {bytes_text(sum(data.values()))}")
    click.echo(
        f"assumed: {reached:.0%} of the peak in bf16, {', '.join(f'{gpu} {usd:g} USD an hour' for gpu, usd in paid.items())}"
    )


def _line(
    stage: str, parameters: str, flops: float, hours: list[float], dollars: list[float], storage: int, work: int
) -> tuple[str, ...]:
    return (
        stage,
        parameters,
        f"{flops / 1e18:,.1f}",
        *(f"{h:,.0f}" for h in hours),
        *(f"{d:,.0f}" for d in dollars),
        bytes_text(storage),
        bytes_text(work),
    )


def _prices(values: tuple[str, ...]) -> dict[str, float]:
    found = dict(PRICE)
    for value in values:
        gpu, _, usd = value.partition("=")
        try:
            found[gpu] = float(usd)
        except ValueError:
            found[gpu] = -1
        if gpu not in PRICE or not 0 <= found[gpu] < math.inf:
            raise UserError(f"--price {value}: give GPU=USD with one of {', '.join(PRICE)}, e.g. A100=1.5")
    return found
