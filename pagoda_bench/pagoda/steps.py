"""The step that Stages 2 and 3 share: L_rec on data-latent pairs, L_adv on fresh noise, then the discriminator's turn.

One step serves all recipes. What judges comes from `pagoda.looks`; which losses there are, how they are weighed and whether
they share an update is said by `LossConfig`. All random numbers of a step are drawn for the whole batch before its first
pass, and a pass takes its slice: so they do not depend on how many processes or passes share the batch.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pagoda_bench.data import Dataset
from pagoda_bench.diffusion.edm import SIGMA_MAX
from pagoda_bench.nets.discriminator import Judge
from pagoda_bench.nets.features import to_network
from pagoda_bench.nets.unet import UNet
from pagoda_bench.pagoda.looks import AllDraws, Look, distance_of, drawn_for
from pagoda_bench.pagoda.losses import Term, accumulate, discriminator_loss, generator_loss, last_layer
from pagoda_bench.pagoda.sources import GuidedSource, Source
from pagoda_bench.recipes.stages import Distill, Grow
from pagoda_bench.training import parallel
from pagoda_bench.training.loop import batch_indices
from pagoda_bench.training.updates import LossScale, apply

FIRST_FRESH = 2**30
"""Real images for the discriminator start here in an endless data set, so that they are not the pairs'."""


@dataclass
class Whole:
    """What is random in a step, for the whole batch."""

    rows: np.ndarray  # of the pairs, which may be fewer than the batch
    numbers: np.ndarray  # of the real images
    flips: Tensor | None
    fresh: Tensor  # N(0, 80^2)
    rec: AllDraws  # augmentation in L_rec
    fake: AllDraws  # and before the discriminator
    real: AllDraws
    rebuilt: AllDraws = None  # and before the one of reconstructions
    target: AllDraws = None
    guided_rows: np.ndarray | None = None  # of the teacher's guided samples, as many as pairs
    guided: AllDraws = None  # augmentation in L_dstl
    w: Tensor | None = None  # guidance weights of the fakes


class Generate(Protocol):
    """The one-step generator: latents (N, 3, R, R) and labels (N,) to images. Latents of the pairs `rows` are named, since a
    generator may know something of them already. `w` (N,): guidance weights, 0 where there are none."""

    def __call__(self, z: Tensor, labels: Tensor, rows: np.ndarray | None = None, w: Tensor | None = None) -> Tensor: ...


class Seen:
    """What a discriminator saw in one pass and is then trained on."""

    def __init__(self, real: list[Tensor], real_labels: Tensor, fake: list[Tensor], fake_labels: Tensor) -> None:
        self.real, self.real_labels = real, real_labels
        self.fake, self.fake_labels = [m.detach() for m in fake], fake_labels


