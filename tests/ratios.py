"""Two sides timed against each other."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from statistics import median
from typing import Any

ROUNDS = int(os.environ.get("PAGODA_BENCH_ROUNDS", "5"))


def ratio(theirs: Callable[[], Any], ours: Callable[[], Any]) -> float:
    """How many times as fast ours is: the median over rounds in which both run in turns, in CPU seconds; both run once
    before."""

    def seconds(run: Callable[[], Any]) -> float:
        begin = time.process_time()
        run()
        return time.process_time() - begin

    theirs(), ours()
    return median(seconds(theirs) / seconds(ours) for _ in range(ROUNDS))
