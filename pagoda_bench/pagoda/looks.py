"""What L_rec and the discriminators see of an image, and how far apart two images are for L_rec.

A look is a frozen feature network with its augmentation. The draws of an augmentation come first, for the whole batch, so
that they can be sliced: `draws` for the maps of a discriminator, `distance_draws` for the two arguments of L_rec.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from pagoda_bench.errors import UserError
from pagoda_bench.nets.augment import Draws, augment, draw
from pagoda_bench.nets.discriminator import Judge, ProjectedDiscriminator
from pagoda_bench.nets.features import FeatureModel
from pagoda_bench.nets.multiscale_discriminator import MultiscaleDiscriminator
from pagoda_bench.nets.projection import CHANNELS, INPUT, KINDS, NATIVE, Eyes, ProjectedFeatures, resize, timm_backbone
from pagoda_bench.pagoda.losses import feature_distance
from pagoda_bench.recipes.losses import LossConfig, ProjectedConfig

AllDraws = Sequence[Draws] | None


def drawn_for(draws: AllDraws, part: slice, device: torch.device) -> AllDraws:
    """The draws of a part of the batch, on the device of its images."""
    return None if draws is None else [Draws(*(v[part].to(device) for v in d)) for d in draws]


class Look(Protocol):
    """`maps` are finest first, of one backbone after the other."""

    def draws(self, n: int, size: int) -> AllDraws: ...

    def distance_draws(self, n: int, size: int) -> AllDraws: ...

    def maps(self, image: Tensor, draws: AllDraws) -> list[Tensor]: ...

    def distance(self, estimate: Tensor, target: Tensor, draws: AllDraws) -> Tensor:
        """One value an image, (N,)."""

    def stored(self) -> nn.Module | None:
        """What was drawn at random and must be in a checkpoint."""


class EmbeddedLook:
    """The embedded feature network; one set of draws an image."""

    def __init__(self, features: FeatureModel, *, augmented: bool, eps: float) -> None:
        self.features, self.augmented, self.eps = features, augmented, eps

    def draws(self, n: int, size: int) -> AllDraws:
        return [draw(n, size)] if self.augmented else None

    distance_draws = draws

    def maps(self, image: Tensor, draws: AllDraws) -> list[Tensor]:
        return self.features.maps(augment(image, draws[0]) if draws else image)

    def distance(self, estimate: Tensor, target: Tensor, draws: AllDraws) -> Tensor:
        with torch.no_grad():
            wanted = self.maps(target, draws)
        return feature_distance(self.maps(estimate, draws), wanted, self.eps)

    def stored(self) -> nn.Module | None:
        return None


class ProjectedLook:
    """Random projections of pretrained backbones, as in the official code: for L_rec images are augmented after they are
    resized for the backbone, for the discriminator before, and each backbone has draws of its own."""

    def __init__(self, eyes: Eyes, *, augmented: bool, eps: float) -> None:
        self.eyes, self.augmented, self.eps = eyes, augmented, eps

    def draws(self, n: int, size: int) -> AllDraws:
        return [draw(n, size) for _ in self.eyes.each()] if self.augmented else None

    def distance_draws(self, n: int, size: int) -> AllDraws:
        return self.draws(n, INPUT if size < NATIVE else size)

    def maps(self, image: Tensor, draws: AllDraws) -> list[Tensor]:
        return projected_maps(self.eyes, image, draws)

    def distance(self, estimate: Tensor, target: Tensor, draws: AllDraws) -> Tensor:
        return projected_terms(self.eyes, estimate, target, draws, self.eps).sum(0)

    def stored(self) -> nn.Module:
        return nn.ModuleDict({part.kind: part.projection for part in self.eyes.each()})


def projected_maps(eyes: Eyes, image: Tensor, draws: AllDraws) -> list[Tensor]:
    maps: list[Tensor] = []
    for i, part in enumerate(eyes.each()):
        maps += part.maps(augment(image, draws[i]) if draws else image)
    return maps


def projected_terms(eyes: Eyes, estimate: Tensor, target: Tensor, draws: AllDraws, eps: float = 1e-10) -> Tensor:
    """The terms of L_rec, (backbones * scales, N): their sum over the first axis is the loss of an image."""
    estimate, target = resize(estimate), resize(target)
    terms: list[Tensor] = []
    for i, part in enumerate(eyes.each()):
        a, b = (augment(estimate, draws[i]), augment(target, draws[i])) if draws else (estimate, target)
        with torch.no_grad():
            wanted = part.maps(b)
        terms += [feature_distance([m], [w], eps) for m, w in zip(part.maps(a), wanted, strict=True)]
    return torch.stack(terms)


def build_eyes(config: ProjectedConfig) -> Eyes:
    """The backbones of a recipe with projections drawn from its seed. Pretrained weights come from timm's cache or hub."""
    made = {}
    for kind in config.backbones:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            backbone = timm_backbone(kind, pretrained=config.weights == "pretrained")
        seed = len(KINDS) * config.seed + KINDS.index(kind)
        made[kind] = ProjectedFeatures(kind, backbone, seed=seed, batch_norm=config.batch_norm)
    return Eyes(made)


def judge_of(loss: LossConfig, features: FeatureModel | None, classes: int, seed: int) -> Judge:
    """A discriminator of maps and labels, drawn from `seed`: the light one, that with deep heads, or that of StyleGAN-XL."""
    deep = loss.discriminator == "deep"
    if loss.discriminator == "stylegan-xl":
        if loss.features != "projected":
            raise UserError("loss.discriminator 'stylegan-xl' looks at loss.features 'projected': set both")
        return MultiscaleDiscriminator(classes, kinds=loss.projected.backbones, seed=seed)
    if loss.features == "projected":
        return _Side(
            [
                ProjectedDiscriminator(CHANNELS, classes, loss.discriminator_width, seed, deep=deep)
                for _ in loss.projected.backbones
            ]
        )
    if features is None:
        raise UserError("loss.features 'embedded' needs a feature network: name one in `features`")
    return ProjectedDiscriminator(features.channels, classes, loss.discriminator_width, seed, deep=deep)


class _Side(Judge):
    """Discriminators of several backbones side by side, their logits in one row."""

    def __init__(self, parts: Sequence[Judge]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def see(self, maps: Sequence[Tensor]) -> list[Tensor]:
        return [m for part, own in self._own(maps) for m in part.see(own)]

    def decide(self, seen: Sequence[Tensor], labels: Tensor) -> Tensor:
        return torch.cat([part.decide(own, labels) for part, own in self._own(seen)], 1)

    def _own(self, maps: Sequence[Tensor]) -> Iterator[tuple[Judge, Sequence[Tensor]]]:
        each = len(maps) // len(self.parts)
        for i, part in enumerate(self.parts):
            assert isinstance(part, Judge)
            yield part, maps[i * each : (i + 1) * each]


def distance_of(loss: LossConfig, look: Look) -> Callable[[Tensor, Tensor, AllDraws], Tensor]:
    """d of L_rec, one value an image: through the look, LPIPS, or the mean squared error of pixels. The latter two see the
    images as they are."""
    if loss.distance == "features":
        return look.distance
    if loss.distance == "l2":
        return lambda estimate, target, draws: (estimate - target).square().flatten(1).mean(1)
    from pagoda_bench.nets.lpips import load_lpips

    lpips = load_lpips()
    return lambda estimate, target, draws: lpips.to(estimate.device)(resize(estimate), resize(target))
