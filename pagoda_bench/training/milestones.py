"""What a training does beside its steps: pictures, evaluation, the best weights so far, and the alarm."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from pagoda_bench.artifacts.store import say
from pagoda_bench.errors import UserError
from pagoda_bench.recipes.stages import TrainConfig
from pagoda_bench.training import parallel
from pagoda_bench.training.alarm import Alarm
from pagoda_bench.training.logs import GRIDS, Log, milestones

if TYPE_CHECKING:
    from pagoda_bench.training.loop import Task


class Measuring(Protocol):
    """`evaluation.Evaluation`, or what stands for it."""

    lower: bool

    def __call__(self) -> dict[str, float]: ...


class Milestones:
    """`state` holds plain numbers and goes with the checkpoint: "evaluations", one entry a milestone, "best", the number of
    steps done at the best of them (0: none yet), and the alarm's."""

    def __init__(self, task: Task, config: TrainConfig, steps: int, log: Log, work: Path, state: dict[str, Any]) -> None:
        self.task, self.config, self.log, self.work, self.state = task, config, log, work, state
        state.setdefault("evaluations", [])
        state.setdefault("best", 0)
        self.pictured = milestones(steps, config.grids) if task.samples else set()
        self.measured = milestones(steps, config.evaluate) if task.evaluation else set()
        self.alarm = Alarm(task.watched, steps, state.setdefault("alarm", {})) if config.alarm != "off" else None

    def after(self, index: int, losses: Mapping[str, float]) -> dict[str, float]:
        """What is due after step `index`, in all processes; the values that it found. `UserError` where the recipe wants the
        training to stop at an alarm."""
        found: dict[str, float] = {}
        if index in self.pictured and self.task.samples is not None:
            images = self.task.samples()
            if parallel.rank() == 0:
                self.log.picture(images, index, self.work / GRIDS / f"{index + 1:08d}.png")
        if index in self.measured and self.task.evaluation is not None:
            found |= self.task.evaluation()
            self._compare(index + 1, found)
        said = self.alarm.losses(index, losses) if self.alarm else []
        if self.alarm and self.task.diversity is not None and index in self.pictured | self.measured:
            found |= parallel.averaged({"diversity": self.task.diversity()})
            said += self.alarm.diversity(index, found["diversity"])
        for line in said:
            if self.config.alarm == "stop":
                raise UserError(f"training stopped, the last checkpoint is kept; {line}, or go on with train.alarm 'warn'")
            if parallel.rank() == 0:
                say(line)
        return found

    def improved(self, done: int) -> bool:
        """Whether the weights after `done` steps are the best so far."""
        return bool(self.state["best"] == done)

    def facts(self) -> dict[str, Any]:
        """What is worth recording; nothing where nothing was asked for and nothing happened."""
        out: dict[str, Any] = {}
        if self.state["best"]:
            out["evaluations"] = self.state["evaluations"]
            out["best"] = next(e for e in self.state["evaluations"] if e["step"] == self.state["best"])
        if self.alarm and self.alarm.rung:
            out["alarms"] = self.alarm.rung
        return out

    def _compare(self, done: int, values: Mapping[str, float]) -> None:
        entries, (first, *_) = self.state["evaluations"], values
        best = next((e[first] for e in entries if e["step"] == self.state["best"]), None)
        entries.append({"step": done, **values})
        lower = self.task.evaluation is not None and self.task.evaluation.lower
        if best is None or (values[first] < best if lower else values[first] > best):
            self.state["best"] = done
