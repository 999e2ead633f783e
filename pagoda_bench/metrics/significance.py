"""Is A better than B? A one-sided t-test of Welch (1947) over blocks, and a floor below which no gap counts.

The test knows what drawing other samples would change. Training the same model again changes more: "The FID Lottery" (Dufour,
Efros and Perez 2026, arXiv 2606.20536) measured it at 3.2 times the effect of drawing other samples, a coefficient of
variation of 1 to 2 %, and calls gaps below about 1.3 % inconclusive. So a gap must also exceed a relative floor, between
`FLOOR_LEAST` and `FLOOR`, unless every block comes from a training of its own: then the test sees that noise itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.special import stdtr

from pagoda_bench.errors import UserError
from pagoda_bench.metrics.uncertainty import summarise

FLOOR_LEAST, FLOOR = 0.013, 0.02
ALPHA = 0.05


class Comparison(NamedTuple):
    better: bool  # A is better than B beyond chance and beyond the floor
    gap: float  # of the means, in the unit of the metric; above 0 where A is better
    relative: float  # the gap over the size of B's mean; infinite where that is 0
    p: float | None  # that a gap this large or larger comes by chance; None where no error is known
    why: str  # one line, such as "p = 0.003, gap 4.1 % above the floor of 2 %"


def welch(gap: float, a: tuple[float, int], b: tuple[float, int]) -> float:
    """The one-sided p of a gap of means, given (standard deviation, blocks >= 2) of either side."""
    va, vb = (std**2 / n for std, n in (a, b))
    if va + vb == 0:
        return 0.5 if gap == 0 else float(gap < 0)
    freedom = (va + vb) ** 2 / (va**2 / (a[1] - 1) + vb**2 / (b[1] - 1))
    return float(stdtr(freedom, -gap / math.sqrt(va + vb)))


def better(
    a: Sequence[float],
    b: Sequence[float],
    larger_is_better: bool,
    floor: float = FLOOR,
    alpha: float = ALPHA,
    trainings: bool = False,
) -> Comparison:
    """Whether A, with scores `a` of its blocks, is better than B with scores `b`; both under one protocol.

    `trainings`: every block comes from a training of its own, with at least two on either side, and the floor is not
    applied. With one block on a side no error is known: only the floor decides, and `why` says "n=1".
    """
    if not 0 <= floor < 1 or not 0 < alpha < 1:
        raise UserError(f"significance: floor {floor} and alpha {alpha} must lie in [0, 1) and (0, 1)")
    left, right = summarise(a), summarise(b)
    gap = (left.mean - right.mean) * (1 if larger_is_better else -1)
    relative = gap / abs(right.mean) if right.mean else math.copysign(math.inf, gap) if gap else 0.0
    known = left.std is not None and right.std is not None
    if trainings and not known:
        raise UserError("significance: a comparison over trainings needs at least two of them on either side")
    over_floor = gap > 0 and (trainings or relative > floor)
    against = "" if trainings else f" {'above' if over_floor else 'not above'} the floor of {100 * floor:g} %"
    size = f"gap {100 * relative:.2g} %{against}"
    if left.std is None or right.std is None:
        return Comparison(over_floor, gap, relative, None, f"n=1: no error is known, {size}")
    p = welch(gap, (left.std, left.blocks), (right.std, right.blocks))
    return Comparison(over_floor and p < alpha, gap, relative, p, f"p = {p:.2g}, {size}")
