"""What a training says while it runs: `log.csv`, TensorBoard events where that is installed, and grids of samples.

All lie in the stage's work folder while it runs, and go with the artifact. The CSV depends on the steps alone, not on when
the process was stopped: after a resume, lines beyond the checkpoint are cut off and written again.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pagoda_bench.artifacts.checkpoint import save_atomic
from pagoda_bench.errors import UserError

CSV = "log.csv"
GRIDS = "grids"
LINES = 1000  # in a log at most, so that it stays small beside the weights
TENSORBOARD = "PAGODA_BENCH_TENSORBOARD"  # a folder: write events there


class Log:
    """Numbers by step. Only every `steps / LINES`-th step is written, and the last."""

    def __init__(self, work: Path, steps: int, start: int, events: bool = True) -> None:
        """`events`: whether TensorBoard's are written too where the user asked for them; one of several processes does it."""
        self.path, self.steps, self.every = work / CSV, steps, max(1, steps // LINES)
        self._rows = [row for row in read(self.path) if int(row["step"]) < start]
        self._events = _events(work.name, start) if events else None

    def add(self, step: int, values: Mapping[str, float], always: bool = False) -> None:
        if always or step % self.every == 0 or step == self.steps - 1:
            self._rows.append({"step": str(step), **{k: f"{v:.6g}" for k, v in values.items()}})
            if self._events is not None:
                for name, value in values.items():
                    self._events.add_scalar(name, value, step)

    def picture(self, images: NDArray[np.uint8], step: int, path: Path) -> None:
        """A grid at `path`, and among the events."""
        made = sheet(images)
        save_picture(made, path)
        if self._events is not None:
            self._events.add_image("samples", made, step, dataformats="HWC")

    def close(self) -> None:
        """Ends the writing of events."""
        if self._events is not None:
            self._events.close()

    def save(self, path: Path | None = None) -> None:
        """All lines so far, atomically, in the work folder or at `path`."""
        names = list(dict.fromkeys(name for row in self._rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows)
        save_atomic(path or self.path, lambda temporary: temporary.write_text(text.getvalue(), encoding="utf-8"))
        if self._events is not None:
            self._events.flush()


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a log; none when there is no file. Values that a step did not have are left out."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]


def sheet(images: NDArray[np.uint8], columns: int = 8) -> NDArray[np.uint8]:
    """uint8 (N, R, R, 3) as one picture, row by row; what is left of the last row is black."""
    n, size = len(images), images.shape[1]
    lines = -(-n // columns)
    cells = np.zeros((lines * columns, size, size, 3), np.uint8)
    cells[:n] = images
    return cells.reshape(lines, columns, size, size, 3).swapaxes(1, 2).reshape(lines * size, columns * size, 3)


def save_picture(picture: NDArray[np.uint8], path: Path) -> None:
    """uint8 (H, W, 3) as PNG, atomically."""
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    save_atomic(path, lambda temporary: Image.fromarray(picture).save(temporary, format="PNG"))


def milestones(steps: int, count: int) -> set[int]:
    """The steps after which a grid is due: `count` of them, evenly, the last step among them."""
    return {round((i + 1) * steps / count) - 1 for i in range(count)} if count else set()


def _events(name: str, start: int) -> Any:
    folder = os.environ.get(TENSORBOARD)
    if not folder:
        return None
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise UserError(
            f"{TENSORBOARD} is set, but tensorboard is not installed: pip install 'pagoda-bench[logs]', or unset it"
        ) from None
    return SummaryWriter(str(Path(folder, name)), purge_step=start)
