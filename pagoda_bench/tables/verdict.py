"""A run's numbers beside the committed ones.

What can be asked depends on what the two have in common; N and protocol must agree in any case.

- **The same weights and the same sample indices** (`weights`, `n` and the score keys agree): both runs computed the same
  images, up to the rounding of another processor or library. They are the same if they agree within 2 %; for precision,
  recall and alignment, which are fractions of N, also within 3 of N.
- **Other weights, at least two blocks on one side**: sampling error is known. The same if the difference is within the
  95 % interval of Welch's t-test on the block means, or within 2 %, whichever is wider. 2 % is what training the same model
  again moves a distance by at the least (The FID Lottery, arXiv 2606.20536: a coefficient of variation of 1 to 2 %).
- **Other weights, one block on both sides**: nothing is known of the error, only the 2 % remain. The verdict says "n=1".

Another recipe (a changed scale, `--set`) is judged like other weights, and `why` says so.

A verdict "differs" after a training from scratch therefore means: by more than the samples explain. It does not say that
the method differs; the spread over training seeds needs several trainings.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from pagoda_bench.tables.cells import Cell, differences

SAME, DIFFERS, NONE = "same within the error", "differs", "no committed value"
FLOOR = 0.02
COUNTED = ("precision", "recall", "alignment")


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """`verdict` is one of SAME, DIFFERS and NONE; `why` says which test, or what there is not."""

    cell: Cell
    committed: Cell | None
    verdict: str
    why: str


def judge(cells: Iterable[Cell], committed: Iterable[Cell]) -> list[Verdict]:
    """A verdict for every measured cell of a run."""
    known = {(c.id, c.metric): c for c in committed if c.value is not None}
    return [_judge(c, known.get((c.id, c.metric))) for c in cells if c.value is not None]


def _judge(cell: Cell, other: Cell | None) -> Verdict:
    if other is None:
        return Verdict(cell=cell, committed=None, verdict=NONE, why="the committed table has no such score")
    if apart := differences(cell, other):
        why = f"the committed one has another protocol: {'; '.join(apart)}"
        return Verdict(cell=cell, committed=other, verdict=NONE, why=why)
    assert cell.value is not None
    assert other.value is not None
    gap = abs(cell.value - other.value)
    allowed, why = FLOOR * abs(other.value), "2 %"
    if cell.metric in COUNTED:
        allowed = max(allowed, 3 / cell.n)
    if cell.weights == other.weights and cell.scores == other.scores:
        why = "same weights and samples: 2 %"
    elif (interval := _welch(cell, other)) is not None:
        allowed, why = max(allowed, interval), f"t-test over {cell.blocks} and {other.blocks} blocks, or 2 %"
    else:
        why = "n=1: 2 %"
    if cell.scores != other.scores:
        why += ", of another recipe"
    same = gap <= allowed * (1 + 1e-12)
    return Verdict(cell=cell, committed=other, verdict=SAME if same else DIFFERS, why=why)


def _welch(a: Cell, b: Cell) -> float | None:
    """Half the 95 % interval of the difference of two means of blocks (Welch 1947), None where no error is known.

    A side with a single block takes the other's standard deviation.
    """
    known = [c for c in (a, b) if c.std is not None and c.blocks > 1]
    if not known:
        return None
    if len(known) == 1:
        std, freedom = known[0].std or 0.0, known[0].blocks - 1.0
        return t_quantile(freedom) * std * math.sqrt(1 / a.blocks + 1 / b.blocks)
    va, vb = ((c.std or 0.0) ** 2 / c.blocks for c in (a, b))
    if va + vb == 0:
        return 0.0
    freedom = (va + vb) ** 2 / (va**2 / (a.blocks - 1) + vb**2 / (b.blocks - 1))
    return t_quantile(freedom) * math.sqrt(va + vb)


def t_quantile(freedom: float) -> float:
    """The two-sided 95 % point of Student's t. Below 5 degrees of freedom a table, the degrees rounded down (the safe side);
    from there on Cornish and Fisher's series, within 0.2 %."""
    if freedom < 5:
        return (12.7062, 4.3027, 3.1824, 2.7764)[max(1, math.floor(freedom)) - 1]
    z = 1.959963985
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )
