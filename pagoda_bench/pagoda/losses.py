"""PaGoDA's losses: L = L_rec + lambda L_adv.

L_rec compares G(E(x)) with the *real* image x: the teacher's errors enter through the latent E(x) alone, never as a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pagoda_bench.nets.discriminator import hinge_discriminator
from pagoda_bench.training import parallel, sharding

EPS = 1e-10  # as in the official code
TINY = 1e-20  # keeps the square root differentiable where rectified maps are all zero


def feature_distance(estimate: Sequence[Tensor], target: Sequence[Tensor], eps: float = EPS) -> Tensor:
    """One value an image, (N,): maps are normalised to unit length over channels at every place, squared differences are
    averaged over places and summed over channels and maps (LPIPS without its learnt weights; the official `cnn_vit`)."""
    total = estimate[0].new_zeros(len(estimate[0]))
    for a, b in zip(estimate, target, strict=True):
        a, b = a.float(), b.float()  # autocast hands over 8 bits of mantissa, too few for the differences
        a = a / ((a.square().sum(1, keepdim=True) + TINY).sqrt() + eps)
        b = b / ((b.square().sum(1, keepdim=True) + TINY).sqrt() + eps)
        total = total + (a - b).square().sum(1).mean((1, 2))
    return total


def adaptive_weight(rec: Tensor, adv: Tensor) -> Tensor:
    """lambda: the ratio of the gradient norms of L_rec and L_adv at the last decoder convolution (Esser et al. 2021), with the
    clamps of the official code: to [0, 1e4], then to [0.01, 10]."""
    return (rec.norm() / (adv.norm() + 1e-4)).clamp(0, 1e4).clamp(0.01, 10)


def last_layer(net: nn.Module) -> nn.Parameter:
    """The weight at which the official code compares gradients: the second convolution of the first residual block in the last
    output block."""
    block = net.output_blocks[-1][0]  # type: ignore[index]
    weight = block.out_layers[3].weight  # type: ignore[union-attr]
    assert isinstance(weight, nn.Parameter)
    return weight


class Term(NamedTuple):
    """A part of the generator's loss: `loss` judges `image`, weighs `weight`, times the adaptive factor where asked for."""

    image: Tensor
    loss: Tensor
    weight: float = 1.0
    adaptive: bool = False


def accumulate(terms: Sequence[Term], parameters: Sequence[nn.Parameter], at: nn.Parameter, scale: float = 1.0) -> list[float]:
    """Adds the gradients of `scale * sum_i factor_i * loss_i` to those of the generator's `parameters`.

    Returns the factors: `weight`, times the ratio of gradient norms of the first term and of this one at `at`, where the
    term is adaptive. Of several processes these are the norms of the averaged gradients.

    The judges are walked through once, and so is the generator for each term: gradients are linear, so a factor that is
    known only after the pass may be applied to its result. (The official code walks back to `at` once more for each term.)
    """
    if not terms:
        return []
    at_images = [torch.autograd.grad(scale * term.loss, term.image)[0] for term in terms]
    factors = [term.weight for term in terms]
    if not any(term.adaptive for term in terms):
        torch.autograd.backward([term.image for term in terms], [f * g for f, g in zip(factors, at_images, strict=True)])
        return factors
    where = next(i for i, p in enumerate(parameters) if p is at)
    sharded = sharding.any_sharded(parameters)
    first: Tensor | None = None
    for i, (term, at_image) in enumerate(zip(terms, at_images, strict=True)):
        keep = any(later.image is term.image for later in terms[i + 1 :])  # else its graph may go
        if sharded:
            own = _gradients_of_parts(term.image, at_image, parameters, keep)
        else:
            own = torch.autograd.grad(term.image, list(parameters), at_image, retain_graph=keep, allow_unused=True)
        at_layer = own[where]
        assert at_layer is not None
        at_layer = (sharding.whole(at_layer) if sharded else parallel.mean(at_layer)) / scale
        first = at_layer if first is None else first
        if term.adaptive:
            factors[i] = term.weight * float(adaptive_weight(first, at_layer))
        for parameter, gradient in zip(parameters, own, strict=True):
            if gradient is not None:
                gradient = gradient * factors[i]
                parameter.grad = gradient if parameter.grad is None else parameter.grad.add_(gradient)
    return factors


def _gradients_of_parts(
    image: Tensor, at_image: Tensor, parameters: Sequence[nn.Parameter], keep: bool
) -> tuple[Tensor | None, ...]:
    """`autograd.grad` for sharded parameters, means over processes: the graph knows only the whole ones, so they come by way of
    `.grad`, whose content before is put back."""
    before = [p.grad for p in parameters]
    for p in parameters:
        p.grad = None
    torch.autograd.backward([image], [at_image], retain_graph=keep)
    own = tuple(p.grad for p in parameters)
    for p, gradient in zip(parameters, before, strict=True):
        p.grad = gradient
    return own


def generator_loss(fake: Tensor, gan: str) -> Tensor:
    """-mean D(fake) beside the hinge loss, as in the official code; else mean softplus(-D(fake)) (Goodfellow et al. 2014)."""
    return -fake.mean() if gan == "hinge" else F.softplus(-fake).mean()


def discriminator_loss(real: Tensor, fake: Tensor, gan: str) -> Tensor:
    """The hinge loss, or mean softplus(-D(real)) + mean softplus(D(fake))."""
    return hinge_discriminator(real, fake) if gan == "hinge" else F.softplus(-real).mean() + F.softplus(fake).mean()
