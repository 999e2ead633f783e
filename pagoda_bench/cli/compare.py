"""`pagoda-bench compare`: two sets of scores beside each other, where that means something."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pagoda_bench.cli.common import echo_columns, listed
from pagoda_bench.errors import UserError

if TYPE_CHECKING:
    from pagoda_bench.metrics.score_schema import Score

CONSISTENT, REFUSED = 0, 1


@click.command(
    epilog="""\b
Examples:
  pagoda-bench compare mine.json theirs.json                   every metric that both have
  pagoda-bench compare mine.json theirs.json --metrics fid,is
  pagoda-bench compare mine.json theirs.json --json
"""
)
@click.argument("a", type=click.Path(path_type=Path, dir_okay=False), metavar="A.json")
@click.argument("b", type=click.Path(path_type=Path, dir_okay=False), metavar="B.json")
@click.option("--metrics", metavar="NAME,...", help="Only these [default: all that both have].")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def compare(a: Path, b: Path, metrics: str | None, as_json: bool) -> int:
    """Subtract the scores in A from those in B, metric by metric, where their protocols agree.

    Where they do not, nothing is subtracted and the fields that differ are printed; the exit code is 1 then.
    """
    from pagoda_bench.metrics.score_schema import differences, load

    left, right = ({score.metric: score for score in load(path)} for path in (a, b))
    shared = [name for name in left if name in right]
    names = shared if metrics is None else listed(metrics, "--metrics")
    for name in names:
        for path, scores in ((a, left), (b, right)):
            if name not in scores:
                raise UserError(f"{path} has no score '{name}' (it has: {', '.join(scores) or 'none'})")
    if not names:
        raise UserError(f"{a} and {b} share no metric: {', '.join(left)} and {', '.join(right)}")
    rows, refusals, found = [("METRIC", "A", "B", "B - A", "")], [], []
    for name in names:
        one, two = left[name], right[name]
        unlike = differences(one.protocol, two.protocol)
        item = {"metric": name, "a": one.value, "b": two.value, "differing": unlike}
        if unlike:
            rows.append((name, f"{one.value:.6g}", f"{two.value:.6g}", "", "not comparable"))
            refusals.append(f"{name}: {'; '.join(unlike)}")
        else:
            verdict = judge(one, two)
            item |= {"difference": two.value - one.value, "verdict": verdict}
            rows.append((name, f"{one.value:.6g}", f"{two.value:.6g}", f"{two.value - one.value:+.4g}", verdict))
        found.append(item)
    if as_json:
        click.echo(json.dumps(found, indent=1, allow_nan=False))
    else:
        echo_columns(rows, right=(1, 2, 3))
        for refusal in refusals:
            click.echo(f"! {refusal}")
    return REFUSED if refusals else CONSISTENT


def judge(a: Score, b: Score) -> str:
    """Which of two comparable scores is better, beyond chance and the noise of retraining; or that this is not shown."""
    from pagoda_bench.metrics.significance import better

    one, two = list(a.values) or [a.value], list(b.values) or [b.value]
    larger = a.direction == "higher"
    if (found := better(two, one, larger)).better:
        return f"B is better ({found.why})"
    if (other := better(one, two, larger)).better:
        return f"A is better ({other.why})"
    return f"neither is shown to be better ({found.why if found.gap >= 0 else other.why})"
