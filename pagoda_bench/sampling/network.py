"""The sampler of any network: noise by sample index, evaluations counted, images rounded. What a method has to say is how
it draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pagoda_bench.nets.device import compute_device
from pagoda_bench.nets.features import from_network
from pagoda_bench.sampling.counting import count_evaluations
from pagoda_bench.sampling.noise import noise

SEED = 0
"""Of the first draw: every method that starts from noise of one shape starts, index by index, from the same."""


class Draw:
    """One batch to be drawn: `indices` (on the CPU) and `labels` (N,) int64 tensors, and as much noise as is asked for."""

    def __init__(
        self, indices: NDArray[np.int64], labels: NDArray[np.int64], seed: int = SEED, device: torch.device | None = None
    ) -> None:
        self._indices, self._seed, self._taken = np.ascontiguousarray(indices, np.int64), seed, 0
        self.indices = torch.from_numpy(self._indices)
        self.labels = torch.from_numpy(np.ascontiguousarray(labels, np.int64)).to(device)

    def __len__(self) -> int:
        return len(self._indices)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal noise, float32 (N, *shape). Row k depends on the index of sample k and on how many draws came
        before, never on the batch; the first draw is the noise that all methods share."""
        # Streams of later draws are far from the seeds of a user's choice.
        stream = self._seed if self._taken == 0 else self._seed + (self._taken << 40)
        self._taken += 1
        return torch.from_numpy(noise(self._indices, shape, stream)).to(self.labels.device)


class NetworkSampler:
    """Samples by `draw(batch) -> (N, 3, R, R)` in [-1, 1], on `compute_device()`. `nets` are the networks whose evaluations
    count (in a cascade all of them); `others` only count as parameters (text encoders, decoders of latents)."""

    def __init__(
        self,
        draw: Callable[[Draw], Tensor],
        nets: Sequence[nn.Module],
        *,
        resolution: int,
        classes: int,
        others: Sequence[nn.Module] = (),
    ) -> None:
        self.draw, self.nets, self.resolution, self.classes = draw, tuple(nets), resolution, classes
        self.device = compute_device()
        for net in (*nets, *others):
            net.to(self.device)
        unique = {id(p): p for net in (*nets, *others) for p in net.parameters()}
        self.parameters = sum(p.numel() for p in unique.values())

    def sample(self, indices: NDArray[np.int64], labels: NDArray[np.int64]) -> tuple[NDArray[np.uint8], int]:
        """Images uint8 (N, R, R, 3), and the network evaluations each of them took, counted over all `nets`."""
        with torch.inference_mode(), ExitStack() as stack:
            counters = [stack.enter_context(count_evaluations(net)) for net in self.nets]
            images = from_network(self.draw(Draw(indices, labels, device=self.device)).cpu())
        return images, sum(counter.per_image(len(indices)) for counter in counters)
