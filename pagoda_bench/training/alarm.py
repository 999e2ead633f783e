"""Signs that an adversarial training has collapsed: a discriminator whose loss stands still, and samples that are all alike.

A discriminator that tells everything apart teaches nothing (hinge loss 0), nor does one that tells nothing apart (2, the loss
of logits that are all 0). A single step near such a value means nothing, a long row of them does. Diversity is the mean
distance of features between samples of one class, beside that of real images of the same classes: 1 where they vary alike,
0 where every latent of a class gives the same image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

PINS: dict[str, dict[float, str]] = {
    "hinge": {0.0: "it tells everything apart", 2.0: "it tells nothing apart"},
    "non-saturating": {0.0: "it tells everything apart", 2 * math.log(2): "it tells nothing apart"},
}
"""Values of a discriminator's loss at which it teaches nothing, by loss."""
NEAR = 0.02  # of a pin
LEAST, MOST, SHARE = 100, 2000, 0.05  # steps in a row: a share of the training, within these
ALIKE = 0.2  # diversity below which samples count as all alike; 0.97 was measured of trained generators, 0.71 where they start


class Alarm:
    """Says once for each sign that it is there. `state` holds plain numbers and goes with the checkpoint."""

    def __init__(self, pins: Mapping[str, Mapping[float, str]], steps: int, state: dict[str, Any]) -> None:
        """`pins`: the losses to watch, e.g. {"d": PINS["hinge"]}; `steps` of the whole training."""
        self.pins, self.state = pins, state
        self.row = min(MOST, max(LEAST, round(SHARE * steps)))
        state.setdefault("rows", {})
        state.setdefault("rung", [])

    def losses(self, step: int, values: Mapping[str, float]) -> list[str]:
        """What is to be said after a step with these losses."""
        said = []
        for name, pins in self.pins.items():
            for pin, meaning in pins.items():
                key, rows = f"{name}={pin:.4g}", self.state["rows"]
                near = name in values and abs(values[name] - pin) < NEAR
                rows[key] = rows.get(key, 0) + 1 if near else 0
                if rows[key] == self.row:
                    said += self._once(
                        key,
                        step,
                        f"the discriminator's loss '{name}' has stood at {pin:.3g} for {self.row} steps ({meaning}): "
                        "change loss.lr_discriminator or loss.adversarial",
                    )
        return said

    def diversity(self, step: int, value: float) -> list[str]:
        """What is to be said of samples of this diversity."""
        if value >= ALIKE:
            return []
        return self._once(
            "diversity",
            step,
            f"samples of a class are {value:.3f} times as far apart as real images are, they are nearly all alike: lower "
            "loss.adversarial or the learning rates",
        )

    @property
    def rung(self) -> list[dict[str, Any]]:
        """What was said so far: "step" and "sign" of each."""
        return list(self.state["rung"])

    def _once(self, sign: str, step: int, line: str) -> list[str]:
        if any(entry["sign"] == sign for entry in self.state["rung"]):
            return []
        self.state["rung"].append({"step": step, "sign": sign})
        return [f"alarm at step {step}: {line}"]


def spread(features: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """The mean Euclidean distance between features (N, d) of two different images of one class, over all such pairs.
    ValueError when no class has two."""
    total, pairs = 0.0, 0
    for label in np.unique(labels):
        own = features[labels == label].astype(np.float64)
        for i in range(len(own) - 1):
            total += float(np.sqrt(((own[i + 1 :] - own[i]) ** 2).sum(1)).sum())
            pairs += len(own) - 1 - i
    if not pairs:
        raise ValueError("no two images of one class")
    return total / pairs


def alike(features: NDArray[np.floating], real: NDArray[np.floating], labels: Sequence[int] | NDArray[np.integer]) -> float:
    """The diversity of samples beside real images of the same labels; features (N, d) each, labels (N,)."""
    classes = np.asarray(labels)
    return spread(features, classes) / max(spread(real, classes), 1e-12)
