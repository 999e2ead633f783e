"""What the user sees while a plan runs: a progress bar on a terminal, else a line per stage."""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol, TextIO

from pagoda_bench.recipes.base import Recipe

if TYPE_CHECKING:
    from rich.progress import Progress

Info = Mapping[str, float | str]
LINE_SECONDS = 30.0
DRAW_SECONDS = 0.1


class Reporter(Protocol):
    """Told by the launcher what goes on. `number` and `count`: this is stage `number` (from 1) of `count`."""

    def start(self, recipe: Recipe, number: int, count: int) -> None: ...
    def progress(self, done: int, total: int, info: Info) -> None: ...
    def finish(self, recipe: Recipe, seconds: float, made: bool) -> None: ...
    def fail(self, recipe: Recipe, message: str) -> None: ...
    def say(self, line: str) -> None: ...
    def close(self) -> None: ...


def reporter(stream: TextIO | None = None) -> Reporter:
    """A bar when `stream` (default: stderr) is a terminal, else lines."""
    stream = stream or sys.stderr
    return Bar(stream) if stream.isatty() else Lines(stream)


class Rate:
    """Steps a second over the last half minute; what an earlier, interrupted run did does not count."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._total = 0

    def update(self, done: int, total: int) -> None:
        if total != self._total or (self._seen and done < self._seen[-1][1]):  # another phase of the stage
            self._seen.clear()
            self._total = total
        moment = time.monotonic()
        if len(self._seen) < 2 or moment - self._seen[-2][0] >= 0.5:
            self._seen.append((moment, done))
        else:
            self._seen[-1] = (moment, done)
        while len(self._seen) > 2 and moment - self._seen[1][0] > 30:
            self._seen.popleft()

    @property
    def rate(self) -> float | None:
        """Steps a second; None until there are two moments to compare."""
        if len(self._seen) < 2:
            return None
        (first, before), (last, after) = self._seen[0], self._seen[-1]
        return (after - before) / (last - first) if last > first and after > before else None

    def describe(self) -> str:
        """E.g. "120/s, 3 min 20 s left"; empty while unknown."""
        rate = self.rate
        if rate is None:
            return ""
        speed = f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"
        return f"{speed}, {duration((self._total - self._seen[-1][1]) / rate)} left"


class Lines:
    """A line for each finished stage, and one every half minute of a long one."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._label = ""
        self._rate = Rate()
        self._last = 0.0

    def start(self, recipe: Recipe, number: int, count: int) -> None:
        self._label = f"[{number}/{count}] {recipe.title}"
        self._rate = Rate()
        self._last = time.monotonic()

    def progress(self, done: int, total: int, info: Info) -> None:
        self._rate.update(done, total)
        if time.monotonic() - self._last >= LINE_SECONDS:
            self._last = time.monotonic()
            self.say(f"{self._label}: {' '.join(filter(None, (f'{done}/{total}', self._rate.describe(), describe(info))))}")

    def finish(self, recipe: Recipe, seconds: float, made: bool) -> None:
        self.say(finished(self._label, recipe, seconds, made))

    def fail(self, recipe: Recipe, message: str) -> None:
        self.say(f"{self._label} failed: {message}")

    def say(self, line: str) -> None:
        print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Nothing to do."""


class Bar:
    """A bar with rate and time left; finished stages stand above it."""

    def __init__(self, stream: TextIO) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

        columns = (TextColumn("{task.description}", markup=False), BarColumn(), TaskProgressColumn())
        tail = TextColumn("{task.fields[tail]}", markup=False)
        self._bar: Progress = Progress(*columns, tail, console=Console(file=stream), transient=True)
        self._task = self._bar.add_task("", total=None, tail="", visible=False)
        self._label = ""
        self._rate = Rate()
        self._last = 0.0
        self._bar.start()

    def start(self, recipe: Recipe, number: int, count: int) -> None:
        self._label = f"[{number}/{count}] {recipe.title}"
        self._rate = Rate()
        self._bar.reset(self._task, description=self._label, total=None, visible=True, tail="")

    def progress(self, done: int, total: int, info: Info) -> None:
        self._rate.update(done, total)
        if time.monotonic() - self._last >= DRAW_SECONDS or done >= total:
            self._last = time.monotonic()
            tail = "  ".join(filter(None, (self._rate.describe(), describe(info))))
            self._bar.update(self._task, completed=done, total=total, tail=tail)

    def finish(self, recipe: Recipe, seconds: float, made: bool) -> None:
        self._bar.update(self._task, visible=False)
        self.say(finished(self._label, recipe, seconds, made))

    def fail(self, recipe: Recipe, message: str) -> None:
        self._bar.update(self._task, visible=False)
        self.say(f"{self._label} failed: {message}")

    def say(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def close(self) -> None:
        self._bar.stop()


def finished(label: str, recipe: Recipe, seconds: float, made: bool) -> str:
    """The line for a stage that ended well. `made` is False when another process had made it meanwhile."""
    return f"{label} {recipe.key[:8]}: " + (f"made in {duration(seconds)}" if made else "found, another process made it")


def describe(info: Info) -> str:
    """E.g. "loss 0.123 lr 0.001"."""
    return " ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in info.items())


def duration(seconds: float) -> str:
    """E.g. "0.4 s", "35 s", "3 min 20 s", "2 h 05 min", "3 d 4 h"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(seconds / 60)
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(seconds / 3600)
    return f"{hours // 24} d {hours % 24} h"
