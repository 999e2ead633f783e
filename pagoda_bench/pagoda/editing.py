"""Controllable generation with PaGoDA's two maps: an image is carried to a latent by E, changed, and brought back by G.

E is the probability-flow ODE of the frozen teacher walked upwards (`Encoder`), G the one-step generator, at the teacher's size
or grown. Images are float (N, 3, H, W) in [-1, 1], latents (N, 3, R, R) in units of sigma, labels int64 (N,).

That PaGoDA reconstructs, moves an image to another class, interpolates, enlarges and fills in images by means of E and G is
the paper's; how is not known here, and no script for it was released. So everything beyond "E, then G" is a reading of this
project (docs/pagoda.md, "Controllable generation"), and each function says which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from pagoda_bench.diffusion.edm import SIGMA_MIN, karras_grid
from pagoda_bench.diffusion.solvers import Solver, invert

Encode = Callable[[Tensor, Tensor], Tensor]  # E(x, labels)
EncodeFrom = Callable[[Tensor, Tensor, float], Tensor]  # E(x, labels, sigma): x is a state at noise level sigma
Generate = Callable[[Tensor, Tensor], Tensor]  # G(z, labels)
Path = Literal["spherical", "linear"]

SAME = 1e-6  # directions whose sine is below this are taken as one
LOWEST = 0.1  # the last noise level of inpainting: about a tenth of the contrast of images


@dataclass(frozen=True)
class Encoder:
    """E: `encoder(x, labels)` is the latent of images, `encoder(x, labels, sigma)` that of states of noise level `sigma`.

    `denoise(x, sigma, labels)` is the teacher's denoised image. The grid is Karras's, cut off below `sigma`. 2 (n - 1)
    evaluations with Heun and n - 1 with DDIM for the n levels that are left; none from sigma = 80, where a state is a latent.
    """

    denoise: Callable[[Tensor, Tensor, Tensor], Tensor]
    points: int = 40
    solver: Solver = "heun"
    clamp: bool = True

    def __call__(self, x: Tensor, labels: Tensor, sigma: float = SIGMA_MIN) -> Tensor:
        above = [float(level) for level in karras_grid(self.points) if level > sigma * (1 + 1e-9)]
        if not above:
            return x
        return invert(lambda state, level: self.denoise(state, level, labels), x, [*above, sigma], self.solver, self.clamp)


def reconstruct(encode: Encode, generate: Generate, image: Tensor, labels: Tensor) -> Tensor:
    """G(E(x)), what L_rec draws to x. With a grown generator the result is larger than `image`: see `super_resolve`."""
    return generate(encode(image, labels), labels)


def transfer(encode: Encode, generate: Generate, image: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """G(E(x, c), c'): the image of the same latent in the classes `targets`. Only labels change: no strength (ours)."""
    return generate(encode(image, labels), targets)


def super_resolve(encode: Encode, generate: Generate, image: Tensor, labels: Tensor) -> Tensor:
    """G_hi(E(x)): `image` at the teacher's size, `generate` grown. Stage 3 trains G_hi to make the large image from E(x) of the
    small one; for what the small one does not show, this is one answer of many."""
    return generate(encode(image, labels), labels)


def interpolate(
    encode: Encode,
    generate: Generate,
    images: tuple[Tensor, Tensor],
    labels: tuple[Tensor, Tensor],
    fractions: Sequence[float],
    path: Path = "spherical",
) -> list[Tensor]:
    """Images on the way from the first to the second, one batch (N, 3, H, W) for each of `fractions` in [0, 1].

    Each image is encoded in its own class. Where classes differ, the first half of the way is generated in the first class and
    the rest in the second: there is no class between two (ours; so is the spherical path).
    """
    a, b = (encode(image, label) for image, label in zip(images, labels, strict=True))
    return [generate(between(a, b, t, path), labels[0] if t < 0.5 else labels[1]) for t in fractions]


def between(a: Tensor, b: Tensor, t: float, path: Path = "spherical") -> Tensor:
    """The point at fraction `t` between latents, for each image of a batch.

    Spherical (Shoemake 1985): the direction turns evenly, and the length goes evenly from that of `a` to that of `b`, so that
    latents keep the length of noise. Linear: the straight line, whose middle between independent latents is shorter by sqrt(2).
    """
    if path == "linear":
        return (1 - t) * a + t * b
    shape = (-1, *(1 for _ in a.shape[1:]))
    lengths = [v.flatten(1).norm(dim=1).view(shape) for v in (a, b)]
    a, b = (v / length.clamp_min(torch.finfo(v.dtype).tiny) for v, length in zip((a, b), lengths, strict=True))
    angle = (a * b).flatten(1).sum(1).clamp(-1, 1).arccos().view(shape)
    sine = angle.sin()
    near = sine < SAME  # the same direction, or the opposite one, between which no way is shortest
    turned = (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / sine.where(~near, 1)
    return ((1 - t) * lengths[0] + t * lengths[1]) * turned.where(~near, (1 - t) * a + t * b)


def inpaint(
    encode: EncodeFrom,
    generate: Generate,
    image: Tensor,
    known: Tensor,
    labels: Tensor,
    levels: Sequence[float],
    normal: Callable[[], Tensor],
) -> Tensor:
    """Fills in what is not `known`, (N or 1, 1, H, W) bool, of `image`, (N, 3, H, W) of the generator's size.

    E and G take turns, and after each turn the known pixels are put back: for the noise levels sigma in `levels`, from high
    to low, x <- known ? image : G(E(x + sigma n; sigma)), where E starts at the state's own noise level and n = `normal()` is
    fresh noise of the latent's size. From sigma = 80 this is a plain sample; the less noise, the more of the last turn stays.
    The known pixels of the result are those of `image`, to the bit.

    The turns are the paper's as far as is known (E, an edit, G); the noise is ours. Without it nothing would happen, since
    G(E(x)) = x leaves an x alone whose parts do not fit together. Consistency models edit in this way with one network for all
    levels in the place of E and G (Song et al. 2023); PaGoDA's generator knows the highest level only, so E carries the state
    there. For a Gaussian with exact E and G, a turn at a small level is a step of Langevin dynamics of the unknown pixels given
    the known ones, so many such turns sample the conditional distribution (a test does this).
    """
    x = image * known
    for sigma in levels:
        noise = normal()
        state = box_mean(x, noise.shape[-1]) + sigma * noise
        x = torch.where(known, image, generate(encode(state, labels, sigma), labels))
    return x


def inpainting_levels(turns: int, lowest: float = LOWEST) -> np.ndarray:
    """The noise levels of `inpaint`, (turns,), from 80 to `lowest`, on Karras's grid."""
    return karras_grid(turns, sigma_min=lowest)


def box_mean(image: Tensor, size: int) -> Tensor:
    """(N, C, H, H) to (N, C, size, size) by the mean of boxes, as the data's small images are made; H a multiple of `size`."""
    return image if image.shape[-1] == size else F.avg_pool2d(image, image.shape[-1] // size)


def psnr(a: Tensor, b: Tensor) -> list[float]:
    """20 log10(2 / rms) of each image of a batch in [-1, 1], in dB; 100 at most."""
    rms = (a - b).double().square().flatten(1).mean(1).sqrt()
    return [float(v) for v in (20 * (2 / rms.clamp_min(2e-5)).log10())]