class Step:
    """`step(index, rng)` for the training loop. `judges` are "discriminator" and, where L_rec has one, "reconstructions"."""

    def __init__(
        self,
        recipe: Distill | Grow,
        net: UNet,
        generate: Generate,
        look: Look,
        judges: dict[str, Judge],
        optimizers: dict[str, torch.optim.Optimizer],
        source: Source,
        data: Dataset,
        scale: LossScale,
        guided: GuidedSource | None = None,
    ) -> None:
        self.recipe, self.generate, self.look, self.judges, self.optimizers = recipe, generate, look, judges, optimizers
        self.source, self.data, self.scale, self.guided = source, data, scale, guided
        self.loss, self.train, self.size = recipe.loss, recipe.train, recipe.net.output_resolution
        self.distance = distance_of(recipe.loss, look)
        self.at = last_layer(net)
        self.parameters = [p for p in net.parameters() if p.requires_grad]
        self.device = self.at.device
        self.paired = max(1, round(self.loss.pairs_share * self.train.batch))
        self.fakes_first = recipe.loss.discriminator == "stylegan-xl"  # as in the official code
        self.moved = False  # whether the last step changed the generator

    def __call__(self, index: int, rng: np.random.Generator) -> dict[str, float]:
        whole = self._draw(index)
        of_batch, of_pairs = (list(parallel.parts(n, self.train.accumulate)) for n in (self.train.batch, self.paired))
        values: dict[str, float] = {}
        for optimizer in self.optimizers.values():
            optimizer.zero_grad(set_to_none=True)
        phases = [("rec", "adv")] if self.loss.updates == "joint" else [("rec",), ("adv",)]
        seen: dict[str, list[Seen]] = {name: [] for name in self.judges}
        norm, self.moved = 0.0, False
        for phase in phases:
            for part, pairs in zip(of_batch, of_pairs, strict=True):
                found = self._generator(whole, part, pairs, phase, seen)
                for name, value in found.items():
                    values[name] = values.get(name, 0.0) + value / len(of_batch)
            # After an update that is not finite no other one is applied in this step.
            norm += apply(
                self.optimizers["generator"],
                [*values.values(), norm],
                clip=self.train.clip,
                scale=self.scale,
                more=phase is not phases[-1],
            )
            self.moved = self.moved or math.isfinite(norm)
            self.optimizers["generator"].zero_grad(set_to_none=True)
        if math.isfinite(norm):
            return values | self._discriminators(seen)
        # No discriminator is updated. An overflow of float16 is the loss scale's to mend; anything else is told to the loop.
        values.pop("lambda", None)
        return values if self.scale.active else {**values, "norm": norm}

    def _draw(self, index: int) -> Whole:
        batch, paired, size, total = self.train.batch, self.paired, self.size, self.data.size("train")
        rows = batch_indices(self.source.used, paired, index, self.recipe.seed)
        numbers = batch_indices(total, batch, index, self.recipe.seed + 1)
        if total is None:
            numbers = numbers + FIRST_FRESH
        flips = torch.rand(batch) < 0.5 if self.recipe.pairs.flip else None
        low = self.recipe.pairs.teacher.net.resolution
        fresh = torch.randn(batch, 3, low, low) * SIGMA_MAX
        look = self.look
        whole = Whole(
            rows, numbers, flips, fresh, look.distance_draws(paired, size), look.draws(batch, size), look.draws(batch, size)
        )
        if "reconstructions" in self.judges:
            whole.rebuilt, whole.target = look.draws(paired, size), look.draws(paired, size)
        if self.guided is not None and self.recipe.guided is not None:
            whole.guided_rows = batch_indices(self.guided.used, paired, index, self.recipe.seed + 2)
            whole.guided = look.distance_draws(paired, low)
            low_w, high_w = self.recipe.guided.guidance or (0.0, 0.0)
            if self.loss.adversarial_guidance == "all":
                whole.w = low_w + (high_w - low_w) * torch.rand(batch)
        return whole

    def _real(self, whole: Whole, part: slice) -> tuple[Tensor, Tensor]:
        numbers = whole.numbers[part]
        image = to_network(self.data.images(numbers, self.size, "train"))
        if whole.flips is not None:
            image = torch.where(whole.flips[part][:, None, None, None], image.flip(3), image)
        return image.to(self.device), self._labels(numbers)

    def _labels(self, numbers: np.ndarray) -> Tensor:
        return torch.from_numpy(self.data.labels(numbers, "train")).to(self.device)

    def _generator(
        self, whole: Whole, part: slice, pairs: slice, phase: tuple[str, ...], seen: dict[str, list[Seen]]
    ) -> dict[str, float]:
        """One forward and backward pass over a part of the batch and its part of the pairs: the gradients of the losses in
        `phase` are added up."""
        loss, terms = self.loss, []
        values: dict[str, Tensor] = {}  # numbers only at the end: each would wait for the device
        if "rec" in phase:
            rows = whole.rows[pairs]
            x, z, own = (t.to(self.device) for t in self.source.batch(rows, self.size))
            rebuilt = self.generate(z, own, rows).float()
            # L_rec: both images under the same augmentation.
            l_rec = self._compared(rebuilt, x, self._slice(whole.rec, pairs))
            values["rec"] = l_rec.detach()
            if loss.reconstruction:
                terms.append(Term(rebuilt, loss.reconstruction * l_rec))
        if "rec" in phase and self.guided is not None and whole.guided_rows is not None:
            made, l_dstl = self._distillation(self.guided, whole.guided_rows[pairs], self._slice(whole.guided, pairs))
            values["dstl"] = l_dstl.detach()
            if loss.distillation:
                terms.append(Term(made, loss.distillation * l_dstl))
        balanced = bool(terms)  # an adaptive weight is the ratio to the gradient of L_rec (and L_dstl); 1 where there is none
        if "rec" in phase and (judge := self.judges.get("reconstructions")) is not None:
            maps = self._sight(judge, self.look.maps(rebuilt, self._slice(whole.rebuilt, pairs)))
            l_r = generator_loss(self._logits(judge, maps, own), loss.gan)
            values["adv_rec"] = l_r.detach()
            terms.append(Term(rebuilt, l_r, loss.adversarial_rec, loss.adaptive_rec and balanced))
            with torch.no_grad():
                target_maps = self._sight(judge, self.look.maps(x, self._slice(whole.target, pairs)))
            seen["reconstructions"].append(Seen(target_maps, own, maps, own))
        if "adv" in phase:
            real, real_labels = self._real(whole, part)
            w = None if whole.w is None else whole.w[part].to(self.device)
            fake = self.generate(whole.fresh[part].to(self.device), real_labels, None, w).float()
            judge = self.judges["discriminator"]
            maps = self._sight(judge, self.look.maps(fake, self._slice(whole.fake, part)))
            l_adv = generator_loss(self._logits(judge, maps, real_labels), loss.gan)
            values["adv"] = l_adv.detach()
            # With separate updates there is no L_rec to balance against: the weight is plain, as in the official code.
            terms.append(Term(fake, l_adv, loss.adversarial, loss.adaptive and balanced))
            with torch.no_grad():
                real_maps = self._sight(judge, self.look.maps(real, self._slice(whole.real, part)))
            seen["discriminator"].append(Seen(real_maps, real_labels, maps, real_labels))
        factors = accumulate(terms, self.parameters, self.at, self.scale.value / self.train.accumulate)
        numbers = dict(zip(values, torch.stack([v.float() for v in values.values()]).tolist(), strict=True))
        return numbers | ({"lambda": factors[-1]} if "adv" in phase else {})

    def _distillation(self, guided: GuidedSource, rows: np.ndarray, draws: AllDraws) -> tuple[Tensor, Tensor]:
        """G(z, w), and L_dstl: its distance from the teacher's guided sample of z, at the teacher's size."""
        target, z, labels = (t.to(self.device) for t in guided.batch(rows, self.size))
        made = self.generate(z, labels, None, guided.weights(rows).to(self.device)).float()
        small = F.avg_pool2d(made, made.shape[-1] // target.shape[-1])
        return made, self._compared(small, target, draws)

    def _compared(self, image: Tensor, target: Tensor, draws: AllDraws) -> Tensor:
        """The distance of L_rec and L_dstl, averaged over the images."""
        found = self.distance(image, target, draws).mean()
        return found + self.loss.pixel * (image - target).abs().mean() if self.loss.pixel else found

    def _discriminators(self, seen: dict[str, list[Seen]]) -> dict[str, float]:
        """Their updates. One that is not finite is not applied, and told to the loop, which goes on with the generator's."""
        values = {}
        for name, batches in seen.items():
            judge, optimizer, shown = self.judges[name], self.optimizers[name], "d" if name == "discriminator" else "d_rec"
            norm = 0.0
            for _ in range(self.loss.discriminator_steps):
                values[shown] = 0.0
                for maps in batches:
                    l_d = self._discriminator(judge, maps) / len(batches)
                    values[shown] += float(l_d.detach())
                    l_d.backward()
                norm += apply(optimizer, [values[shown]])
                optimizer.zero_grad(set_to_none=True)
            if not math.isfinite(norm):
                values[f"norm_{shown}"] = norm
        return values

    def _discriminator(self, judge: Judge, maps: Seen) -> Tensor:
        if self.fakes_first:  # spectral norms iterate at each call
            fake = self._logits(judge, maps.fake, maps.fake_labels)
            return discriminator_loss(self._logits(judge, maps.real, maps.real_labels), fake, self.loss.gan)
        real = self._logits(judge, maps.real, maps.real_labels)
        return discriminator_loss(real, self._logits(judge, maps.fake, maps.fake_labels), self.loss.gan)

    def _sight(self, judge: Judge, maps: list[Tensor]) -> list[Tensor]:
        with self._exact():
            return judge.see([m.float() for m in maps] if self.scale.active else maps)

    def _logits(self, judge: Judge, seen: list[Tensor], labels: Tensor) -> Tensor:
        with self._exact():
            return judge.decide(seen, labels)

    def _exact(self) -> AbstractContextManager[object]:
        """Beside a float16 generator the discriminator computes in float32, as in the official code."""
        return torch.autocast(self.device.type, enabled=False) if self.scale.active else nullcontext()

    def _slice(self, draws: AllDraws, part: slice) -> AllDraws:
        return drawn_for(draws, part, self.device)
